//! A BAM as a GGUF file: what llama.cpp's architecture `step35` computes from the file is what the mixture computes.
//!
//! `Step35` is that architecture in float64, after llama.cpp's `step35.cpp`; `tests/live/llamacpp_bam.py` runs llama.cpp itself.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use bam_convert::checkpoint::{Checkpoint, Gguf};
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::json;

use crate::common::{bam, copy_folder, edit_json, fixture, read_file};

type Rows = Vec<Vec<f64>>;

const TOKENS: [usize; 12] = [1, 72, 105, 300, 2, 17, 383, 44, 44, 260, 9, 131];

struct Step35 {
    gguf: Gguf,
    /// As candle reads it.
    metadata: HashMap<String, Value>,
    checkpoint: Checkpoint,
}

impl Step35 {
    fn open(path: &Path) -> Self {
        Self {
            gguf: Gguf::open(path).unwrap(),
            metadata: Content::read(&mut File::open(path).unwrap())
                .unwrap()
                .metadata,
            checkpoint: Checkpoint::open(path).unwrap(),
        }
    }

    fn number(&self, key: &str) -> u64 {
        let key = format!("step35.{key}");
        self.gguf.unsigned(&key).unwrap().unwrap()
    }

    fn float(&self, key: &str) -> f64 {
        self.gguf.float(&format!("step35.{key}")).unwrap().unwrap()
    }

    /// A number of a layer: the file has one for all, or a list.
    fn of_layer(&self, key: &str, layer: usize) -> usize {
        let name = format!("step35.{key}");
        match self.gguf.integers(&name) {
            Ok(Some(list)) => list[layer] as usize,
            _ => self.number(key) as usize,
        }
    }

    fn slides(&self, layer: usize) -> bool {
        match &self.metadata["step35.attention.sliding_window_pattern"] {
            Value::Array(flags) => flags[layer].to_bool().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn tensor(&self, name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
        let entry = self.checkpoint.tensors.get(name)?;
        let mut values = vec![0.0; entry.elements() as usize];
        self.checkpoint
            .read_values(entry, 0, &mut values, &mut Vec::new())
            .unwrap();
        let shape = entry.shape.iter().map(|extent| *extent as usize);
        Some((shape.collect(), values))
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (_, values) = self.tensor(name).unwrap();
        matmul(&values, x)
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let eps = self.float("attention.layer_norm_rms_epsilon");
        let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let (_, weight) = self.tensor(name).unwrap();
        let scaled = x.iter().zip(weight);
        scaled.map(|(x, w)| x / (square + eps).sqrt() * w).collect()
    }

    /// Logits of `TOKENS`; `swap` exchanges the gates of the first and the last head.
    fn logits(&self, swap: bool) -> Rows {
        let (shape, table) = self.tensor("token_embd.weight").unwrap();
        let d = shape[1];
        let embedded = TOKENS.iter().map(|id| table[id * d..][..d].to_vec());
        let mut x: Rows = embedded.collect();
        for layer in 0..self.number("block_count") as usize {
            self.attention(layer, &mut x, swap);
            for x in &mut x {
                let name = |part: &str| format!("blk.{layer}.{part}.weight");
                let h = self.norm(&name("ffn_norm"), x);
                add(x, &self.feed_forward(layer, &h));
            }
        }
        let normed = x.iter().map(|x| self.norm("output_norm.weight", x));
        normed.map(|x| self.linear("output.weight", &x)).collect()
    }

    fn attention(&self, layer: usize, x: &mut Rows, swap: bool) {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let (heads, kv_heads) = (
            self.of_layer("attention.head_count", layer),
            self.of_layer("attention.head_count_kv", layer),
        );
        let width = self.number("attention.key_length") as usize;
        let h: Rows = x.iter().map(|x| self.norm(&name("attn_norm"), x)).collect();
        let by_head = |part: &str| -> Vec<Rows> {
            let project = |(t, h): (usize, &Vec<f64>)| {
                let all = self.linear(&name(part), h);
                let heads = all.chunks(width).map(|head| {
                    let norm = name(&format!("{part}_norm"));
                    let head = match self.tensor(&norm) {
                        Some(_) => self.norm(&norm, head),
                        None => head.to_vec(),
                    };
                    match part {
                        "attn_v" => head,
                        _ => self.rotated(layer, head, t),
                    }
                });
                heads.collect()
            };
            h.iter().enumerate().map(project).collect()
        };
        let (q, k, v) = (by_head("attn_q"), by_head("attn_k"), by_head("attn_v"));
        assert_eq!(
            (q[0].len(), k[0].len(), v[0].len()),
            (heads, kv_heads, kv_heads)
        );
        let window = self.number("attention.sliding_window") as usize;
        let window = if self.slides(layer) {
            window
        } else {
            usize::MAX
        };
        for t in 0..x.len() {
            let mut gates = match self.tensor(&name("attn_gate")) {
                None => vec![1.0; heads],
                Some((_, rows)) => matmul(&rows, &h[t]).into_iter().map(sigmoid).collect(),
            };
            if swap {
                gates.swap(0, heads - 1);
            }
            let mut joined = Vec::new();
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let seen = (0..=t).filter(|s| t - s < window);
                let seen: Vec<usize> = seen.collect();
                let score = |s: &usize| dot(&q[t][head], &k[*s][kv]) / (width as f64).sqrt();
                let weights = softmax(&seen.iter().map(score).collect::<Vec<_>>());
                let value = |i: usize| -> f64 {
                    let seen = seen.iter().zip(&weights);
                    seen.map(|(s, weight)| weight * v[*s][kv][i]).sum()
                };
                joined.extend((0..width).map(|i| gates[head] * value(i)));
            }
            add(&mut x[t], &self.linear(&name("attn_output"), &joined));
        }
    }

    /// Halves of a head, rotated; frequency factors count in layers without a window.
    fn rotated(&self, layer: usize, x: Vec<f64>, position: usize) -> Vec<f64> {
        let (dims, base) = if self.slides(layer) {
            (
                self.number("rope.dimension_count_swa"),
                self.float("rope.freq_base_swa"),
            )
        } else {
            (
                self.number("rope.dimension_count") / 2,
                self.float("rope.freq_base"),
            )
        };
        let factors = self
            .tensor("rope_freqs.weight")
            .filter(|_| !self.slides(layer));
        let half = dims as usize / 2;
        let mut y = x.clone();
        for i in 0..half {
            let factor = factors.as_ref().map_or(1.0, |(_, factors)| factors[i]);
            let frequency = base.powf(-(i as f64) / half as f64) / factor;
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            y[i] = x[i] * cos - x[i + half] * sin;
            y[i + half] = x[i + half] * cos + x[i] * sin;
        }
        y
    }

    fn feed_forward(&self, layer: usize, h: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let Some((shape, router)) = self.tensor(&name("ffn_gate_inp")) else {
            return self.mlp(layer, "", h);
        };
        assert_eq!(self.number("expert_gating_func"), 1);
        let gates = softmax(&matmul(&router, h));
        let bias = self.tensor(&format!("blk.{layer}.exp_probs_b.bias"));
        let score = |e: usize| gates[e] + bias.as_ref().map_or(0.0, |(_, bias)| bias[e]);
        let mut order: Vec<usize> = (0..shape[0]).collect();
        order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
        order.truncate(self.number("expert_used_count") as usize);
        let norm = self.gguf.boolean("step35.expert_weights_norm").unwrap();
        let sum: f64 = order.iter().map(|e| gates[*e]).sum();
        let sum = if norm == Some(true) { sum } else { 1.0 };
        let mut y = self.mlp(layer, "_shexp", h);
        for expert in order {
            let part = |part: &str| {
                let (shape, values) = self.tensor(&name(&format!("{part}_exps"))).unwrap();
                let one = shape[1] * shape[2];
                values[expert * one..][..one].to_vec()
            };
            let inner = matmul(&part("ffn_gate"), h)
                .into_iter()
                .zip(matmul(&part("ffn_up"), h));
            let inner: Vec<f64> = inner.map(|(gate, up)| gate * sigmoid(gate) * up).collect();
            let out = matmul(&part("ffn_down"), &inner);
            let weighted: Vec<f64> = out.iter().map(|out| gates[expert] / sum * out).collect();
            add(&mut y, &weighted);
        }
        y
    }

    fn mlp(&self, layer: usize, end: &str, h: &[f64]) -> Vec<f64> {
        let linear =
            |part: &str, x: &[f64]| self.linear(&format!("blk.{layer}.{part}{end}.weight"), x);
        let inner = linear("ffn_gate", h).into_iter().zip(linear("ffn_up", h));
        let inner: Vec<f64> = inner.map(|(gate, up)| gate * sigmoid(gate) * up).collect();
        linear("ffn_down", &inner)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn matmul(weight: &[f64], x: &[f64]) -> Vec<f64> {
    weight.chunks(x.len()).map(|row| dot(row, x)).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = x.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// The mixture of a family's fixtures in `folder`: the seed, code and, with three experts, law. Tokens differ in their gates.
fn upcycled(family: &str, experts: usize, options: &str, folder: &Path) -> PathBuf {
    let out = folder.join("bam");
    let source = fixture(family);
    let expert = |name: &str| format!("{name}={}", source.join(name).display());
    let mut words: Vec<String> = ["upcycle", "--quiet", "--router", "normal:1", "--seed"]
        .map(str::to_owned)
        .to_vec();
    words.push(source.join("seed").display().to_string());
    for name in &["code", "law"][..experts - 1] {
        words.extend(["--expert".to_owned(), expert(name)]);
    }
    words.extend(options.split(' ').map(str::to_owned));
    words.extend(["--out".to_owned(), out.display().to_string()]);
    crate::common::run(words.into_iter().map(Into::into)).ok();
    out
}

/// The logits of the folder, as this program computes them.
fn logits(folder: &Path, work: &Path) -> Rows {
    let (tokens, dump) = (work.join("tokens.json"), work.join("logits.safetensors"));
    std::fs::write(&tokens, json!(TOKENS).to_string()).unwrap();
    bam!("logits", folder, "--tokens", tokens, "--dump", dump).ok();
    let logits = &read_file(&dump)["logits"];
    let values = logits.values();
    values
        .chunks(logits.shape[1])
        .map(<[f64]>::to_vec)
        .collect()
}

fn difference(a: &Rows, b: &Rows) -> f64 {
    assert_eq!((a.len(), a[0].len()), (b.len(), b[0].len()));
    let each = a.iter().flatten().zip(b.iter().flatten());
    each.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Writes the mixture as a file, and compares what both compute.
fn check(
    family: &str,
    experts: usize,
    options: &str,
    change: impl FnOnce(&mut serde_json::Value),
) -> Step35 {
    let work = tempfile::tempdir().unwrap();
    let folder = upcycled(family, experts, options, work.path());
    edit_json(&folder.join("config.json"), change);
    let file = written(&folder, work.path());
    if file.tensor("blk.0.attn_gate.weight").is_some() {
        let swapped = difference(&file.logits(true), &file.logits(false));
        assert!(swapped > 1e-2, "{family}, {options}: {swapped}");
    }
    file
}

/// Writes the mixture as a file, which must compute what the mixture computes.
fn written(folder: &Path, work: &Path) -> Step35 {
    let out = work.join("out.gguf");
    bam!("convert", folder, out, "--dtype", "f32").ok();
    let file = Step35::open(&out);
    let off = difference(&file.logits(false), &logits(folder, work));
    assert!(off < 2e-4, "{}: {off}", folder.display());
    file
}

fn without_scaling(config: &mut serde_json::Value) {
    config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 500_000.0});
}

#[test]
fn softmax_gates_of_two_experts_are_sigmoids_of_a_difference() {
    // With Llama 3's scaling, whose factors count in layers without a window: a layer of zeros has it.
    let file = check("llama", 2, "--method bam", |_| {});
    assert_eq!(file.number("block_count"), 3);
    assert_eq!(file.of_layer("attention.head_count", 2), 1);
    let file = check(
        "llama",
        2,
        "--method bam --kv shared --top-k 1",
        without_scaling,
    );
    assert_eq!(file.number("block_count"), 2);
    assert_eq!(file.of_layer("attention.head_count_kv", 0), 2);
}

#[test]
fn sigmoid_gates_of_any_number_of_experts_fit() {
    let sigmoid = "--method bam --attention-gate sigmoid";
    check("llama", 3, sigmoid, without_scaling);
    let bias = format!("{sigmoid} --kv shared --router-bias choice --shared-expert seed --top-k 1");
    check("llama", 3, &bias, |_| {});
}

#[test]
fn one_shared_key_head_meets_the_queries_of_all_experts() {
    let work = tempfile::tempdir().unwrap();
    let start = copy_folder(&fixture("llama/seed"), &work.path().join("start"));
    edit_json(&start.join("config.json"), |config| {
        config["num_key_value_heads"] = json!(1);
        config["initializer_range"] = json!(0.2);
        without_scaling(config);
    });
    let drawn = |name: &str, seed: &str| {
        let out = work.path().join(name);
        bam!("init", start, "--out", out, "--rng-seed", seed).ok();
        out
    };
    let (seed, code) = (drawn("seed", "0"), drawn("code", "1"));
    let expert = format!("code={}", code.display());
    let folder = work.path().join("bam");
    bam!(
        "upcycle", "--method", "bam", "--kv", "shared", "--seed", seed, "--expert", expert,
        "--out", folder
    )
    .ok();
    let file = written(&folder, work.path());
    assert_eq!(file.of_layer("attention.head_count_kv", 0), 1);
}

#[test]
fn a_window_of_some_layers_and_experts_of_some_layers_fit() {
    let windows = |config: &mut serde_json::Value| {
        config["sliding_window"] = json!(5);
        config["layer_types"] = json!(["sliding_attention", "full_attention"]);
    };
    let options = "--method bam --attention-gate sigmoid --kv shared --layers 1";
    let file = check("mistral", 3, options, windows);
    assert!(file.slides(0) && !file.slides(1));
    assert!(file.tensor("blk.0.ffn_gate_inp.weight").is_none());
}

#[test]
fn norms_of_queries_and_keys_fit_where_all_experts_have_the_same() {
    check("qwen3", 3, "--method btx", |_| {});
    // The norms follow the rows of queries and keys.
    check("qwen3", 3, "--method btx", |config| {
        config["rope_interleaved"] = json!(true);
    });
    let work = tempfile::tempdir().unwrap();
    let folder = upcycled("qwen3", 2, "--method bam", work.path());
    let out = work.path().join("out.gguf");
    bam!("convert", folder, out).refused(
        2,
        &[
            "self_attn.attention_experts.1.q_norm.weight`: differs from `",
            "--freeze q_norm,k_norm",
        ],
    );
    assert!(!out.exists());
}

#[test]
fn a_factor_that_rounds_is_said() {
    let work = tempfile::tempdir().unwrap();
    let options = "--method bam --attention-gate sigmoid";
    let folder = upcycled("llama", 3, options, work.path());
    let run = bam!("convert", folder, work.path().join("out.gguf")).ok();
    assert!(run.stderr.contains("rounded"), "{}", run.stderr);
    let run = bam!(
        "convert",
        folder,
        work.path().join("exact.gguf"),
        "--dtype",
        "f32"
    )
    .ok();
    assert!(!run.stderr.contains("rounded"), "{}", run.stderr);
}

#[test]
fn another_rotary_scaling_is_a_reason_and_cards_do_not_name_llama_cpp() {
    let work = tempfile::tempdir().unwrap();
    let options = "--method bam --attention-gate sigmoid";
    let folder = upcycled("llama", 3, options, work.path());
    let out = work.path().join("out.gguf");
    for (scaling, reason) in [
        (
            json!({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500_000.0}),
            "not by dynamic (rope_type)",
        ),
        (
            json!({"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "rope_theta": 500_000.0}),
            "a beta_fast of 32, the model's 16",
        ),
    ] {
        edit_json(&folder.join("config.json"), |config| {
            config["rope_parameters"] = scaling;
            config["sliding_window"] = json!(5);
        });
        let window = "its layers with a window do not scale";
        bam!("convert", folder, out).refused(2, &["`step35` cannot hold", window, reason]);
        assert!(!out.exists());
    }
    edit_json(&folder.join("config.json"), |config| {
        config["sliding_window"] = json!(null);
    });
    let fewer = work.path().join("fewer");
    bam!("expert", "remove", folder, "law", "--out", fewer).ok();
    let card = std::fs::read_to_string(fewer.join("README.md")).unwrap();
    assert!(!card.contains("llama.cpp"), "{card}");
}

#[test]
fn what_the_architecture_lacks_is_named() {
    for (family, experts, options, reasons) in [
        (
            "llama",
            3,
            "--method bam",
            &[
                "a softmax over 3 attention experts",
                "--attention-gate sigmoid",
            ][..],
        ),
        (
            "llama",
            2,
            "--method bam --attention-top-k 1",
            &["--attention-top-k soft"],
        ),
        (
            "llama",
            2,
            "--method bam --adapters",
            &["it has no adapters"],
        ),
        (
            "llama",
            2,
            "--method bam --router-bias logits",
            &["no biases of logits"],
        ),
        (
            "llama",
            2,
            "--method bam --shared-expert seed:gated",
            &["shared expert by a gate"],
        ),
        ("qwen2", 2, "--method bam", &["its attention has no biases"]),
        (
            "cohere",
            2,
            "--method bam",
            &[
                "sequential, the model's parallel",
                "root mean squares",
                "does not scale logits",
            ],
        ),
    ] {
        let work = tempfile::tempdir().unwrap();
        let folder = upcycled(family, experts, options, work.path());
        let out = work.path().join("out.gguf");
        let all: Vec<&str> = ["`step35` cannot hold"]
            .into_iter()
            .chain(reasons.iter().copied())
            .collect();
        bam!("convert", folder, out).refused(2, &all);
        assert!(!out.exists());
    }
}
