//! Training with the kernels for the CPU against the reference in float64: losses and every gradient.

use std::path::Path;

use bam_convert::model::{CausalLm, Forward, LoadOptions, Trainable};
use candle_core::{D, Device, Tensor};

use super::{FAMILIES, Gradients, Kind, fixture, in_f64, loss_and_gradients};

const SEQ: usize = 70;

/// Two rows, longer than the queries that are handled together.
fn tokens() -> Vec<Vec<u32>> {
    (0..2)
        .map(|row| {
            (0..=SEQ as u32)
                .map(|i| (i * 97 + row * 31 + 13) % 384)
                .collect()
        })
        .collect()
}

/// Three documents in the first row, one in the second.
fn documents() -> Vec<Vec<u32>> {
    vec![
        (0..SEQ)
            .map(|i| u32::from(i >= 11) + u32::from(i >= 66))
            .collect(),
        vec![7; SEQ],
    ]
}

fn weights() -> Vec<f32> {
    (0..2 * SEQ)
        .map(|i| if i % 7 == 3 { 0.0 } else { 1.0 / SEQ as f32 })
        .collect()
}

fn inputs() -> (Tensor, Vec<u32>, Forward) {
    let ids: Vec<u32> = tokens()
        .iter()
        .flat_map(|row| row[..SEQ].to_vec())
        .collect();
    let targets = tokens().iter().flat_map(|row| row[1..].to_vec()).collect();
    let forward = Forward {
        documents: Some(documents()),
        ..Forward::default()
    };
    (
        Tensor::from_vec(ids, (2, SEQ), &Device::Cpu).unwrap(),
        targets,
        forward,
    )
}

fn run(folder: &Path, options: &LoadOptions) -> (f64, Gradients) {
    let model = CausalLm::load(folder, options).unwrap();
    let (ids, targets, forward) = inputs();
    loss_and_gradients(&model, &ids, &targets, &weights(), &forward)
}

/// The reference in float64.
fn reference(folder: &Path, trainable: Trainable) -> (f64, Gradients) {
    let options = LoadOptions {
        trainable,
        ..in_f64()
    };
    run(folder, &options)
}

/// The kernels in float32.
fn cpu(folder: &Path, trainable: Trainable) -> (f64, Gradients) {
    let options = LoadOptions {
        trainable,
        ..LoadOptions::train(Device::Cpu)
    };
    check_losses(&CausalLm::load(folder, &options).unwrap());
    run(folder, &options)
}

/// The losses of tokens agree with the logits.
fn check_losses(model: &CausalLm) {
    let (ids, targets, forward) = inputs();
    let (mut x, pass) = model.begin(&ids, None, &forward).unwrap();
    for layer in 0..model.layers() {
        x = model.layer(layer, &x, &pass).unwrap().0;
    }
    let losses = model.likelihoods(&x, &targets).unwrap();
    let hidden = model.final_norm(&x).unwrap().flatten(0, 1).unwrap();
    let logits = candle_nn::ops::log_softmax(&model.head(&hidden).unwrap(), D::Minus1)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let losses = losses.to_vec1::<f32>().unwrap();
    for ((loss, logits), target) in losses.iter().zip(logits).zip(targets) {
        assert!((loss + logits[target as usize]).abs() < 1e-4);
    }
}

fn compare(folder: &Path, name: &str, trainable: &Trainable) {
    let ((loss, gradients), (right_loss, right)) = (
        cpu(folder, trainable.clone()),
        reference(folder, trainable.clone()),
    );
    assert!(
        (loss - right_loss).abs() < 1e-5,
        "{name}: {loss} {right_loss}"
    );
    assert!(
        !gradients.is_empty() && gradients.keys().eq(right.keys()),
        "{name}"
    );
    let mut worst = 0f64;
    for (parameter, gradient) in &gradients {
        let right = &right[parameter];
        let largest = right.iter().fold(0f64, |most, value| most.max(value.abs()));
        let off = gradient
            .iter()
            .zip(right)
            .fold(0f64, |most, (a, b)| most.max((a - b).abs()))
            / (largest + 1e-6);
        assert!(
            off < 2e-4,
            "{name}: {parameter}: {off:.1e} of {largest:.1e}"
        );
        worst = worst.max(off);
    }
    println!("{name}: {} gradients, worst {worst:.1e}", gradients.len());
}

#[test]
fn dense_families_get_the_gradients_of_float64() {
    for family in FAMILIES.into_iter().chain(["llama_bias"]) {
        compare(&fixture(family).join("seed"), family, &Trainable::All);
    }
}

#[test]
fn mixtures_get_the_gradients_of_float64() {
    for (number, kind) in Kind::all().into_iter().enumerate() {
        let family = FAMILIES[number % FAMILIES.len()];
        let folder = tempfile::tempdir().unwrap();
        kind.make(family, &folder.path().join("out"));
        compare(
            &folder.path().join("out"),
            &format!("{family}, {}", kind.name),
            &Trainable::All,
        );
    }
}

#[test]
fn gradients_stop_at_frozen_weights() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("out");
    Kind::BAM.make("qwen2", &folder);
    let some = |part: &str| {
        let model = CausalLm::load(&folder, &LoadOptions::default()).unwrap();
        Trainable::Only(
            model
                .params()
                .iter()
                .map(|(name, _)| name.to_owned())
                .filter(|name| name.contains(part))
                .collect(),
        )
    };
    for part in [
        "router",
        "experts.1.",
        "o_proj",
        "layers.0.",
        "embed_tokens",
    ] {
        compare(&folder, part, &some(part));
    }
}
