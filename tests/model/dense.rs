//! Dense families against transformers.

use bam_convert::model::{CausalLm, Forward, LoadOptions, logits};
use candle_core::{Device, Tensor};

use super::naive::{Naive, Routing};
use super::{FAMILIES, difference, fixture, golden_tokens, ids, in_f64, rows, run, ways};

fn golden(family: &str) -> Vec<Vec<f64>> {
    let tensors = candle_core::safetensors::load(fixture(&format!("golden/{family}.safetensors")), &Device::Cpu).unwrap();
    rows(&tensors["logits"])
}

#[test]
fn logits_of_every_family_are_those_of_transformers() {
    let tokens = golden_tokens();
    for family in FAMILIES.into_iter().chain(["llama_bias"]) {
        let golden = golden(family);
        let folder = fixture(family).join("seed");
        for (way, options) in ways() {
            let model = CausalLm::load(&folder, &options).unwrap();
            let difference = difference(&run(&model, &tokens, &Forward::default()), &golden);
            println!("{family}, {way}: {difference:.1e}");
            assert!(difference < 1e-4, "{family}, {way}: {difference}");
        }
        let naive = Naive::open(&folder).logits(&tokens, &Routing::default());
        let f64 = CausalLm::load(&folder, &in_f64()).unwrap();
        let difference = difference(&run(&f64, &tokens, &Forward::default()), &naive);
        println!("{family}, f64 against the naive model: {difference:.1e}");
        assert!(difference < 1e-5, "{family}, f64: {difference}");
    }
    let sharded = logits(&fixture("llama_sharded/seed"), &tokens, &Device::Cpu).unwrap();
    assert!(difference(&rows(&sharded), &golden("llama")) < 1e-4);
}

#[test]
fn bad_input_is_refused_by_name() {
    let model = CausalLm::load(&fixture("llama/seed"), &LoadOptions::default()).unwrap();
    let refused = |tokens: &Tensor, forward: &Forward| {
        model.forward(tokens, None, forward).expect_err("an error").to_string()
    };
    let plain = Forward::default();
    assert!(refused(&ids(&[1, 384]), &plain).contains("token id 384 is outside the model's vocabulary of 384"));
    assert!(refused(&ids(&[1; 513]), &plain).contains("513 positions are more than the model's context of 512"));
    assert!(refused(&Tensor::new(&[1u32], &Device::Cpu).unwrap(), &plain).contains("[batch, seq]"));
    let mut dropping = Forward::default();
    dropping.overrides.dropped = vec![0];
    assert!(refused(&ids(&[1]), &dropping).contains("the model is dense"));
}
