//! Families whose GGUF files differ by names and keys: written and read back, they compute what their folders do.
//!
//! Architectures and names of tensors come from `gguf.constants` in gguf-py 0.19.

use std::path::{Path, PathBuf};

use bam_convert::checkpoint::Gguf;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{bam, copy_folder, edit_json, edit_tensors, fixture, read_json};

/// Tensors of a Llama in llama.cpp, without its norms and its feed-forward network.
const ATTENTION: [&str; 7] = [
    "token_embd",
    "output_norm",
    "output",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
];

/// One family.
struct Row {
    /// The checkpoint in `fixtures/`.
    source: &'static str,
    architecture: &'static str,
    /// Tensors of its layers beside [`ATTENTION`].
    tensors: &'static [&'static str],
    /// Keys of metadata beside Llama's, with their values.
    keys: &'static [(&'static str, f64)],
    /// Endings of biases that llama.cpp does not have, which the checkpoint loses first.
    without: &'static [&'static str],
    /// Keys of `config.json` that change with them.
    change: fn(&mut Value),
}

const GATED: &[&str] = &["attn_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
const POST: &[&str] = &[
    "post_attention_norm",
    "post_ffw_norm",
    "attn_q_norm",
    "attn_k_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

fn rows() -> Vec<Row> {
    let row = |source, architecture, tensors| Row {
        source,
        architecture,
        tensors,
        keys: &[],
        without: &[],
        change: |_| (),
    };
    vec![
        row("qwen2/seed", "qwen2", GATED),
        row(
            "qwen3/seed",
            "qwen3",
            &[
                "attn_norm",
                "attn_q_norm",
                "attn_k_norm",
                "ffn_norm",
                "ffn_gate",
                "ffn_up",
                "ffn_down",
            ],
        ),
        Row {
            without: &[".bias"],
            change: |config| config["attention_bias"] = json!(false),
            ..row("families/olmo2", "olmo2", POST)
        },
        row("families/exaone4", "exaone4", POST),
        Row {
            without: &[
                "o_proj.bias",
                "gate_proj.bias",
                "up_proj.bias",
                "down_proj.bias",
            ],
            change: |config| {
                config["attention_out_bias"] = json!(false);
                config["mlp_bias"] = json!(false);
            },
            ..row(
                "families/seed_oss",
                "seed_oss",
                &[
                    "attn_norm",
                    "post_attention_norm",
                    "ffn_gate",
                    "ffn_up",
                    "ffn_down",
                ],
            )
        },
        Row {
            without: &[".bias"],
            change: |config| {
                config["attention_bias"] = json!(false);
                config["mlp_bias"] = json!(false);
            },
            ..row(
                "families/arcee",
                "arcee",
                &["attn_norm", "ffn_norm", "ffn_up", "ffn_down"],
            )
        },
        Row {
            change: |config| config["sliding_window"] = Value::Null,
            ..row(
                "families/starcoder2",
                "starcoder2",
                &["attn_norm", "ffn_norm", "ffn_up", "ffn_down"],
            )
        },
        Row {
            keys: &[
                ("embedding_scale", 3.0),
                ("residual_scale", 0.4),
                ("attention.scale", 0.2),
                ("logit_scale", 4.0),
            ],
            ..row("families/granite", "granite", GATED)
        },
        Row {
            without: &[".bias"],
            change: |config| config["attention_bias"] = json!(false),
            ..row(
                "families/hunyuan_v1_dense",
                "hunyuan-dense",
                &[
                    "attn_norm",
                    "attn_q_norm",
                    "attn_k_norm",
                    "ffn_norm",
                    "ffn_gate",
                    "ffn_up",
                    "ffn_down",
                ],
            )
        },
        Row {
            without: &[".bias"],
            change: |config| config["bias"] = json!(false),
            ..row("families/internlm2", "internlm2", GATED)
        },
        Row {
            keys: &[("rope.dimension_count", 6.0)],
            change: |config| {
                config["hidden_act"] = json!("gelu_new");
                own_head(config);
            },
            ..row("families/phi", "phi2", &["attn_norm", "ffn_up", "ffn_down"])
        },
        Row {
            without: &[".bias"],
            change: |config| {
                config["attention_bias"] = json!(false);
                config["mlp_bias"] = json!(false);
                config["use_sliding_window"] = json!(false);
                config["no_rope_layers"] = json!([1, 1, 1, 0]);
                config["layer_types"] = Value::Null;
            },
            ..row("families/smollm3", "smollm3", GATED)
        },
        Row {
            keys: &[("rope.dimension_count", 4.0)],
            change: own_head,
            ..row(
                "families/stablelm",
                "stablelm",
                &["attn_norm", "ffn_gate", "ffn_up", "ffn_down"],
            )
        },
        row("families/stablelm_sequential", "stablelm", GATED),
        Row {
            keys: &[("logit_scale", 0.5), ("attention.sliding_window", 5.0)],
            without: &[".bias", "lm_head.weight"],
            change: |config| {
                let sliding = "sliding_attention";
                config["attention_bias"] = json!(false);
                config["tie_word_embeddings"] = json!(true);
                config["layer_types"] = json!([sliding, sliding, sliding, "full_attention"]);
            },
            ..row(
                "families/cohere2",
                "cohere2",
                &["attn_norm", "ffn_gate", "ffn_up", "ffn_down"],
            )
        },
        Row {
            keys: &[("logit_scale", 0.0625)],
            ..row(
                "cohere/seed",
                "command-r",
                &["attn_norm", "ffn_gate", "ffn_up", "ffn_down"],
            )
        },
    ]
}

/// Says that the head is no input embedding.
fn own_head(config: &mut Value) {
    config["tie_word_embeddings"] = json!(false);
}

fn checkpoint(row: &Row, work: &Path) -> PathBuf {
    let name = row.source.replace('/', "-");
    let folder = copy_folder(&fixture(row.source), &work.join(name));
    edit_json(&folder.join("config.json"), row.change);
    // llama.cpp opens no tied head of these families.
    if ["families/phi", "families/stablelm"].contains(&row.source) {
        edit_tensors(&folder, |tensors| {
            let head = tensors["model.embed_tokens.weight"].clone();
            tensors.insert("lm_head.weight".to_owned(), head);
        });
    }
    if !row.without.is_empty() {
        edit_tensors(&folder, |tensors| {
            tensors.retain(|name, _| !row.without.iter().any(|end| name.ends_with(end)));
        });
    }
    folder
}

#[test]
fn families_in_gguf_compute_what_their_folders_do() {
    let work = TempDir::new().unwrap();
    for row in rows() {
        let folder = checkpoint(&row, work.path());
        let file = folder.with_extension("gguf");
        bam!("convert", folder, file, "--dtype", "f32").ok();

        let gguf = Gguf::open(&file).unwrap();
        let text = gguf.text("general.architecture").unwrap();
        assert_eq!(text, Some(row.architecture));
        for name in gguf.tensors.keys() {
            let name = name
                .rsplit_once('.')
                .map_or(name.as_str(), |(name, _)| name);
            let role = name.rsplit('.').next().unwrap();
            let is_known = ATTENTION.contains(&role) || row.tensors.contains(&role);
            assert!(
                is_known || name == "rope_freqs",
                "{}: {name}",
                row.architecture
            );
        }
        for (key, expected) in row.keys {
            let key = format!("{}.{key}", row.architecture);
            let found = gguf.float(&key).unwrap();
            let found = found.or(gguf.unsigned(&key).ok().flatten().map(|n| n as f64));
            assert_eq!(found, Some(*expected), "{key}");
        }

        let tokens = fixture("golden/tokens.json");
        let compared = bam!("logits", folder, file, "--tokens", tokens, "--json").ok();
        let largest = compared.json()["max"].as_f64().unwrap();
        assert!(largest < 1e-4, "{}: {largest}", row.architecture);

        let back = folder.with_extension("back");
        bam!("convert", file, back, "--dtype", "f32").ok();
        let [before, after] = [&folder, &back].map(|at| read_json(at.join("config.json")));
        assert_eq!(before["model_type"], after["model_type"]);
        let wide = folder.with_extension("f32");
        bam!("convert", folder, wide, "--dtype", "f32").ok();
        bam!("diff", wide, back).ok();
    }
}

/// A GGUF file of these architectures has no place for it, and llama.cpp would compute another model.
#[test]
fn what_an_architecture_of_gguf_lacks_is_refused() {
    let work = TempDir::new().unwrap();
    for (source, expected) in [
        ("families/olmo2", "fewer biases"),
        ("families/seed_oss", "fewer biases"),
        ("families/starcoder2", "no sliding window"),
        ("families/phi", "its activation is gelu_new"),
        ("families/cohere2", "other layers have its sliding window"),
        ("families/smollm3", "other layers rotate queries and keys"),
    ] {
        let out = work.path().join("out.gguf");
        bam!("convert", fixture(source), out).refused(2, &[expected]);
        assert!(!out.exists());
    }
    // llama.cpp opens no file of these without a head.
    for row in rows() {
        if !["phi2", "stablelm", "olmo2", "internlm2"].contains(&row.architecture) {
            continue;
        }
        let folder = checkpoint(&row, work.path());
        edit_json(&folder.join("config.json"), |config| {
            config["tie_word_embeddings"] = json!(true);
        });
        edit_tensors(&folder, |tensors| {
            tensors.retain(|name, _| !["lm_head.weight", "output.weight"].contains(&name.as_str()));
        });
        let out = work.path().join("out.gguf");
        bam!("convert", folder, out).refused(2, &["its head is a tensor of its own"]);
        assert!(!out.exists());
    }
}
