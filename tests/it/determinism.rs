//! Equal runs make equal bytes, whatever the threads, the memory and the interruptions.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{
    Noise, Tensor, Tensors, assert_same_folder, bam, contents, fixture, identity, read_folder,
    read_json, run, write_file,
};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

fn upcycle(seed: &Path, expert: &Path, out: &Path, flags: &[&str]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "upcycle".into(),
        "--seed".into(),
        seed.into(),
        "--expert".into(),
    ];
    arguments.push(format!("code={}", expert.display()).into());
    arguments.extend(["--out".into(), out.into()]);
    arguments.extend(flags.iter().map(Into::into));
    arguments
}

#[test]
fn the_same_run_twice_and_with_other_threads_and_memory() {
    let work = TempDir::new().unwrap();
    for family in ["llama", "qwen3", "cohere"] {
        let (seed, code) = (fixture(family).join("seed"), fixture(family).join("code"));
        let out = |name: &str| work.path().join(format!("{family}-{name}"));
        let base = out("base");
        run(upcycle(&seed, &code, &base, &["--method", "bam"])).ok();
        let others: [(&str, &[&str]); 5] = [
            ("again", &[]),
            ("one", &["--threads", "1"]),
            ("two", &["--threads", "2"]),
            ("five", &["--threads", "5", "--memory", "2MiB"]),
            ("little", &["--threads", "1", "--memory", "300KiB"]),
        ];
        for (name, flags) in others {
            run(upcycle(
                &seed,
                &code,
                &out(name),
                &[&["--method", "bam"], flags].concat(),
            ))
            .ok();
            assert_same_folder(&base, &out(name));
        }
        let (a, b) = (out("shards-1"), out("shards-5"));
        run(upcycle(
            &seed,
            &code,
            &a,
            &[
                "--method",
                "bam",
                "--max-shard-size",
                "9KB",
                "--threads",
                "1",
            ],
        ))
        .ok();
        run(upcycle(
            &seed,
            &code,
            &b,
            &[
                "--method",
                "bam",
                "--max-shard-size",
                "9KB",
                "--threads",
                "5",
            ],
        ))
        .ok();
        assert_same_folder(&a, &b);
        // `read_folder` compares the index with its shards both ways, and total_size.
        assert!(read_folder(&a) == read_folder(&base));
        let shards = contents(&a)
            .keys()
            .filter(|name| name.ends_with(".safetensors"))
            .count();
        let tensors = read_folder(&a);
        let largest = tensors
            .values()
            .map(|tensor| tensor.bytes.len())
            .max()
            .unwrap();
        let total: usize = tensors.values().map(|tensor| tensor.bytes.len()).sum();
        assert!(shards > (total - largest) / 9000, "{shards} shards");
        for number in 1..=shards {
            let name = format!("model-{number:05}-of-{shards:05}.safetensors");
            let held = crate::common::read_file(&a.join(&name));
            let size: usize = held.values().map(|tensor| tensor.bytes.len()).sum();
            assert!(
                size <= 9000 || held.len() == 1,
                "{name}: {size} bytes in {} tensors",
                held.len()
            );
        }
        assert!(!a.join("model.safetensors").exists());
    }
}

#[test]
fn merges_and_casts_too() {
    let work = TempDir::new().unwrap();
    let out = |name: &str| work.path().join(name);
    let merge = |name: &str, threads: &str, memory: &str| {
        let (seed, code) = (fixture("mistral/seed"), fixture("mistral/code"));
        let mut arguments: Vec<OsString> = vec!["merge".into(), "--model".into()];
        arguments.push(format!("{}:0.3", seed.display()).into());
        arguments.extend([
            "--model".into(),
            format!("{}:0.7", code.display()).into(),
            "--out".into(),
            out(name).into(),
        ]);
        arguments.extend(["--threads", threads, "--memory", memory].map(Into::into));
        run(arguments).ok();
    };
    merge("a", "1", "128MiB");
    merge("b", "3", "1MiB");
    assert_same_folder(&out("a"), &out("b"));
    for (name, threads, memory) in [("c", "1", "128MiB"), ("d", "4", "1MiB")] {
        bam!(
            "convert",
            fixture("gguf/llama-k.gguf"),
            out(name),
            "--threads",
            threads,
            "--memory",
            memory
        )
        .ok();
    }
    assert_same_folder(&out("c"), &out("d"));
}

// ---------------------------------------------------------------- a killed run

const HIDDEN: usize = 256;
const FFN: usize = 512;
const VOCAB: usize = 2048;
const LAYERS: usize = 4;

/// A llama checkpoint of 7 MB: large enough to be caught at work.
fn synthetic(folder: &Path, seed: u64) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": VOCAB,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "attention_bias": false, "mlp_bias": false,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut noise = Noise(seed);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let count: usize = shape.iter().product();
        // Four bf16 numbers a word; without the top exponent bit they are all finite.
        let bytes = (0..count / 4)
            .flat_map(|_| (noise.word() & 0xbfff_bfff_bfff_bfff).to_le_bytes())
            .collect();
        tensors.insert(
            name,
            Tensor {
                dtype: Dtype::BF16,
                shape: shape.to_vec(),
                bytes,
            },
        );
    };
    add("model.embed_tokens.weight".to_owned(), &[VOCAB, HIDDEN]);
    add("lm_head.weight".to_owned(), &[VOCAB, HIDDEN]);
    add("model.norm.weight".to_owned(), &[HIDDEN]);
    for layer in 0..LAYERS {
        let mut part =
            |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}.weight"), shape);
        part("input_layernorm", &[HIDDEN]);
        part("post_attention_layernorm", &[HIDDEN]);
        part("self_attn.q_proj", &[HIDDEN, HIDDEN]);
        part("self_attn.k_proj", &[HIDDEN / 2, HIDDEN]);
        part("self_attn.v_proj", &[HIDDEN / 2, HIDDEN]);
        part("self_attn.o_proj", &[HIDDEN, HIDDEN]);
        part("mlp.gate_proj", &[FFN, HIDDEN]);
        part("mlp.up_proj", &[FFN, HIDDEN]);
        part("mlp.down_proj", &[HIDDEN, FFN]);
    }
    write_file(&folder.join("model.safetensors"), &tensors);
    folder.to_path_buf()
}

/// Names of the shards that a partial folder records as whole.
fn recorded(partial: &Path) -> Vec<String> {
    let Ok(bytes) = std::fs::read(partial.join(".progress.json")) else {
        return Vec::new();
    };
    let progress: serde_json::Value =
        serde_json::from_slice(&bytes).expect("the record is replaced in one step");
    progress["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| shard["path"].as_str().unwrap().to_owned())
        .collect()
}

/// Starts the run and kills it as soon as a shard is whole; false where it was too fast.
fn killed(arguments: &[OsString], partial: &Path) -> bool {
    let mut child = Command::new(crate::common::binary())
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while recorded(partial).is_empty() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no shard after a minute"
        );
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn a_killed_run_is_resumed_from_its_whole_shards() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let (seed, code) = (synthetic(&path("seed"), 11), synthetic(&path("code"), 12));
    let flags = [
        "--method",
        "btx",
        "--max-shard-size",
        "400KB",
        "--threads",
        "2",
    ];
    let out = path("out");
    let caught = (0..5).any(|_| {
        let caught = killed(&upcycle(&seed, &code, &out, &flags), &path(".out.partial"));
        if !caught {
            std::fs::remove_dir_all(&out).unwrap();
        }
        caught
    });
    assert!(caught, "five runs ended before they could be killed");
    assert!(!out.exists(), "an interrupted run must not leave an output");
    let partial = path(".out.partial");
    crate::common::copy_folder(&partial, &path(".damaged.partial"));
    crate::common::copy_folder(&partial, &path(".other.partial"));
    crate::common::copy_folder(&partial, &path(".changed.partial"));

    let whole: BTreeMap<String, _> = recorded(&partial)
        .into_iter()
        .map(|name| (name.clone(), identity(&partial.join(name))))
        .collect();
    run(upcycle(&seed, &code, &out, &flags)).ok();
    for (name, before) in &whole {
        assert_eq!(
            identity(&out.join(name)),
            *before,
            "{name} was whole and must not be written again"
        );
    }
    let shards: Vec<String> = contents(&out)
        .into_keys()
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    assert!(
        shards.len() > whole.len(),
        "the kill came too late to mean anything"
    );
    assert!(!partial.exists());
    assert!(shards.iter().all(|name| !name.starts_with('.')));

    let straight = path("straight");
    run(upcycle(&seed, &code, &straight, &flags)).ok();
    assert_same_folder(&out, &straight);

    // A shard that was damaged after it was recorded is found out and written again.
    let damaged = path(".damaged.partial").join(whole.keys().next().unwrap());
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    run(upcycle(&seed, &code, &path("damaged"), &flags)).ok();
    assert_same_folder(&path("damaged"), &straight);
    std::fs::remove_dir_all(path("damaged")).unwrap();

    // What another plan has left is not taken for this one's.
    let other = [&flags[..], &["--rng-seed", "5"]].concat();
    run(upcycle(&seed, &code, &path("other"), &other)).ok();
    let (found, base) = (read_folder(&path("other")), read_folder(&straight));
    for (name, tensor) in &found {
        assert_eq!(*tensor == base[name], !name.contains("router"), "{name}");
    }
    assert_eq!(
        read_json(path("other").join("bam-manifest.json"))["settings"]["rng_seed"],
        5
    );
    std::fs::remove_dir_all(path("other")).unwrap();

    // Nor what the same plan has left of a source that has changed since.
    crate::common::edit_tensors(&seed, |tensors| {
        let first = tensors.get_mut("model.embed_tokens.weight").unwrap();
        first.bytes[..2].copy_from_slice(&[0x80, 0x3f]);
    });
    run(upcycle(&seed, &code, &path("changed"), &flags)).ok();
    let found = read_folder(&path("changed"));
    for (name, tensor) in &found {
        assert_eq!(
            *tensor == base[name],
            name != "model.embed_tokens.weight",
            "{name}"
        );
    }
}

#[test]
fn the_hash_of_a_source_is_known_until_it_changes() {
    let work = TempDir::new().unwrap();
    let mut config = read_json(fixture("llama/seed").join("config.json"));
    config["vocab_size"] = json!(20_000);
    std::fs::write(work.path().join("config.json"), config.to_string()).unwrap();
    let seed = work.path().join("seed");
    bam!("init", work.path().join("config.json"), "--out", seed).ok();
    let weights = seed.join("model.safetensors");
    let recorded = |name: &str, flags: &[&str]| {
        let out = work.path().join(name);
        let mut command = Command::new(crate::common::binary());
        command.arg("convert").arg(&seed).arg(&out).args(flags);
        command.env("XDG_CACHE_HOME", work.path().join("cache"));
        crate::common::finish(command).ok();
        let manifest = read_json(out.join("bam-manifest.json"));
        let files = manifest["sources"][0]["files"].as_array().unwrap().clone();
        let file = files
            .into_iter()
            .find(|file| file["path"] == "model.safetensors")
            .unwrap();
        file["sha256"].as_str().unwrap().to_owned()
    };
    let known = || {
        std::fs::read_dir(work.path().join("cache/bam-convert/hashes")).map_or(0, Iterator::count)
    };
    // A file that was just written may change again within the resolution of its time.
    let right = recorded("first", &[]);
    assert_eq!(
        (known(), right.as_str()),
        (
            0,
            crate::common::sha256(&std::fs::read(&weights).unwrap()).as_str()
        )
    );
    std::thread::sleep(Duration::from_millis(2200));
    assert_eq!(recorded("second", &[]), right);
    assert_eq!(known(), 1);
    // What is kept is what counts, as a wrong hash in its place shows.
    let kept = std::fs::read_dir(work.path().join("cache/bam-convert/hashes"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let wrong = "0".repeat(64);
    std::fs::write(
        &kept,
        std::fs::read_to_string(&kept)
            .unwrap()
            .replace(&right, &wrong),
    )
    .unwrap();
    assert_eq!(recorded("third", &[]), wrong);
    assert_eq!(recorded("fourth", &["--rehash"]), right);
    std::fs::write(
        &kept,
        std::fs::read_to_string(&kept)
            .unwrap()
            .replace(&right, &wrong),
    )
    .unwrap();
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, bytes).unwrap();
    assert_eq!(recorded("fifth", &[]), right);
}
