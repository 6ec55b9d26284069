//! Small checkpoints for the tests of this room, made with the real planner and writer.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Diff, ValidateOptions, ValidationReport, diff, validate};
use crate::checkpoint::{Dtype, dtype, header};
use crate::family::{RoutingPreset, RoutingRequest};
use crate::surgery::execute::{OutputFile, Target, execute};
use crate::surgery::methods::{Method, NetworkRule};
use crate::surgery::router::RouterInit;
use crate::surgery::upcycle::{self, Expert, UpcycleSettings};
use crate::surgery::{Model, Plan, init};

/// A folder that is gone after the test.
pub struct Samples(pub tempfile::TempDir);

impl Samples {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A dense model of two layers in bf16, its draws keyed by `seed`.
    pub fn dense(&self, name: &str, seed: u64) -> PathBuf {
        let config = self.path("template");
        std::fs::create_dir_all(&config).unwrap();
        let json = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 1,
            "eos_token_id": [2, 3],
        });
        std::fs::write(config.join("config.json"), json.to_string()).unwrap();
        let tokens: serde_json::Map<String, serde_json::Value> =
            (0..15).map(|id| (format!("t{id}"), json!(id))).collect();
        let tokenizer = json!({"model": {"type": "BPE", "vocab": tokens, "merges": []}, "added_tokens": [{"id": 15, "content": "x"}]});
        std::fs::write(config.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let (plan, _, files) = init::plan(&config, Some(Dtype::BF16), seed).unwrap();
        self.write(name, &plan, &files, 5_000_000_000)
    }

    pub fn write(
        &self,
        name: &str,
        plan: &Plan,
        files: &[OutputFile],
        max_shard_size: u64,
    ) -> PathBuf {
        let folder = self.path(name);
        let target = Target {
            max_shard_size,
            rehash: true,
            ..Target::new(&folder)
        };
        execute(plan, files, &target).unwrap();
        folder
    }

    /// The mixture of `seed`, two other models and the router `router`.
    pub fn mixture(
        &self,
        name: &str,
        seed: &Path,
        experts: &[(&str, &Path)],
        router: RouterInit,
    ) -> PathBuf {
        let experts = experts.iter().map(|(name, path)| Expert {
            name: (*name).to_owned(),
            model: Some(Model::open(name, path).unwrap()),
        });
        let rule = std::sync::Arc::new(NetworkRule::Whole);
        let settings = UpcycleSettings {
            routing: RoutingRequest {
                preset: Some(RoutingPreset::Paper),
                ..RoutingRequest::default()
            },
            attention_router: router.clone(),
            router,
            ..UpcycleSettings::new(Method::BAM, rule)
        };
        let made = upcycle::plan(
            Model::open("seed", seed).unwrap(),
            experts.collect(),
            &settings,
        )
        .unwrap();
        self.write(name, &made.plan, &made.files, 2_000)
    }

    /// One safetensors file of these tensors.
    pub fn file(&self, name: &str, tensors: &[(&str, Dtype, &[f64])]) -> PathBuf {
        let path = self.path(name);
        let shapes: Vec<Vec<u64>> = tensors
            .iter()
            .map(|(_, _, values)| vec![1, values.len() as u64])
            .collect();
        let headers = tensors
            .iter()
            .zip(&shapes)
            .map(|((name, dtype, _), shape)| (*name, *dtype, &shape[..]));
        let mut bytes = header::write(headers);
        for (_, stored, values) in tensors {
            let mut encoded = vec![0; values.len() * stored.bitsize() / 8];
            if !dtype::encode(*stored, values, &mut encoded) {
                assert_eq!(*stored, Dtype::I32);
                encoded = values
                    .iter()
                    .flat_map(|value| (*value as i32).to_le_bytes())
                    .collect();
            }
            bytes.extend(encoded);
        }
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// Overwrites bytes of one tensor of a single-file checkpoint.
pub fn overwrite(folder: &Path, tensor: &str, start: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let checkpoint = crate::checkpoint::Checkpoint::open(folder).unwrap();
    let entry = checkpoint.tensor(tensor).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(checkpoint.files[entry.file].path())
        .unwrap();
    file.write_all_at(bytes, entry.offset + start).unwrap();
}

/// Rewrites one JSON file of a folder.
pub fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

pub fn validated(path: &Path, against: Option<&[PathBuf]>) -> ValidationReport {
    validated_with(path, against, 2, 64 << 20)
}

pub fn validated_with(
    path: &Path,
    against: Option<&[PathBuf]>,
    threads: usize,
    memory: u64,
) -> ValidationReport {
    let done = std::sync::atomic::AtomicU64::new(0);
    let progress = |bytes| {
        done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    };
    let against = against.map(|given| given.iter().cloned().map(Some).collect::<Vec<_>>());
    let against = against.as_deref();
    let options = ValidateOptions {
        against,
        threads,
        memory,
        progress: &progress,
    };
    let report = validate::validate(path, &options).unwrap();
    assert!(
        done.load(std::sync::atomic::Ordering::Relaxed) <= validate::work_length(path, &options),
        "progress passes its total"
    );
    report
}

pub fn compared(a: &Path, b: &Path) -> Diff {
    let done = std::sync::atomic::AtomicU64::new(0);
    let progress = |bytes| {
        done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    };
    let made = diff::diff(
        a,
        b,
        &diff::DiffOptions {
            threads: 2,
            memory: 64 << 20,
            progress: &progress,
        },
    )
    .unwrap();
    assert_eq!(
        done.into_inner(),
        diff::work_length(a, b),
        "progress ends at its total"
    );
    made
}
