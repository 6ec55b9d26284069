//! Every parameter gets a gradient, and it is the right one: central differences in float64.

use bam_convert::family::{QkNorm, Role, RouterBias};
use bam_convert::model::{CausalLm, Forward, LoadOptions, Mode, Trainable, Weights};
use candle_core::{DType, Tensor, Var};

use super::{FAMILIES, Gradients, Kind, fixture, ids, loss_and_gradients, run};
use crate::common::stock_mixtures;

/// Long and varied enough that every expert of every layer gets tokens.
fn tokens() -> Vec<u32> {
    (0..40).map(|i| (i * 97 + 13) % 384).collect()
}

pub fn trainable() -> LoadOptions {
    LoadOptions {
        dtype: DType::F64,
        mode: Mode::Train,
        weights: Weights::Widened,
        trainable: Trainable::All,
        ..LoadOptions::default()
    }
}

/// The gradients of the mean negative log-likelihood of the next tokens, in nats.
fn gradients(model: &CausalLm) -> Gradients {
    let tokens = tokens();
    let (input, target) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let weights = vec![1.0 / target.len() as f32; target.len()];
    loss_and_gradients(model, &ids(input), target, &weights, &Forward::default()).1
}

/// The mean negative log-likelihood, from the logits.
fn value(model: &CausalLm) -> f64 {
    let tokens = tokens();
    let (input, target) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let logits = run(model, input, &Forward::default());
    let losses = logits.iter().zip(target).map(|(logits, target)| {
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        sum.ln() - logits[*target as usize]
    });
    losses.sum::<f64>() / target.len() as f64
}

/// Compares gradients with central differences, where they are largest and at one more place of each parameter.
pub fn check(model: &CausalLm, name: &str) {
    let gradients = gradients(model);
    let step = 1e-4;
    let mut worst = 0f64;
    for (number, (parameter, var)) in model.params().vars().enumerate() {
        let (spec, mixture) = (
            &model.params().get(parameter).unwrap().spec,
            &model.architecture().mixture,
        );
        let of_choice = mixture
            .as_ref()
            .is_some_and(|mixture| mixture.router_bias == RouterBias::Choice);
        if spec.bias && spec.role.is_router() && of_choice {
            assert!(
                !gradients.contains_key(parameter),
                "{name}: {parameter} takes part in the choice alone"
            );
            continue;
        }
        let gradient = gradients
            .get(parameter)
            .unwrap_or_else(|| panic!("{name}: no gradient for {parameter}"));
        let largest = (0..gradient.len())
            .max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()))
            .unwrap();
        let architecture = model.architecture();
        let rotates = spec
            .layer
            .is_none_or(|layer| architecture.rope_layers.contains(layer));
        if spec.bias && spec.role == Role::K && !rotates && architecture.qk_norm == QkNorm::None {
            // It adds the same number to all scores of a query.
            assert!(gradient[largest].abs() < 1e-12, "{name}: {parameter}");
            continue;
        }
        assert!(
            gradient[largest].abs() > 1e-12,
            "{name}: the gradient of {parameter} is zero"
        );
        let values: Vec<f64> = var.flatten_all().unwrap().to_vec1().unwrap();
        for place in [largest, number * 31 % gradient.len()] {
            let at = |by: f64| {
                let mut moved = values.clone();
                moved[place] += by;
                set(var, moved);
                value(model)
            };
            let slope = |step: f64| (at(step) - at(-step)) / (2.0 * step);
            let error = |difference: f64| {
                (difference - gradient[place]).abs()
                    / (1e-6 + difference.abs().max(gradient[place].abs()))
            };
            let mut difference = slope(step);
            if error(difference) >= 1e-5 {
                // Two larger steps without the error that grows with the square of a step, and with less rounding.
                difference = (4.0 * slope(3.0 * step) - slope(6.0 * step)) / 3.0;
            }
            let error = error(difference);
            worst = worst.max(error);
            assert!(
                error < 1e-5,
                "{name}: {parameter}[{place}]: gradient {}, difference {difference}",
                gradient[place]
            );
        }
        set(var, values);
    }
    println!(
        "{name}: {} parameters, largest relative error {worst:.1e}",
        model.params().vars().count()
    );
}

fn set(var: &Var, values: Vec<f64>) {
    var.set(&Tensor::from_vec(values, var.dims(), var.device()).unwrap())
        .unwrap();
}

#[test]
fn gradients_of_dense_families_are_right() {
    for family in FAMILIES.into_iter().chain(["llama_bias"]) {
        let model = CausalLm::load(&fixture(family).join("seed"), &trainable()).unwrap();
        check(&model, family);
    }
}

#[test]
fn gradients_of_other_programs_mixtures_are_right() {
    for family in stock_mixtures() {
        let folder = fixture("mixtures").join(family);
        check(&CausalLm::load(&folder, &trainable()).unwrap(), family);
    }
}

#[test]
fn gradients_of_mixtures_are_right() {
    for (number, kind) in Kind::all().into_iter().enumerate() {
        // Each kind once, over all families in turn.
        let family = FAMILIES[number % FAMILIES.len()];
        let folder = tempfile::tempdir().unwrap();
        kind.make(family, &folder.path().join("out"));
        let model = CausalLm::load(&folder.path().join("out"), &trainable()).unwrap();
        let forward = Forward {
            keep_routing: true,
            ..Forward::default()
        };
        for (layer, routing) in model
            .forward(&ids(&tokens()), None, &forward)
            .unwrap()
            .routing
            .iter()
            .enumerate()
        {
            let chosen: Vec<u32> = routing
                .feed_forward
                .as_ref()
                .unwrap()
                .chosen
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            assert!(
                (0..3).all(|expert| chosen.contains(&expert)),
                "{}: layer {layer} leaves an expert out",
                kind.name
            );
        }
        check(&model, &format!("{family}, {}", kind.name));
    }
}

#[test]
fn frozen_parameters_get_no_gradient_and_change_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("out");
    Kind::BAM.make("llama", &folder);
    let all = CausalLm::load(&folder, &trainable()).unwrap();
    let routers: std::collections::BTreeSet<String> = all
        .params()
        .iter()
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.contains("router"))
        .collect();
    assert_eq!(routers.len(), 4);
    let some = CausalLm::load(
        &folder,
        &LoadOptions {
            trainable: Trainable::Only(routers.clone()),
            ..trainable()
        },
    )
    .unwrap();
    let (of_all, of_some) = (gradients(&all), gradients(&some));
    assert_eq!(of_some.len(), 4);
    for (name, gradient) in &of_some {
        let full = &of_all[name];
        assert!(
            gradient.iter().zip(full).all(|(a, b)| (a - b).abs() < 1e-7),
            "{name}"
        );
    }
}
