use std::path::PathBuf;

use super::report::{Status, ValidationReport};
use super::samples::{Samples, edit, overwrite, validated, validated_with};
use crate::checkpoint::{Dtype, dtype};
use crate::surgery::router::RouterInit;

const Q: &str = "model.layers.1.self_attn.q_proj.weight";

/// The findings of one check as text.
fn found(report: &ValidationReport, check: &str) -> String {
    let of = report
        .findings
        .iter()
        .filter(|finding| finding.check == check);
    of.map(|finding| format!("{} {}: {}\n", finding.place, finding.check, finding.problem))
        .collect()
}

fn status(report: &ValidationReport, check: &str) -> Status {
    report
        .checks
        .iter()
        .find(|row| row.name == check)
        .unwrap()
        .status
}

fn bf16(value: f64) -> [u8; 2] {
    let mut bytes = [0; 2];
    assert!(dtype::encode(Dtype::BF16, &[value], &mut bytes));
    bytes
}

#[test]
fn a_sound_model_has_no_faults() {
    let samples = Samples::new();
    let report = validated(&samples.dense("seed", 0), None);
    assert_eq!(
        (report.faults(), report.warnings()),
        (0, 0),
        "{}",
        report.table(true)
    );
    for check in [
        "headers",
        "config",
        "tensors",
        "dtypes",
        "numbers",
        "tokenizer",
        "special ids",
        "manifest",
        "hashes",
    ] {
        assert_eq!(status(&report, check), Status::Ok, "{check}");
    }
}

#[test]
fn nan_and_infinities_are_counted_and_placed() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    overwrite(&folder, Q, 2 * 5, &bf16(f64::NAN));
    overwrite(&folder, Q, 2 * 9, &bf16(f64::INFINITY));
    let report = validated(&folder, None);
    let text = found(&report, "numbers");
    assert!(
        text.contains(Q)
            && text.contains("1 NaN and 1 infinite of 64 values, the first at element 5"),
        "{text}"
    );
    assert!(
        found(&report, "hashes").contains("model.safetensors"),
        "the changed file is named too"
    );
}

#[test]
fn an_all_zero_matrix_is_a_warning() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    overwrite(&folder, Q, 0, &[0; 128]);
    let report = validated(&folder, None);
    assert_eq!(status(&report, "numbers"), Status::Warning);
    assert!(found(&report, "numbers").contains("all zeros"));
}

#[test]
fn missing_and_unexpected_tensors_and_wrong_shapes_are_named() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    edit(&folder.join("config.json"), |config| {
        config["num_hidden_layers"] = 1.into();
        config["attention_bias"] = true.into();
        config["intermediate_size"] = 13.into();
    });
    let text = found(&validated(&folder, None), "tensors");
    assert!(
        text.contains("model.layers.0.self_attn.q_proj.bias")
            && text.contains("is missing: expected [8]"),
        "{text}"
    );
    assert!(
        text.contains(Q) && text.contains("is no tensor of the llama model"),
        "{text}"
    );
    assert!(
        text.contains("has shape [12, 8], but config.json makes it [13, 8]"),
        "{text}"
    );
}

#[test]
fn a_config_that_asks_for_millions_of_tensors_is_a_fault_not_an_allocation() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    edit(&folder.join("config.json"), |config| {
        config["num_hidden_layers"] = 30_000.into()
    });
    let report = validated(&folder, None);
    assert!(
        found(&report, "tensors").contains("at least 30000 tensors"),
        "{}",
        report.table(true)
    );
}

#[test]
fn every_broken_file_is_named_and_later_checks_still_run() {
    let samples = Samples::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| samples.dense(name, 1));
    let folder = samples.mixture("bam", &a, &[("b", &b), ("c", &c)], RouterInit::Normal(0.02));
    let shards: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "safetensors")
        })
        .collect();
    assert!(shards.len() > 2);
    for shard in &shards[..2] {
        let bytes = std::fs::read(shard).unwrap();
        std::fs::write(shard, &bytes[..bytes.len() - 1]).unwrap();
    }
    let report = validated(&folder, None);
    let text = found(&report, "headers");
    for shard in &shards[..2] {
        assert!(
            text.contains(shard.file_name().unwrap().to_str().unwrap()),
            "{text}"
        );
    }
    assert_eq!(status(&report, "numbers"), Status::Skipped);
    assert_eq!(status(&report, "tokenizer"), Status::Ok);
    assert_eq!(
        report
            .checks
            .iter()
            .find(|row| row.name == "hashes")
            .unwrap()
            .faults,
        2
    );
}

#[test]
fn token_ids_past_the_embedding_are_faults() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    edit(&folder.join("tokenizer.json"), |tokenizer| {
        tokenizer["added_tokens"][0]["id"] = 16.into()
    });
    edit(&folder.join("config.json"), |config| {
        config["eos_token_id"] = serde_json::json!([2, 99])
    });
    let report = validated(&folder, None);
    assert!(found(&report, "tokenizer").contains("token id 16, but the embedding has 16 rows"));
    assert!(found(&report, "special ids").contains("eos_token_id"));
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert_eq!(
        status(&validated(&folder, None), "tokenizer"),
        Status::Warning
    );
}

#[test]
fn a_tied_model_with_another_head_is_a_fault_and_with_a_copy_a_warning() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    edit(&folder.join("config.json"), |config| {
        config["tie_word_embeddings"] = true.into()
    });
    assert_eq!(
        status(&validated(&folder, None), "tied head"),
        Status::Fault
    );
    overwrite(&folder, "model.embed_tokens.weight", 0, &[1; 256]);
    overwrite(&folder, "lm_head.weight", 0, &[1; 256]);
    let report = validated(&folder, None);
    assert_eq!(status(&report, "tied head"), Status::Warning);
    assert_eq!(status(&report, "tensors"), Status::Ok);
}

#[test]
fn an_unknown_family_is_a_warning_and_its_tensors_are_skipped() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    edit(&folder.join("config.json"), |config| {
        config["model_type"] = "llamma".into()
    });
    let report = validated(&folder, None);
    assert_eq!(
        (status(&report, "config"), status(&report, "tensors")),
        (Status::Warning, Status::Skipped)
    );
    std::fs::remove_file(folder.join("config.json")).unwrap();
    assert!(found(&validated(&folder, None), "config").contains("is missing"));
}

#[test]
fn a_hostile_manifest_opens_nothing_outside_its_folder() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    let outside = samples.path("secret");
    std::fs::write(&outside, "x").unwrap();
    for path in ["../secret", "/etc/passwd", "..", ""] {
        edit(&folder.join("bam-manifest.json"), |manifest| {
            manifest["files"][0]["path"] = path.into()
        });
        assert!(
            found(&validated(&folder, None), "hashes").contains("it is not opened"),
            "{path}"
        );
    }
}

#[test]
fn what_the_manifest_does_not_know_is_named() {
    let samples = Samples::new();
    let folder = samples.dense("seed", 0);
    std::fs::write(folder.join("notes.txt"), "").unwrap();
    edit(&folder.join("bam-manifest.json"), |manifest| {
        manifest["tensors"][Q]["shape"] = serde_json::json!([64]);
        let tensors = manifest["tensors"].as_object_mut().unwrap();
        tensors.remove("model.norm.weight");
    });
    let report = validated(&folder, None);
    assert!(found(&report, "hashes").contains("notes.txt"));
    let text = found(&report, "manifest");
    assert!(
        text.contains("model.norm.weight") && text.contains("not listed"),
        "{text}"
    );
    assert!(
        text.contains("is BF16 [8, 8], but bam-manifest.json says BF16 [64]"),
        "{text}"
    );
}

/// A mixture of a seed and two fine-tunes of it.
fn mixture(samples: &Samples, router: RouterInit) -> PathBuf {
    let [a, b, c] =
        [("seed", 0), ("code", 1), ("law", 2)].map(|(name, seed)| samples.dense(name, seed));
    samples.mixture("bam", &a, &[("code", &b), ("law", &c)], router)
}

#[test]
fn a_mixture_is_equal_to_its_plan_and_one_changed_value_is_found() {
    let samples = Samples::new();
    let folder = mixture(&samples, RouterInit::Orthogonal(1.0));
    let report = validated(&folder, Some(&[]));
    assert_eq!(report.faults(), 0, "{}", report.table(true));
    for threads in [1, 3] {
        let small = validated_with(&folder, Some(&[]), threads, 1);
        assert_eq!(
            small, report,
            "the result does not depend on threads or memory"
        );
    }
    let given = ["seed", "code", "law"].map(|name| samples.path(name));
    assert_eq!(validated(&folder, Some(&given)).faults(), 0);

    overwrite(&folder, "model.norm.weight", 2 * 3, &bf16(1.5));
    let report = validated(&folder, Some(&[]));
    let text = found(&report, "replay");
    assert!(text.contains("model.norm.weight"), "{text}");
    assert!(text.contains("1 of 8 values differ"), "{text}");
    assert!(
        text.contains("the first is element 3: expected 1.0, found 1.5"),
        "{text}"
    );
}

#[test]
fn a_source_that_changed_is_named_without_what_lies_there() {
    let samples = Samples::new();
    let folder = mixture(&samples, RouterInit::Normal(0.02));
    overwrite(&samples.path("law"), Q, 0, &bf16(3.0));
    let report = validated(&folder, Some(&[]));
    let text = found(&report, "sources");
    assert!(
        text.contains("law/model.safetensors")
            && text
                .contains("of source `law` is missing or differs: expected the file with SHA-256"),
        "{text}"
    );
    let text = found(&report, "replay");
    assert!(
        text.contains("model.layers.1.self_attn.attention_experts.2.q_proj.weight"),
        "{text}"
    );
    assert!(
        text.contains("1 of 64 values differ from law; the first is element 0: expected 3.0"),
        "{text}"
    );
}

#[test]
fn sources_are_known_by_their_files_and_too_many_or_gone_are_named() {
    let samples = Samples::new();
    let folder = mixture(&samples, RouterInit::Normal(0.02));
    let swapped = ["seed", "law", "code"].map(|name| samples.path(name));
    let report = validated(&folder, Some(&swapped));
    assert!(status(&report, "sources") == Status::Ok && status(&report, "replay") == Status::Ok);
    // The second of two equal folders is the source at its place, which it does not hold.
    let wrong = ["seed", "seed", "law"].map(|name| samples.path(name));
    let report = validated(&folder, Some(&wrong));
    assert!(
        status(&report, "sources") == Status::Fault && status(&report, "replay") == Status::Fault
    );
    assert!(found(&report, "sources").contains("of source `code` is missing or differs"));
    let many = ["seed", "code", "law", "law"].map(|name| Some(samples.path(name)));
    let options = super::ValidateOptions {
        against: Some(&many),
        threads: 1,
        memory: 1 << 20,
        progress: &|_| {},
    };
    assert!(
        super::validate(&folder, &options)
            .unwrap_err()
            .to_string()
            .contains("3 sources: seed, code, law")
    );
    std::fs::rename(samples.path("law"), samples.path("gone")).unwrap();
    let report = validated(&folder, Some(&[]));
    assert!(found(&report, "sources").contains("source `law`"));
    assert!(found(&report, "replay").contains("cannot be computed without source `law`"));
    // What follows from the missing source is one fault.
    assert_eq!(found(&report, "replay").lines().count(), 1);
}

#[test]
fn routers_that_cannot_choose_are_found() {
    let samples = Samples::new();
    let folder = mixture(&samples, RouterInit::Normal(0.02));
    let router = "model.layers.0.mlp.router.weight";
    overwrite(&folder, router, 0, &[0; 48]);
    edit(&folder.join("config.json"), |config| {
        config["norm_topk_prob"] = true.into()
    });
    assert_eq!(found(&validated(&folder, None), "model code"), "");
    std::fs::remove_file(folder.join("modeling_bam.py")).unwrap();
    let report = validated(&folder, None);
    let text = found(&report, "routers");
    assert!(
        text.contains(router) && text.contains("all zeros"),
        "{text}"
    );
    assert!(
        text.contains("norm_topk_prob") && text.contains("no gradient"),
        "{text}"
    );
    assert_eq!(
        found(&report, "numbers"),
        "",
        "said once, by the check that knows what a router is"
    );
    assert!(found(&report, "model code").contains("modeling_bam.py"));
}

#[test]
fn a_hostile_replay_is_refused_tensor_by_tensor() {
    let samples = Samples::new();
    let folder = mixture(&samples, RouterInit::Normal(0.02));
    let mut deep =
        serde_json::json!({"op": "copy", "source": "seed", "tensor": "model.norm.weight"});
    for _ in 0..30 {
        deep = serde_json::json!({"op": "mean", "of": [deep]});
    }
    edit(&folder.join("bam-manifest.json"), |manifest| {
        manifest["tensors"]["model.norm.weight"]["expression"] = deep;
        manifest["tensors"][Q] = serde_json::json!({
            "dtype": "BF16", "shape": [4294967296u64, 4294967296u64],
            "expression": {"op": "constant", "value": 0.0},
        });
        manifest["tensors"]["model.embed_tokens.weight"]["expression"] =
            serde_json::json!({"op": "copy", "source": "nobody", "tensor": "x"});
        manifest["sources"][1]["path"] = "/etc".into();
    });
    let report = validated(&folder, Some(&[]));
    assert!(
        found(&report, "sources").contains("is not beside the manifest's folder; it is not opened")
    );
    let text = found(&report, "replay");
    assert!(
        text.contains("`nobody`") && text.contains("is not stored as bam-manifest.json says"),
        "{text}"
    );
    assert!(
        !text.contains("model.norm.weight"),
        "a deep expression is computed: {text}"
    );
}

#[test]
fn one_file_is_checked_for_its_numbers() {
    let samples = Samples::new();
    let file = samples.file(
        "x.safetensors",
        &[
            ("a", Dtype::F8_E4M3, &[1.0, f64::NAN, 2.0]),
            ("b", Dtype::I32, &[7.0, 0.0]),
            ("c", Dtype::F64, &[1e300]),
        ],
    );
    let report = validated(&file, None);
    assert!(found(&report, "numbers").contains("1 NaN of 3 values, the first at element 1"));
    assert_eq!(report.faults(), 1);
    assert!(report.table(false).contains("single file"));
}
