//! Tensors that are not what the configuration says: one reason for many names that do not match.

use crate::common::{
    Tensor, Tensors, bam, copy_folder, edit_json, edit_tensors, fixture, read_folder, write_file,
};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

use super::{LOOKING, each_command, said};

/// A copy of the seed with other tensors.
fn spoilt(edit: impl FnOnce(&mut Tensors)) -> TempDir {
    let work = TempDir::new().unwrap();
    let input = copy_folder(&fixture("llama/seed"), work.path());
    edit_tensors(&input, edit);
    work
}

fn renamed(rename: impl Fn(&str) -> String) -> TempDir {
    spoilt(|tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| (rename(&name), tensor))
            .collect()
    })
}

#[test]
fn names_with_another_beginning() {
    let bare = renamed(|name| name.replacen("model.", "", 1));
    each_command(
        bare.path(),
        &LOOKING,
        &[
            "`embed_tokens.weight`",
            "found it without `model.`",
            "ForCausalLM",
        ],
    );
    for (prefix, part) in [
        ("module.", "DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("language_model.", "multimodal"),
        ("base_model.model.", "merge_and_unload"),
        ("brain.", "--format"),
    ] {
        let input = renamed(|name| format!("{prefix}{name}"));
        each_command(
            input.path(),
            &LOOKING,
            &[
                &format!("`{prefix}model.embed_tokens.weight`"),
                &format!("found `{prefix}` before it"),
                part,
            ],
        );
    }
    let inner = renamed(|name| name.replacen("model.", "model.language_model.", 1));
    each_command(
        inner.path(),
        &LOOKING,
        &[
            "found `model.language_model.` in the place of `model.`",
            "multimodal",
        ],
    );
}

#[test]
fn models_with_another_head() {
    let head = |name: &str| {
        let name = name.to_owned();
        spoilt(move |tensors| {
            tensors.insert(name, Tensor::new(Dtype::BF16, &[2, 32], &[0.5; 64]));
        })
    };
    for name in ["score.weight", "classifier.weight", "v_head.summary.weight"] {
        each_command(
            head(name).path(),
            &LOOKING,
            &[&format!("`{name}`"), "is the head of", "language model"],
        );
    }
    let tower = head("vision_tower.patch.weight");
    each_command(
        tower.path(),
        &LOOKING,
        &["`vision_tower.patch.weight`", "multimodal"],
    );
    // An embedding model: untied, and no head.
    let untied = spoilt(|_| {});
    edit_json(&untied.path().join("config.json"), |config| {
        config["tie_word_embeddings"] = json!(false)
    });
    each_command(
        untied.path(),
        &LOOKING,
        &[
            "`lm_head.weight`",
            "without a language head",
            "tie_word_embeddings",
        ],
    );
}

#[test]
fn quantised_weights() {
    let q = "model.layers.0.self_attn.q_proj";
    let stored = |dtype: Dtype, bytes: usize, shape: &[usize]| Tensor {
        dtype,
        shape: shape.to_vec(),
        bytes: vec![1; bytes],
    };
    let cases: Vec<(serde_json::Value, &str, Vec<(&str, Tensor)>)> = vec![
        (
            json!({"quant_method": "gptq", "bits": 4}),
            "GPTQ, 4 bits",
            vec![
                ("qweight", stored(Dtype::I32, 512, &[4, 32])),
                ("qzeros", stored(Dtype::I32, 16, &[1, 4])),
                ("scales", stored(Dtype::F16, 64, &[1, 32])),
                ("g_idx", stored(Dtype::I32, 128, &[32])),
            ],
        ),
        (
            json!({"quant_method": "awq", "bits": 4}),
            "AWQ, 4 bits",
            vec![
                ("qweight", stored(Dtype::I32, 512, &[32, 4])),
                ("qzeros", stored(Dtype::I32, 16, &[1, 4])),
                ("scales", stored(Dtype::F16, 64, &[1, 32])),
            ],
        ),
        (
            json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
            "bitsandbytes, 8 bits",
            vec![
                ("weight", stored(Dtype::I8, 1024, &[32, 32])),
                ("SCB", stored(Dtype::F32, 128, &[32])),
            ],
        ),
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "bitsandbytes, 4 bits",
            vec![
                ("weight", stored(Dtype::U8, 512, &[512, 1])),
                ("weight.absmax", stored(Dtype::F32, 64, &[16])),
                ("weight.quant_map", stored(Dtype::F32, 64, &[16])),
            ],
        ),
        (
            json!({"quant_method": "fp8", "weight_block_size": [128, 128]}),
            "FP8",
            vec![
                ("weight", stored(Dtype::F8_E4M3, 1024, &[32, 32])),
                ("weight_scale_inv", stored(Dtype::F32, 4, &[1, 1])),
            ],
        ),
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "compressed-tensors",
            vec![
                ("weight_packed", stored(Dtype::I32, 512, &[32, 4])),
                ("weight_scale", stored(Dtype::BF16, 64, &[32, 1])),
                ("weight_shape", stored(Dtype::I64, 16, &[2])),
            ],
        ),
        (
            json!(null),
            "MLX, 4 bits",
            vec![
                ("weight", stored(Dtype::U32, 512, &[32, 4])),
                ("scales", stored(Dtype::BF16, 64, &[32, 1])),
                ("biases", stored(Dtype::BF16, 64, &[32, 1])),
            ],
        ),
        (
            json!(null),
            "integers",
            vec![("weight", stored(Dtype::I8, 1024, &[32, 32]))],
        ),
    ];
    for (said_by_config, scheme, parts) in cases {
        let input = spoilt(|tensors| {
            tensors.remove(&format!("{q}.weight"));
            for (end, tensor) in parts {
                tensors.insert(format!("{q}.{end}"), tensor);
            }
        });
        edit_json(&input.path().join("config.json"), |config| {
            if scheme.starts_with("MLX") {
                config["quantization"] = json!({"group_size": 32, "bits": 4});
            } else {
                config["quantization_config"] = said_by_config;
            }
        });
        each_command(input.path(), &LOOKING, &[q, scheme, "dequantise"]);
        said(bam!("inspect", input.path()).ok(), &["quantised", scheme]);
        // A copy keeps them as they are. FP8 is dequantised; of others, a cast would take the scales and leave the integers.
        let out = input.path().with_extension("out");
        bam!("convert", input.path(), &out).ok();
        assert!(read_folder(&out) == read_folder(input.path()), "{scheme}");
        let cast = bam!("convert", input.path(), &out, "--force", "--dtype", "f32");
        if scheme == "FP8" {
            cast.ok();
            bam!("validate", &out).ok();
        } else {
            cast.refused(2, &[q, scheme, "without --dtype"]);
        }
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn plain_weights_whose_configuration_says_how_to_quantise_them() {
    let input = spoilt(|_| {});
    edit_json(&input.path().join("config.json"), |config| {
        config["quantization_config"] =
            json!({"quant_method": "bitsandbytes", "load_in_8bit": true});
    });
    bam!("validate", input.path()).ok();
    let out = input.path().with_extension("out");
    bam!("branch", input.path(), "--into", "a", "--out", &out).ok();
    std::fs::remove_dir_all(out).unwrap();
    // Names that a scheme has too, in a model of floats that is not known.
    let other = TempDir::new().unwrap();
    let path = other.path().join("m.safetensors");
    let tensor = || Tensor::new(Dtype::F32, &[2], &[1.0, 2.0]);
    write_file(
        &path,
        &[
            ("norm.scale".to_owned(), tensor()),
            ("x.codebooks".to_owned(), tensor()),
        ]
        .into(),
    );
    bam!(
        "convert",
        &path,
        other.path().join("out"),
        "--dtype",
        "bf16"
    )
    .ok();
}
