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
    // The class of transformers 4 refuses any other key.
    assert_eq!(config["rope_scaling"].as_object().unwrap().len(), 3);
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

#[test]
fn keys_that_classes_of_either_version_read_are_said_where_each_reads_them() {
    let work = TempDir::new().unwrap();
    let bf16 = |family: &str| {
        let out = work.path().join(family);
        let seed = fixture("families").join(family);
        bam!("convert", seed, out, "--dtype", "bf16").ok();
        bam!("validate", out).ok();
        read_json(out.join("config.json"))
    };
    // transformers 4 reads the rotated part here alone, and takes half of each head where it is not said.
    assert_eq!(bf16("glm")["partial_rotary_factor"], 0.25);
    // Its Phi-3 refuses any other key in this object.
    let phi3 = bf16("phi3");
    assert_eq!(phi3["partial_rotary_factor"], 0.75);
    let scaling = phi3["rope_scaling"].as_object().unwrap();
    assert_eq!(
        scaling.keys().collect::<Vec<_>>(),
        ["type", "long_factor", "short_factor"]
    );
}

#[test]
fn the_language_model_of_a_model_with_images_is_a_checkpoint_of_its_family() {
    let work = TempDir::new().unwrap();
    let seed = fixture("families/mistral3");
    let code = copy_folder(&seed, &work.path().join("code"));
    vary(&code, 1.0);
    let out = work.path().join("merged");
    bam!("merge", "--model", seed, "--model", code, "--out", out).ok();
    against(&out).ok();
    let config = read_json(out.join("config.json"));
    assert_eq!(config["model_type"], "mistral");
    assert_eq!(config["architectures"][0], "MistralForCausalLM");
    let (stored, made) = (read_folder(&seed), read_folder(&out));
    let ours: Vec<String> = stored
        .keys()
        .filter_map(|name| {
            let name = name.strip_prefix("language_model.")?;
            Some(name.to_owned())
        })
        .collect();
    assert_eq!(
        made.keys().collect::<Vec<_>>(),
        ours.iter().collect::<Vec<_>>()
    );
    let manifest = read_json(out.join("bam-manifest.json"));
    let head = &manifest["tensors"]["lm_head.weight"]["expression"]["of"][0];
    assert_eq!(head["tensor"], "language_model.lm_head.weight");

    // The whole is kept by what copies it.
    let trained = work.path().join("trained");
    train(&seed, &trained, &["--steps", "1", "--train", "head"]).ok();
    let after = read_folder(&trained);
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        stored.keys().collect::<Vec<_>>()
    );
    let changed: Vec<&String> = stored
        .keys()
        .filter(|name| stored[*name] != after[*name])
        .collect();
    assert_eq!(changed, ["language_model.lm_head.weight"]);
    let whole = read_json(trained.join("config.json"));
    assert_eq!(whole["model_type"], "mistral3");
    bam!("validate", trained).ok();
    bam!(
        "branch",
        seed,
        "--into",
        "a",
        "--out",
        work.path().join("branches")
    )
    .ok();
    let branch = work.path().join("branches/a");
    assert_eq!(read_folder(&branch), stored);
    against(&branch).ok();
}

#[test]
fn other_parts_are_left_out_with_a_note_and_ignored_tensors_too() {
    let work = TempDir::new().unwrap();
    let seed = fixture("families/llava");
    let expert = format!("x={}", seed.display());
    let made = bam!(
        "upcycle",
        "--method",
        "btx",
        "--seed",
        seed,
        "--expert",
        expert,
        "--out",
        work.path().join("btx")
    )
    .ok();
    assert!(made.stderr.contains("multi_modal_projector"), "{made}");

    let folder = copy_folder(&phi3(), &work.path().join("masked"));
    edit_tensors(&folder, |tensors| {
        let mask = Tensor::new(safetensors::Dtype::F32, &[1], &[0.0]);
        tensors.insert("model.layers.0.self_attn.masked_bias".into(), mask);
    });
    let format = work.path().join("masked.yaml");
    let text =
        "extends: phi3\nname: masked\nmodel_types: [masked]\narchitectures: [MaskedForCausalLM]\n";
    std::fs::write(&format, text).unwrap();
    crate::common::edit_json(&folder.join("config.json"), |config| {
        config["model_type"] = "masked".into();
    });
    bam!(
        "merge",
        "--format",
        format,
        "--model",
        folder,
        "--out",
        work.path().join("refused")
    )
    .refused(2, &["masked_bias"]);
    std::fs::write(
        &format,
        format!("{text}ignored_tensors: ['*.masked_bias']\n"),
    )
    .unwrap();
    let out = work.path().join("merged");
    let made = bam!("merge", "--format", format, "--model", folder, "--out", out).ok();
    assert!(made.stderr.contains("masked_bias"), "{made}");
    assert_eq!(read_folder(&out).len(), read_folder(&phi3()).len());
    bam!("validate", "--format", format, folder).ok();
}

/// The published files of Pythia spell the rotation otherwise, and have buffers of old versions.
#[test]
fn published_files_of_gpt_neox_compute_the_same() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&fixture("families/gpt_neox"), &work.path().join("pythia"));
    crate::common::edit_json(&folder.join("config.json"), |config| {
        let config = config.as_object_mut().unwrap();
        config.remove("rope_parameters");
        config.remove("use_parallel_residual");
        for (key, value) in [("rotary_pct", 0.75), ("rotary_emb_base", 30000.0)] {
            config.insert(key.into(), value.into());
        }
        let linear = serde_json::json!({"type": "linear", "factor": 2.0});
        config.insert("rope_scaling".into(), linear);
        config.insert("transformers_version".into(), "4.24.0".into());
    });
    edit_tensors(&folder, |tensors| {
        for (name, shape) in [("bias", &[1, 1, 4, 4][..]), ("masked_bias", &[][..])] {
            let count = shape.iter().product();
            let tensor = Tensor::new(safetensors::Dtype::F32, shape, &vec![1.0; count]);
            tensors.insert(format!("gpt_neox.layers.0.attention.{name}"), tensor);
        }
    });
    bam!("validate", folder).ok();
    let tokens = fixture("golden/tokens.json");
    let same = |folder: &Path| {
        let golden = fixture("families/gpt_neox");
        let compared = bam!("logits", golden, folder, "--tokens", tokens, "--json").ok();
        assert_eq!(compared.json()["max"], 0.0, "{compared}");
    };
    same(&folder);
    let merged = work.path().join("merged");
    bam!("merge", "--model", folder, "--out", merged).ok();
    same(&merged);
    let converted = work.path().join("converted");
    bam!(
        "convert",
        fixture("families/gpt_neox"),
        converted,
        "--dtype",
        "f32"
    )
    .ok();
    same(&converted);
    // Where transformers 4 reads them.
    let config = read_json(converted.join("config.json"));
    assert_eq!(config["rotary_pct"], 0.75);
    assert_eq!(config["rotary_emb_base"], 30000.0);
}

#[test]
fn sequential_blocks_of_gpt_neox_are_said_by_a_key() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(
        &fixture("families/gpt_neox"),
        &work.path().join("sequential"),
    );
    crate::common::edit_json(&folder.join("config.json"), |config| {
        config["use_parallel_residual"] = false.into();
    });
    let expert = format!("x={}", folder.display());
    let (bam, out) = (work.path().join("bam"), work.path().join("expert"));
    bam!(
        "upcycle", "--method", "bam", "--seed", folder, "--expert", expert, "--out", bam
    )
    .ok();
    bam!("expert", "extract", bam, "x", "--out", out).ok();
    let tokens = fixture("golden/tokens.json");
    let compared = bam!("logits", folder, out, "--tokens", tokens, "--json").ok();
    assert_eq!(compared.json()["max"], 0.0, "{compared}");
    assert_eq!(
        read_json(out.join("config.json"))["use_parallel_residual"],
        false
    );
}
