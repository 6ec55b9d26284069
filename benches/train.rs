//! How fast models train: forward and backward pass of a batch, layer by layer as the trainer does it, without the
//! optimiser.
//!
//!     cargo bench --bench train -- FOLDER... [--rounds N] [--batch 8] [--seq 256] [--transformers PYTHON]
//!
//! Rounds go over all folders in turn. With `--transformers`, `benches/train.py` does the same afterwards under that Python: torch
//! in float32, eager, with as many threads. On a machine that does other work too, compare processor time.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use bam_convert::model::{CausalLm, Forward, InputGradient, LoadOptions};
use candle_core::{Device, Tensor};
use serde_json::Value;

use common::{Times, processor};

fn main() {
    let (mut folders, mut rounds, mut batch, mut seq, mut python) = (Vec::new(), 5, 8, 256, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().unwrap().parse().unwrap();
        match argument.as_str() {
            "--rounds" => rounds = number(),
            "--batch" => batch = number(),
            "--seq" => seq = number(),
            "--transformers" => python = arguments.next(),
            "--bench" => {}
            _ => folders.push(PathBuf::from(argument)),
        }
    }
    let models: Vec<CausalLm> = folders
        .iter()
        .map(|folder| CausalLm::load(folder, &LoadOptions::train(Device::Cpu)).unwrap())
        .collect();
    let mut times: Vec<Times> = models.iter().map(|_| Times::default()).collect();
    models.iter().for_each(|model| step(model, batch, seq));
    for _ in 0..rounds {
        for (model, times) in models.iter().zip(&mut times) {
            let (start, before) = (Instant::now(), processor());
            step(model, batch, seq);
            times.wall.push(start.elapsed().as_secs_f64());
            times.processor.push(processor() - before);
        }
    }
    drop(models);
    let threads = rayon::current_num_threads();
    println!(
        "forward and backward of {batch} rows of {seq} tokens, mean of {rounds} rounds, {threads} threads"
    );
    let show = |what: &str, times: &[Times]| {
        println!("\n{what}");
        for (folder, times) in folders.iter().zip(times) {
            let speed = (batch * seq * rounds) as f64 / times.wall.iter().sum::<f64>();
            let name = folder
                .file_name()
                .unwrap_or(folder.as_os_str())
                .to_string_lossy();
            println!("  {name:14} {speed:7.0} tokens/s, {}", times.shown());
        }
    };
    show("ours, float32", &times);
    let Some(python) = python else { return };
    let mut command = Command::new(&python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/train.py"))
        .args(&folders);
    for (name, value) in [
        ("--threads", threads),
        ("--rounds", rounds),
        ("--batch", batch),
        ("--seq", seq),
    ] {
        command.args([name, &value.to_string()]);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let theirs: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let theirs: Vec<Times> = theirs.iter().map(Times::of_json).collect();
    show("transformers and torch, float32", &theirs);
    println!("  times ours, by the clock (by processor time):");
    for ((folder, ours), theirs) in folders.iter().zip(&times).zip(&theirs) {
        println!(
            "  {:14} {}",
            folder.file_name().unwrap_or_default().to_string_lossy(),
            theirs.over(ours)
        );
    }
}

/// Token ids, the same as in `train.py`.
fn ids(vocab: usize, batch: usize, seq: usize) -> Vec<u32> {
    (0..batch * seq)
        .map(|i| ((i / seq * 7919 + i % seq * 104_729 + 13) % vocab) as u32)
        .collect()
}

fn step(model: &CausalLm, batch: usize, seq: usize) {
    let ids = ids(model.architecture().vocab_size as usize, batch, seq);
    let tokens = Tensor::from_vec(ids.clone(), (batch, seq), &Device::Cpu).unwrap();
    let mut targets = ids[1..].to_vec();
    targets.push(0);
    let weights = vec![1.0 / ids.len() as f32; ids.len()];
    let mut gradients = model.gradients();
    let (mut x, pass) = model.begin(&tokens, None, &Forward::default()).unwrap();
    let mut records = Vec::new();
    for layer in 0..model.layers() {
        let run = model.layer_recorded(layer, &x, &pass, None).unwrap();
        x = run.output;
        records.push(run.record);
    }
    let (_, mut gradient) = model.loss(&x, &targets, &weights, &mut gradients).unwrap();
    for record in records.into_iter().rev() {
        gradient = model
            .layer_backward(record, &gradient, InputGradient::Needed, &mut gradients)
            .unwrap()
            .unwrap();
    }
    model
        .embed_backward(&pass, &gradient, &mut gradients)
        .unwrap();
}
