//! How fast a model trains: forward and backward pass of one batch, layer by layer as the trainer does it.
//!
//!     cargo bench --bench train -- FOLDER... [--rounds N] [--batch 8] [--seq 256]
//!
//! `benches/train.py` measures the same in transformers and torch.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::path::PathBuf;
use std::time::Instant;

use bam_convert::model::{CausalLm, Forward, LoadOptions};
use candle_core::{Device, Tensor, Var};

fn main() {
    let (mut folders, mut rounds, mut batch, mut seq) = (Vec::new(), 5, 8, 256);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().unwrap().parse().unwrap();
        match argument.as_str() {
            "--rounds" => rounds = number(),
            "--batch" => batch = number(),
            "--seq" => seq = number(),
            "--bench" => {}
            _ => folders.push(PathBuf::from(argument)),
        }
    }
    for folder in folders {
        let model = CausalLm::load(&folder, &LoadOptions::train(Device::Cpu)).unwrap();
        let vocab = model.architecture().vocab_size as usize;
        let ids: Vec<u32> =
            (0..batch * seq).map(|i| ((i / seq * 7919 + i % seq * 104_729 + 13) % vocab) as u32).collect();
        let mut seconds: Vec<(f64, f64)> = (0..=rounds)
            .map(|_| {
                let (start, used) = (Instant::now(), processor());
                step(&model, &ids, batch, seq);
                (start.elapsed().as_secs_f64(), processor() - used)
            })
            .collect();
        // The first round warms up.
        seconds.remove(0);
        seconds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let speed = |seconds: f64| (batch * seq) as f64 / seconds;
        let used = seconds.iter().map(|(_, used)| used).sum::<f64>() / rounds as f64;
        println!(
            "{}: {:.0} tokens/s ({:.0} to {:.0}), {:.0} per processor second",
            folder.display(),
            speed(seconds[rounds / 2].0),
            speed(seconds[rounds - 1].0),
            speed(seconds[0].0),
            speed(used)
        );
    }
}

fn step(model: &CausalLm, ids: &[u32], batch: usize, seq: usize) {
    let tokens = Tensor::from_vec(ids.to_vec(), (batch, seq), &Device::Cpu).unwrap();
    let mut targets = ids[1..].to_vec();
    targets.push(0);
    let weights = vec![1.0 / ids.len() as f32; ids.len()];
    let (embedded, pass) = model.begin(&tokens, None, &Forward::default()).unwrap();
    let mut x = embedded.detach();
    let mut layers = Vec::new();
    for layer in 0..model.layers() {
        let input = Var::from_tensor(&x).unwrap();
        let output = model.layer(layer, &input, &pass).unwrap().0;
        x = output.detach();
        layers.push((input, output));
    }
    let last = Var::from_tensor(&x).unwrap();
    let hidden = model.final_norm(&last).unwrap().flatten(0, 1).unwrap();
    let (_, loss) = model.next_token_loss(&hidden, &targets, &weights).unwrap().unwrap();
    let mut gradient = loss.backward().unwrap().remove(&last).unwrap().detach();
    for (input, output) in layers.into_iter().rev() {
        let seed = (output * &gradient).unwrap().sum_all().unwrap();
        gradient = seed.backward().unwrap().remove(&input).unwrap().detach();
    }
    (embedded * gradient).unwrap().sum_all().unwrap().backward().unwrap();
}

/// Seconds of processor time that this process has used.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
