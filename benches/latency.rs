//! The paper's latency protocol (section 7.3): 16 tokens after a prompt of 256, the mean of 10 runs.
//!
//!     cargo bench --bench latency -- FOLDER... [--rounds N] [--transformers PYTHON]
//!
//! Give a dense model, and a BTX and BAMs made of it. Rounds go over all folders in turn, so that a disturbance meets every
//! model. Weights stay in bfloat16 and are widened in registers. With `--transformers`, `benches/latency.py` runs the same
//! afterwards under that Python, with as many threads (`RAYON_NUM_THREADS`), in float32 and in bfloat16. On a machine that
//! does other work too, compare processor time.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use bam_convert::family::AttentionKv;
use bam_convert::model::{CausalLm, Forward, KvCache, LoadOptions};
use candle_core::{D, Device, Tensor};
use serde_json::Value;

use common::{Times, processor};

const PROMPT: usize = 256;
const GENERATED: usize = 16;

fn main() {
    let (mut folders, mut rounds, mut python) = (Vec::new(), 10, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--transformers" => python = arguments.next(),
            "--bench" => {}
            _ => folders.push(PathBuf::from(argument)),
        }
    }
    let models: Vec<CausalLm> = folders
        .iter()
        .map(|folder| CausalLm::load(folder, &LoadOptions::default()).unwrap())
        .collect();
    let mut times: Vec<Times> = models.iter().map(|_| Times::default()).collect();
    models.iter().for_each(|model| drop(generate(model)));
    for _ in 0..rounds {
        for (model, times) in models.iter().zip(&mut times) {
            let (start, before) = (Instant::now(), processor());
            generate(model);
            times.wall.push(start.elapsed().as_secs_f64());
            times.processor.push(processor() - before);
        }
    }
    let kinds: Vec<(&str, Option<f64>)> = models.iter().map(kind).collect();
    drop(models);
    let threads = rayon::current_num_threads();
    println!(
        "{GENERATED} tokens after {PROMPT}, mean of {rounds} rounds (median, least to most), {threads} threads"
    );
    let base = |times: &[Times]| {
        kinds
            .iter()
            .position(|(kind, _)| *kind == "BTX")
            .map_or(times.len(), |btx| btx)
    };
    let show = |what: &str, times: &[Times]| {
        println!("\n{what}");
        for ((folder, (kind, paper)), own) in folders.iter().zip(&kinds).zip(times) {
            let name = folder
                .file_name()
                .unwrap_or(folder.as_os_str())
                .to_string_lossy();
            print!("  {name:14} {kind:14} {}", own.shown());
            if let Some(btx) = times.get(base(times)) {
                print!(", {} of BTX", own.over(btx));
            }
            println!(
                "{}",
                paper.map_or(String::new(), |paper| format!(
                    ", the paper's {:.2}",
                    paper / PAPER_BTX
                ))
            );
        }
    };
    show("ours, bfloat16 weights", &times);
    let Some(python) = python else { return };
    for dtype in ["float32", "bfloat16"] {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/latency.py");
        let mut command = Command::new(&python);
        command.arg(script).args([
            "--dtype",
            dtype,
            "--threads",
            &threads.to_string(),
            "--rounds",
            &rounds.to_string(),
        ]);
        command
            .args([
                "--prompt",
                &PROMPT.to_string(),
                "--generated",
                &GENERATED.to_string(),
            ])
            .args(&folders);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let theirs: Vec<Times> = serde_json::from_slice::<Vec<Value>>(&output.stdout)
            .unwrap()
            .iter()
            .map(Times::of_json)
            .collect();
        show(&format!("transformers, {dtype}"), &theirs);
        println!("  times ours, by the clock (by processor time):");
        for ((folder, ours), theirs) in folders.iter().zip(&times).zip(&theirs) {
            println!(
                "  {:14} {}",
                folder.file_name().unwrap_or_default().to_string_lossy(),
                theirs.over(ours)
            );
        }
    }
}

/// Seconds of a BTX in the paper, on other hardware: only ratios to it compare.
const PAPER_BTX: f64 = 4.81;

/// What a model is, and its seconds in the paper.
fn kind(model: &CausalLm) -> (&'static str, Option<f64>) {
    match model
        .architecture()
        .mixture
        .as_ref()
        .map(|mixture| mixture.attention_kv)
    {
        None => ("dense", None),
        Some(AttentionKv::Merged) => ("BTX", Some(PAPER_BTX)),
        Some(AttentionKv::Expert) => ("BAM, expert KV", Some(6.17)),
        Some(AttentionKv::Shared) => ("BAM, shared KV", Some(5.96)),
    }
}

/// Reads the prompt and takes the most likely token 16 times; `latency.py` uses the same ids.
fn generate(model: &CausalLm) -> Vec<u32> {
    let vocab = model.architecture().vocab_size;
    let mut cache = KvCache::new();
    let mut next: Vec<u32> = (0..PROMPT as u64)
        .map(|i| ((i * 7919 + 13) % vocab) as u32)
        .collect();
    let options = Forward {
        last_only: true,
        ..Forward::default()
    };
    (0..GENERATED)
        .map(|_| {
            let tokens = Tensor::new(next.as_slice(), &Device::Cpu)
                .unwrap()
                .unsqueeze(0)
                .unwrap();
            let logits = model
                .forward(&tokens, Some(&mut cache), &options)
                .unwrap()
                .logits;
            let token = logits
                .argmax(D::Minus1)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<u32>()
                .unwrap()[0];
            next = vec![token];
            token
        })
        .collect()
}
