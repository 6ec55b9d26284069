//! Families whose GGUF files differ by names and keys: written and read back, they compute what their folders do.
//!
//! Architectures and names of tensors come from `gguf.constants` in gguf-py 0.19. Where llama.cpp's files have other tensors or values
//! than folders, `fixtures/make_gguf_families.py` has computed their hashes with gguf-py's names.

mod rows;

use std::collections::BTreeSet;
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
    let golden = golden.as_object().unwrap();
    let mut hashed = BTreeSet::new();
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
        check_layers(&row, &gguf);
        let family = row.source.strip_prefix("families/");
        if let Some((family, hashes)) = family.and_then(|family| golden.get_key_value(family)) {
            check_hashes(&row, &file, &gguf, hashes);
            hashed.insert(family);
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
    assert_eq!(hashed, golden.keys().collect::<BTreeSet<_>>());
}

/// Each layer of the file has the weights of its row.
fn check_layers(row: &Row, gguf: &Gguf) {
    let count = format!("{}.block_count", row.architecture);
    let is_fused = row.tensors.contains(&"attn_qkv");
    let of_fused = |role: &str| ["attn_q", "attn_k", "attn_v"].contains(&role);
    let roles = ATTENTION[3..].iter().chain(row.tensors);
    let roles = roles.filter(|role| !(role.starts_with("rope_") || is_fused && of_fused(role)));
    for layer in 0..gguf.unsigned(&count).unwrap().unwrap() {
        for role in roles.clone() {
            let name = format!("blk.{layer}.{role}.weight");
            let is_there = gguf.tensors.contains_key(&name);
            assert!(is_there, "{}: {name} is missing", row.architecture);
        }
    }
}

/// The file has the tensors of `hashes` and no others but the head that [`checkpoint`] added, and factors on frequencies.
fn check_hashes(row: &Row, file: &Path, gguf: &Gguf, hashes: &Value) {
    let bytes = std::fs::read(file).unwrap();
    let is_without_bias = row.without.contains(&".bias");
    let expected = hashes.as_object().unwrap().iter();
    let expected = expected.filter(|(name, _)| !(is_without_bias && name.ends_with(".bias")));
    let expected: BTreeSet<_> = expected
        .map(|(name, hash)| (name.as_str(), hash.as_str().unwrap().to_owned()))
        .collect();
    let is_added = |name: &str| row.architecture == "nemotron" && name == "output.weight";
    let stored = gguf.tensors.iter();
    let stored = stored.filter(|(name, _)| !name.starts_with("rope_") && !is_added(name));
    let found: BTreeSet<_> = stored
        .map(|(name, entry)| {
            let at = entry.offset as usize..(entry.offset + entry.length) as usize;
            (name.as_str(), sha256(&bytes[at]))
        })
        .collect();
    assert_eq!(found, expected, "{}", row.architecture);
}

/// Gemma's tokenizer marks spaces and puts none first; its split at spaces finds none.
#[test]
fn a_tokenizer_of_gemma_is_the_same_after_gguf() {
    let work = TempDir::new().unwrap();
    let row = rows().into_iter().find(|row| row.architecture == "gemma");
    let folder = checkpoint(&row.unwrap(), work.path());
    let tokenizer = folder.join("tokenizer.json");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let source = fixture("written-by-0.2/gguf/work/mixture").join(name);
        std::fs::copy(source, folder.join(name)).unwrap();
    }
    let space = json!({"String": " "});
    edit_json(&tokenizer, |json| {
        json["normalizer"] = json!({"type": "Replace", "pattern": space, "content": "▁"});
        json["pre_tokenizer"] = json!({
            "type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": false
        });
        json["decoder"]["decoders"].as_array_mut().unwrap().pop();
    });
    let (file, back) = (work.path().join("out.gguf"), work.path().join("back"));
    bam!("convert", folder, file).ok();
    let gguf = Gguf::open(&file).unwrap();
    let prefix = gguf.boolean("tokenizer.ggml.add_space_prefix").unwrap();
    assert_eq!(prefix, Some(false));
    bam!("convert", file, back).ok();
    let [own, rebuilt] = [&folder, &back]
        .map(|at| tokenizers::Tokenizer::from_file(at.join("tokenizer.json")).unwrap());
    for text in ["the  she", " the\n one ", "公园 {the}", "<s> the", ""] {
        let [own, rebuilt] = [&own, &rebuilt].map(|tokenizer| {
            let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
            let text = tokenizer.decode(&ids, true).unwrap();
            (ids, text)
        });
        assert_eq!(own, rebuilt, "{text:?}");
    }
    // Other splits and marks are other words.
    let edits: [(&str, &str, &str, Value); 3] = [
        (
            "pre_tokenizer",
            "behavior",
            "none or Metaspace",
            json!("Isolated"),
        ),
        (
            "pre_tokenizer",
            "pattern",
            "none or Metaspace",
            json!({"String": "▁"}),
        ),
        (
            "normalizer",
            "content",
            "spaces to become ▁ and nothing else",
            json!("_"),
        ),
    ];
    for (step, key, expected, value) in edits {
        let changed = copy_folder(&folder, &work.path().join(key));
        edit_json(&changed.join("tokenizer.json"), |json| {
            json[step][key] = value.clone();
        });
        bam!("convert", changed, work.path().join("other.gguf")).refused(2, &[step, expected]);
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
    // llama.cpp takes a file with so many layers for another model.
    let folder = copy_folder(&fixture("families/exaone4"), &work.path().join("many"));
    edit_json(&folder.join("config.json"), |config| {
        config["num_hidden_layers"] = json!(64);
        config["layer_types"] = vec!["full_attention"; 64].into();
    });
    edit_tensors(&folder, |tensors| {
        for (name, tensor) in tensors.clone() {
            for layer in (2..64).filter(|_| name.contains("layers.0.")) {
                let name = name.replace("layers.0.", &format!("layers.{layer}."));
                tensors.insert(name, tensor.clone());
            }
        }
    });
    let out = work.path().join("out.gguf");
    bam!("convert", folder, out).refused(2, &["its models of 64 layers or more"]);
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
