//! How fast a checkpoint answers: loading, prefill of 512 tokens, decoding, and the paper's latency protocol (section 7.3:
//! 16 tokens after 256).
//!
//!     cargo bench --bench model -- FOLDER... [--rounds N] [--widened]
//!
//! Wall-clock speed is the median (slowest to fastest round). On a machine that does other work too, look at the speed
//! per second of processor time, with `RAYON_NUM_THREADS=1`.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Instant;

use bam_convert::model::{CausalLm, Forward, KvCache, LoadOptions, Weights};
use candle_core::{D, Device, Tensor};

use common::processor;

const PREFILL: usize = 512;
const DECODE: usize = 64;

fn main() {
    let (mut folders, mut rounds, mut weights) = (Vec::new(), 5, Weights::Stored);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--widened" => weights = Weights::Widened,
            "--bench" => {}
            _ => folders.push(PathBuf::from(argument)),
        }
    }
    for folder in folders {
        measure(&folder, rounds, weights);
    }
}

fn ids(count: usize, vocab: u64) -> Vec<u32> {
    (0..count as u64)
        .map(|i| ((i * 7919 + 13) % vocab) as u32)
        .collect()
}

fn step(model: &CausalLm, tokens: &[u32], cache: &mut KvCache, last_only: bool) -> u32 {
    let tokens = Tensor::new(tokens, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let options = Forward {
        last_only,
        ..Forward::default()
    };
    let logits = model
        .forward(&tokens, Some(cache), &options)
        .unwrap()
        .logits;
    let last = logits.narrow(1, logits.dim(1).unwrap() - 1, 1).unwrap();
    last.argmax(D::Minus1)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<u32>()
        .unwrap()[0]
}

/// Median and range of the seconds of several rounds, and the mean of their processor time.
fn rounds(count: usize, mut round: impl FnMut() -> f64) -> [f64; 4] {
    let before = processor();
    let mut seconds: Vec<f64> = (0..count).map(|_| round()).collect();
    seconds.sort_by(f64::total_cmp);
    [
        seconds[count / 2],
        seconds[0],
        seconds[count - 1],
        (processor() - before) / count as f64,
    ]
}

fn measure(folder: &Path, count: usize, weights: Weights) {
    let start = Instant::now();
    let options = LoadOptions {
        weights,
        ..LoadOptions::default()
    };
    let model = CausalLm::load(folder, &options).unwrap();
    let loaded = start.elapsed().as_secs_f64();
    let vocab = model.architecture().vocab_size;
    step(&model, &ids(8, vocab), &mut KvCache::new(), true);
    println!(
        "{}: loaded in {loaded:.3} s, first token of 8 after {:.3} s",
        folder.display(),
        start.elapsed().as_secs_f64()
    );
    let show = |name: &str, tokens: usize, [median, fast, slow, used]: [f64; 4]| {
        let speed = |seconds: f64| tokens as f64 / seconds;
        println!(
            "  {name:26} {:7.1} tokens/s ({:.1} to {:.1}), {:.1} per processor second",
            speed(median),
            speed(slow),
            speed(fast),
            speed(used)
        );
    };
    let prompt = ids(PREFILL, vocab);
    for (name, last_only) in [
        ("prefill 512, all logits", false),
        ("prefill 512, last logits", true),
    ] {
        let result = rounds(count, || {
            let start = Instant::now();
            step(&model, &prompt, &mut KvCache::new(), last_only);
            start.elapsed().as_secs_f64()
        });
        show(name, PREFILL, result);
    }
    for (name, context, decoded) in [
        ("decode 64 after 32", 32, DECODE),
        ("decode 64 after 512", 512, DECODE),
        ("decode 16 after 256", 256, 16),
    ] {
        let mut cache = KvCache::new();
        let first = step(&model, &ids(context, vocab), &mut cache, true);
        let result = rounds(count, || {
            cache.truncate(context);
            let start = Instant::now();
            (0..decoded).fold(first, |token, _| step(&model, &[token], &mut cache, true));
            start.elapsed().as_secs_f64()
        });
        show(name, decoded, result);
    }
}
