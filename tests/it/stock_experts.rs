//! Experts of other programs' mixtures: taken out, removed and added, with the results of the same mixture as a BAM.

use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::common::{against, bam, fixture, read_folder, read_json};
use crate::targets::distance;
use crate::train::train;

fn mixture(family: &str) -> PathBuf {
    fixture("mixtures").join(family)
}

/// The largest distance of two checkpoints' logits, of which both are sound.
fn same(a: &Path, b: &Path) -> bool {
    [a, b]
        .iter()
        .for_each(|folder| _ = bam!("validate", folder).ok());
    distance(a, b) < 1e-5
}

#[test]
fn experts_go_in_and_out_as_in_a_bam() {
    for (family, dense) in [
        ("flex_olmo", Some("olmo2")),
        ("granitemoe", Some("granite")),
        ("granitemoeshared", Some("granite")),
        ("hunyuan_v1_moe", Some("hunyuan_v1_dense")),
        // Their layers without experts have another width.
        ("ernie4_5_moe", None),
        ("cohere2_moe", None),
    ] {
        let work = TempDir::new().unwrap();
        let at = |name: &str| work.path().join(name);
        let stock = mixture(family);
        bam!("convert", stock, at("bam"), "--to", "bam").ok();
        for (from, out) in [(&stock, "less"), (&at("bam"), "bam-less")] {
            bam!(
                "expert",
                "remove",
                from,
                "1",
                "--top-k",
                "2",
                "--out",
                at(out)
            )
            .ok();
            against(at(out)).ok();
        }
        assert!(same(&at("less"), &at("bam-less")), "{family}");
        let extracted = bam!("expert", "extract", stock, "2", "--out", at("alone"));
        let Some(dense) = dense else {
            extracted.refused(2, &["wide"]);
            continue;
        };
        extracted.ok();
        assert_eq!(
            read_json(at("alone/config.json"))["model_type"],
            dense,
            "{family}"
        );
        let alone = format!("x={}", at("alone").display());
        for (from, out) in [(&at("less"), "more"), (&at("bam-less"), "bam-more")] {
            bam!("expert", "add", from, "--expert", alone, "--out", at(out)).ok();
            against(at(out)).ok();
        }
        let (more, bam_more) = (read_folder(&at("more")), read_folder(&at("bam-more")));
        let width = |tensors: &crate::common::Tensors| {
            let routers = tensors.iter().filter(|(name, tensor)| {
                name.contains(".layers.0.") && tensor.shape.first() == Some(&4)
            });
            routers.count()
        };
        assert!(width(&more) > 0 && width(&bam_more) > 0, "{family}");
        bam!("convert", at("more"), at("again"), "--to", "bam").ok();
        bam!("validate", at("again")).ok();
    }
}

/// The biases of ERNIE's routers are of the kind that balances the load without a loss.
#[test]
fn biases_of_ernie_balance_experts() {
    let work = TempDir::new().unwrap();
    let (stock, out) = (mixture("ernie4_5_moe"), work.path().join("out"));
    let options = [
        "--steps",
        "3",
        "--bias-balancing",
        "0.25",
        "--train",
        "routers",
        "--validate-every",
        "0",
    ];
    train(&stock, &out, &options).ok();
    let name = "model.layers.1.mlp.moe_statics.e_score_correction_bias";
    let (before, after) = (&read_folder(&stock)[name], &read_folder(&out)[name]);
    assert_eq!(after.shape, [1, 4]);
    let steps: Vec<f64> = before
        .values()
        .iter()
        .zip(after.values())
        .map(|(before, after)| (after - before) / 0.25)
        .collect();
    assert!(steps.iter().any(|steps| steps.abs() > 0.5), "{steps:?}");
    assert!(
        steps
            .iter()
            .all(|steps| (steps - steps.round()).abs() < 0.05),
        "{steps:?}"
    );
    against(&out).ok();
}

/// All experts of a layer of Granite are one tensor, also after training.
#[test]
fn trained_experts_of_granite_stay_in_one_tensor() {
    let work = TempDir::new().unwrap();
    let (stock, out) = (mixture("granitemoeshared"), work.path().join("out"));
    train(&stock, &out, &["--steps", "1", "--validate-every", "0"]).ok();
    let (before, after) = (read_folder(&stock), read_folder(&out));
    let shapes = |tensors: &crate::common::Tensors| {
        json!(
            tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.shape.clone()))
                .collect::<std::collections::BTreeMap<_, _>>()
        )
    };
    assert_eq!(shapes(&before), shapes(&after));
    for name in ["input_linear", "output_linear"] {
        let name = format!("model.layers.1.block_sparse_moe.{name}.weight");
        assert_ne!(before[&name].bytes, after[&name].bytes, "{name}");
    }
}
