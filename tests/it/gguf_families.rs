//! Families whose GGUF files differ by names and keys: written and read back, they compute what their folders do.
//!
//! Architectures and names of tensors come from `gguf.constants` in gguf-py 0.19. Where llama.cpp's files have other tensors or values
//! than folders, `fixtures/make_gguf_families.py` has computed their hashes with gguf-py's names.

mod rows;

use std::path::{Path, PathBuf};

use bam_convert::checkpoint::Gguf;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    Tensors, bam, copy_folder, edit_json, edit_tensors, fixture, read_folder, read_json, sha256,
};

use rows::{Row, rows};

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

fn checkpoint(row: &Row, work: &Path) -> PathBuf {
    let name = row.source.replace('/', "-");
    // A fixture may have several rows.
    let mut folders = (1..).map(|number| work.join(format!("{name}-{number}")));
    let folder = folders.find(|folder| !folder.exists()).unwrap();
    let folder = copy_folder(&fixture(row.source), &folder);
    edit_json(&folder.join("config.json"), row.change);
    // llama.cpp opens no tied head of these families.
    if ["families/phi", "families/stablelm", "families/nemotron"].contains(&row.source) {
        edit_tensors(&folder, |tensors| {
            let head = tensors["model.embed_tokens.weight"].clone();
            tensors.insert("lm_head.weight".to_owned(), head);
        });
    }
    if ["families/starcoder2", "families/nemotron", "families/glm"].contains(&row.source) {
        edit_tensors(&folder, narrow_heads);
    }
    if row.source == "mixtures/olmoe" {
        edit_tensors(&folder, double_keys);
    }
    if ["mixtures/qwen2_moe", "mixtures/qwen3_moe"].contains(&row.source) {
        edit_tensors(&folder, |tensors| {
            *tensors = std::mem::take(tensors)
                .into_iter()
                .filter(|(name, _)| !name.contains("layers.0."))
                .map(|(name, tensor)| (name.replace("layers.1.", "layers.0."), tensor))
                .collect();
        });
    }
    if !row.without.is_empty() {
        edit_tensors(&folder, |tensors| {
            tensors.retain(|name, _| !row.without.iter().any(|end| name.ends_with(end)));
        });
    }
    folder
}

/// Doubles the heads of keys and values: llama.cpp opens an OLMoE only with as many as of queries.
fn double_keys(tensors: &mut Tensors) {
    for (name, tensor) in tensors {
        if ["k_proj", "v_proj", "k_norm"]
            .iter()
            .any(|part| name.contains(part))
        {
            tensor.shape[0] *= 2;
            tensor.bytes = tensor.bytes.repeat(2);
        }
    }
}

/// Halves the heads of a model in float32: llama.cpp opens only heads that are together as wide as the hidden states.
fn narrow_heads(tensors: &mut Tensors) {
    for (name, tensor) in tensors {
        if ["q_proj", "k_proj", "v_proj"]
            .iter()
            .any(|part| name.contains(part))
        {
            tensor.shape[0] /= 2;
            tensor.bytes.truncate(tensor.bytes.len() / 2);
        } else if name.ends_with("o_proj.weight") {
            tensor.shape[1] /= 2;
            let row = 4 * tensor.shape[1];
            let halves = tensor.bytes.chunks(row).step_by(2);
            tensor.bytes = halves.flatten().copied().collect();
        }
    }
}

#[test]
fn families_in_gguf_compute_what_their_folders_do() {
    let work = TempDir::new().unwrap();
    let golden = read_json(fixture("golden/gguf_families.json"));
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
        let family = row.source.strip_prefix("families/");
        if let Some(hashes) = family.and_then(|family| golden.get(family)) {
            let bytes = std::fs::read(&file).unwrap();
            for (name, entry) in &gguf.tensors {
                let at = entry.offset as usize..(entry.offset + entry.length) as usize;
                let is_other = hashes
                    .get(name)
                    .is_some_and(|hash| *hash != sha256(&bytes[at]));
                assert!(!is_other, "{}: {name}", row.architecture);
            }
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
        if ["gemma", "gemma2", "gemma3", "nemotron"].contains(&row.architecture) {
            // The sum of one and the weight has fewer digits of the weight.
            let [before, after] = [&folder, &back].map(|folder| read_folder(folder));
            for (name, tensor) in before {
                let (a, b) = (tensor.values(), after[&name].values());
                let close = a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1.2e-7);
                assert!(a.len() == b.len() && close, "{name}");
            }
            continue;
        }
        let wide = folder.with_extension("f32");
        let is_wide = row.source.starts_with("families/");
        if !is_wide {
            bam!("convert", folder, wide, "--dtype", "f32").ok();
        }
        bam!("diff", if is_wide { folder } else { wide }, back).ok();
    }
}

/// llama.cpp derives sizes from others there, or needs each tensor.
#[test]
fn models_that_llama_cpp_cannot_open_are_refused() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out.gguf");
    for (source, key, value, expected) in [
        (
            "families/phi3",
            "sliding_window",
            json!(5),
            "it has no sliding window",
        ),
        (
            "families/gpt_neox",
            "hidden_act",
            json!("relu"),
            "its activation is gelu_pytorch_tanh",
        ),
        (
            "families/ministral3",
            "sliding_window",
            json!(9),
            "it has no sliding window",
        ),
        (
            "families/glm",
            "attention_bias",
            json!(false),
            "its heads together are as wide as the hidden states (hidden_size)",
        ),
        (
            "families/olmo2",
            "rope_parameters",
            json!({
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64
            }),
            "it scales rotary positions by one of linear, yarn, not by llama3 (rope_type)",
        ),
    ] {
        let folder = copy_folder(&fixture(source), &work.path().join(source));
        edit_json(&folder.join("config.json"), |config| {
            config[key] = value.clone()
        });
        bam!("convert", folder, out).refused(2, &[expected]);
        assert!(!out.exists());
    }
    // Llama.cpp needs each bias of these.
    for (source, key) in [
        ("families/gpt_neox", "attention_bias"),
        ("families/starcoder2", "use_bias"),
    ] {
        let folder = copy_folder(&fixture(source), &work.path().join(key));
        edit_json(&folder.join("config.json"), |config| {
            config[key] = json!(false);
            config["sliding_window"] = Value::Null;
        });
        edit_tensors(&folder, |tensors| {
            let is_bias = |name: &String| name.ends_with(".bias") && !name.contains("norm");
            tensors.retain(|name, _| {
                !is_bias(name) || key == "attention_bias" && name.contains("mlp")
            });
        });
        let out = work.path().join(format!("{key}.gguf"));
        bam!("convert", folder, out).refused(2, &["it needs a bias beside each projection"]);
        assert!(!out.exists());
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
        (
            "families/gemma2",
            "it scales attention scores otherwise (query_pre_attn_scalar)",
        ),
        (
            "families/gemma3_text",
            "other layers have its sliding window",
        ),
        ("mixtures/qwen2_moe", "all its layers have experts"),
        ("mixtures/olmoe", "it neither clips nor scales"),
        ("mixtures/olmoe", "as many heads of keys as of queries"),
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
