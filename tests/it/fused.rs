//! Families with one tensor for several projections: read apart, written together.

use std::path::{Path, PathBuf};

use bam_convert::model::{CausalLm, Forward};
use tempfile::TempDir;

use crate::common::{
    Run, Tensor, against, bam, copy_folder, edit_tensors, fixture, read_folder, read_json,
};
use crate::model::families::vary;
use crate::model::{difference, golden_tokens, run, ways};
use crate::train::train;

/// The shapes of the fixture.
const HEAD: usize = 8;
const QUERIES: usize = 4;
const KEYS: usize = 2;
const HIDDEN: usize = 32;

/// Phi-3 with other rows of queries, keys and values in their tensor, and with biases.
const GROUPED: &str = "\
extends: phi3
name: grouped
model_types: [grouped]
architectures: [GroupedForCausalLM]

fused:
  qkv_order: per_group

present:
  attention_bias: always
";

fn phi3() -> PathBuf {
    fixture("families/phi3")
}

/// The first rows of a tensor, and then the others, and so on.
fn reordered(tensor: &Tensor, rows: &[usize]) -> Tensor {
    let width = tensor.bytes.len() / tensor.shape[0];
    let bytes = rows
        .iter()
        .flat_map(|row| tensor.bytes[row * width..(row + 1) * width].to_vec());
    Tensor {
        bytes: bytes.collect(),
        ..tensor.clone()
    }
}

/// The rows of stacked queries, keys and values in the order of groups.
fn groups() -> Vec<usize> {
    let each = QUERIES / KEYS;
    let (keys, values) = (QUERIES * HEAD, (QUERIES + KEYS) * HEAD);
    (0..KEYS)
        .flat_map(|group| {
            let queries = group * each * HEAD..(group + 1) * each * HEAD;
            let of = |first: usize| first + group * HEAD..first + (group + 1) * HEAD;
            queries.chain(of(keys)).chain(of(values))
        })
        .collect()
}

/// A format file, a checkpoint of that family, and the checkpoint with stacked rows that computes the same.
fn grouped(work: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let biased = copy_folder(&phi3(), &work.join("biased"));
    edit_tensors(&biased, |tensors| {
        for layer in 0..2 {
            let rows = (QUERIES + 2 * KEYS) * HEAD;
            let values: Vec<f64> = (0..rows).map(|row| (row as f64).sin()).collect();
            let name = format!("model.layers.{layer}.self_attn.qkv_proj.bias");
            let bias = Tensor::new(safetensors::Dtype::F32, &[rows], &values);
            tensors.insert(name, bias);
        }
    });
    let folder = copy_folder(&biased, &work.join("grouped"));
    edit_tensors(&folder, |tensors| {
        for (name, tensor) in tensors {
            if name.contains("qkv_proj") {
                *tensor = reordered(tensor, &groups());
            }
        }
    });
    for (folder, name) in [(&biased, "stacked"), (&folder, "grouped")] {
        crate::common::edit_json(&folder.join("config.json"), |config| {
            config["model_type"] = name.into();
        });
    }
    let format = work.join("grouped.yaml");
    std::fs::write(&format, GROUPED).unwrap();
    (format, folder, biased)
}

fn logits(format: &Path, folder: &Path, out: &Path) -> Vec<f64> {
    let tokens = fixture("golden/tokens.json");
    bam!(
        "logits", folder, "--format", format, "--tokens", tokens, "--dump", out
    )
    .ok();
    crate::common::read_file(out)["logits"].values()
}

#[test]
fn a_merge_has_the_tensors_of_the_family() {
    let work = TempDir::new().unwrap();
    let other = copy_folder(&phi3(), &work.path().join("other"));
    vary(&other, 1.0);
    let out = work.path().join("merged");
    bam!("merge", "--model", phi3(), "--model", other, "--out", out).ok();
    let (a, b, made) = (read_folder(&phi3()), read_folder(&other), read_folder(&out));
    assert_eq!(
        made.keys().collect::<Vec<_>>(),
        a.keys().collect::<Vec<_>>()
    );
    for (name, tensor) in &made {
        let pairs = a[name].values().into_iter().zip(b[name].values());
        let mean: Vec<f64> = pairs
            .map(|(a, b)| f64::from(((a + b) / 2.0) as f32))
            .collect();
        assert_eq!(tensor.values(), mean, "{name}");
    }
    let manifest = read_json(out.join("bam-manifest.json"));
    let made = &manifest["tensors"]["model.layers.0.self_attn.qkv_proj.weight"];
    // The average of whole tensors, not of their parts.
    assert_eq!(made["expression"]["of"][0]["op"], "copy", "{made}");
    against(&out).ok();
}

#[test]
fn an_expert_is_a_checkpoint_of_the_family_again() {
    let work = TempDir::new().unwrap();
    let code = copy_folder(&phi3(), &work.path().join("code"));
    vary(&code, 1.0);
    let (bam, out) = (work.path().join("bam"), work.path().join("expert"));
    let expert = format!("code={}", code.display());
    bam!(
        "upcycle",
        "--seed",
        phi3(),
        "--expert",
        expert,
        "--method",
        "bam",
        "--out",
        bam
    )
    .ok();
    against(&bam).ok();
    bam!("expert", "extract", bam, "code", "--out", out).ok();
    let (wanted, made) = (read_folder(&code), read_folder(&out));
    assert_eq!(
        made.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>()
    );
    for name in [
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ] {
        let name = format!("model.layers.1.{name}.weight");
        assert_eq!(made[&name], wanted[&name], "{name}");
    }
    let config = read_json(out.join("config.json"));
    assert_eq!(config["model_type"], "phi3");
    // Beside the scaling, where the class has a default of its own.
    assert_eq!(config["original_max_position_embeddings"], 12);
    against(&out).ok();
}

#[test]
fn a_trained_checkpoint_has_the_tensors_of_the_family() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("trained");
    train(
        &phi3(),
        &out,
        &["--steps", "2", "--train", "q", "--train", "down"],
    )
    .ok();
    let (before, after) = (read_folder(&phi3()), read_folder(&out));
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    let queries = QUERIES * HEAD * HIDDEN;
    for layer in 0..2 {
        let name = format!("model.layers.{layer}.self_attn.qkv_proj.weight");
        let (before, after) = (before[&name].values(), after[&name].values());
        assert_ne!(before[..queries], after[..queries]);
        assert_eq!(before[queries..], after[queries..]);
        let name = format!("model.layers.{layer}.mlp.gate_up_proj.weight");
        let manifest = read_json(out.join("bam-manifest.json"));
        assert_eq!(manifest["tensors"][&name]["expression"]["op"], "copy");
    }
    against(&out).ok();
}

#[test]
fn rows_of_groups_are_read_and_written() {
    let work = TempDir::new().unwrap();
    let (format, folder, stacked) = grouped(work.path());
    let of_stacked = work.path().join("stacked.yaml");
    let text = GROUPED
        .replace("grouped", "stacked")
        .replace("per_group", "stacked");
    std::fs::write(&of_stacked, text).unwrap();
    let dump = work.path().join("logits.safetensors");
    let wanted = logits(&of_stacked, &stacked, &dump);
    assert_eq!(logits(&format, &folder, &dump), wanted);

    let code = copy_folder(&folder, &work.path().join("code"));
    vary(&code, 1.0);
    let (bam, out) = (work.path().join("bam"), work.path().join("expert"));
    let expert = format!("code={}", code.display());
    bam!(
        "upcycle", "--format", format, "--seed", folder, "--expert", expert, "--method", "bam",
        "--out", bam
    )
    .ok();
    against(&bam).ok();
    bam!(
        "expert", "extract", "--format", format, bam, "code", "--out", out
    )
    .ok();
    let (wanted, made) = (read_folder(&code), read_folder(&out));
    assert_eq!(
        made.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>()
    );
    for part in ["weight", "bias"] {
        let name = format!("model.layers.0.self_attn.qkv_proj.{part}");
        assert_eq!(made[&name], wanted[&name], "{name}");
    }

    let trained = work.path().join("trained");
    let format = format.to_str().unwrap();
    train(
        &folder,
        &trained,
        &["--steps", "1", "--train", "k", "--format", format],
    )
    .ok();
    let (before, after) = (read_folder(&folder), read_folder(&trained));
    let name = "model.layers.0.self_attn.qkv_proj.weight";
    let (before, after) = (before[name].values(), after[name].values());
    let changed: Vec<usize> = (0..(QUERIES + 2 * KEYS) * HEAD)
        .filter(|row| before[row * HIDDEN..][..HIDDEN] != after[row * HIDDEN..][..HIDDEN])
        .collect();
    let keys = |group: usize| {
        let first = group * (QUERIES / KEYS + 2) * HEAD + QUERIES / KEYS * HEAD;
        first..first + HEAD
    };
    assert_eq!(changed, keys(0).chain(keys(1)).collect::<Vec<_>>());
}

#[test]
fn weights_in_bf16_stay_in_their_pages_or_are_widened() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("bf16");
    bam!("convert", phi3(), out, "--dtype", "bf16").ok();
    let logits: Vec<_> = ways()
        .into_iter()
        .map(|(_, options)| {
            let model = CausalLm::load(&out, &options).unwrap();
            run(&model, &golden_tokens(), &Forward::default())
        })
        .collect();
    for other in &logits[1..] {
        assert!(difference(&logits[0], other) < 1e-4);
    }
}

#[test]
fn what_no_reader_of_the_family_finds_is_refused() {
    let work = TempDir::new().unwrap();
    let refused = |name: &str, edit: &dyn Fn(&mut crate::common::Tensors), parts: &[&str]| {
        let folder = copy_folder(&phi3(), &work.path().join(name));
        edit_tensors(&folder, edit);
        let out = work.path().join("out");
        let upcycle: Run = bam!(
            "upcycle",
            "--method",
            "btx",
            "--seed",
            folder,
            "--expert",
            format!("x={}", folder.display()),
            "--out",
            out
        );
        upcycle.refused(2, parts);
        let validated = bam!("validate", folder);
        assert_eq!(validated.code, Some(1), "{validated}");
        for part in parts {
            assert!(validated.stdout.contains(part), "{validated}");
        }
    };
    let name = "model.layers.1.self_attn.qkv_proj.weight";
    refused(
        "apart",
        &|tensors| {
            let whole = tensors.remove(name).unwrap();
            let rows = |rows: std::ops::Range<usize>| {
                let part = reordered(&whole, &rows.clone().collect::<Vec<_>>());
                Tensor {
                    shape: vec![rows.len(), HIDDEN],
                    ..part
                }
            };
            for (part, of) in [("q", 0..32), ("k", 32..48), ("v", 48..64)] {
                tensors.insert(name.replace("qkv", part), rows(of));
            }
        },
        &[name],
    );
    refused("missing", &|tensors| drop(tensors.remove(name)), &[name]);
    refused(
        "twice",
        &|tensors| {
            let part = Tensor {
                shape: vec![16, HIDDEN],
                ..tensors["model.layers.0.mlp.gate_up_proj.weight"].clone()
            };
            let part = Tensor {
                bytes: part.bytes[..16 * HIDDEN * 4].to_vec(),
                ..part
            };
            tensors.insert(name.replace("qkv", "k"), part);
        },
        &["self_attn.k_proj.weight", "stored a second time"],
    );
    refused(
        "short",
        &|tensors| {
            let whole = tensors.get_mut(name).unwrap();
            whole.shape[0] -= HEAD;
            whole.bytes.truncate(whole.shape[0] * HIDDEN * 4);
        },
        &[name, "[56, 32]", "[64, 32]"],
    );
}
