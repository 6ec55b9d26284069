//! Dense families against transformers.

use bam_convert::model::{CausalLm, Forward, LoadOptions, logits};
use candle_core::{Device, Tensor};

use super::naive::{Naive, Routing};
use super::{FAMILIES, difference, fixture, golden_tokens, ids, in_f64, rows, run, ways};

fn golden(family: &str) -> Vec<Vec<f64>> {
    let tensors = candle_core::safetensors::load(
        fixture(&format!("golden/{family}.safetensors")),
        &Device::Cpu,
    )
    .unwrap();
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
fn windows_are_those_of_their_layers() {
    // `WINDOW` of `fixtures/make.py`: in words a layer, and in the older spelling.
    let tokens = golden_tokens();
    let golden = golden("qwen2_window");
    let folder = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(fixture("qwen2/seed").join(file), folder.path().join(file)).unwrap();
    }
    let mut config = config("qwen2");
    config["use_sliding_window"] = true.into();
    config["sliding_window"] = 5.into();
    config["max_window_layers"] = 1.into();
    for types in [
        serde_json::json!(["full_attention", "sliding_attention"]),
        serde_json::Value::Null,
    ] {
        config["layer_types"] = types;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        for (way, options) in ways() {
            let model = CausalLm::load(folder.path(), &options).unwrap();
            let difference = difference(&run(&model, &tokens, &Forward::default()), &golden);
            assert!(difference < 1e-4, "{way}: {difference}");
        }
        let naive = Naive::open(folder.path()).logits(&tokens, &Routing::default());
        assert!(difference(&naive, &golden) < 1e-4);
    }
    let whole = CausalLm::load(&fixture("qwen2/seed"), &LoadOptions::default()).unwrap();
    assert!(
        difference(&run(&whole, &tokens, &Forward::default()), &golden) > 1e-2,
        "the window changes nothing"
    );
    let mut wrong = |types: serde_json::Value| {
        config["layer_types"] = types;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        CausalLm::load(folder.path(), &LoadOptions::default())
            .expect_err("an error")
            .to_string()
    };
    assert!(
        wrong(serde_json::json!(["full_attention"]))
            .contains("expected one entry for each of 2 layers, found 1")
    );
    assert!(wrong(serde_json::json!(["full_attention", "chunked"])).contains("found \"chunked\""));
}

#[test]
fn bad_input_is_refused_by_name() {
    let model = CausalLm::load(&fixture("llama/seed"), &LoadOptions::default()).unwrap();
    let refused = |tokens: &Tensor, forward: &Forward| {
        model
            .forward(tokens, None, forward)
            .expect_err("an error")
            .to_string()
    };
    let plain = Forward::default();
    assert!(
        refused(&ids(&[1, 384]), &plain)
            .contains("token id 384 is outside the model's vocabulary of 384")
    );
    assert!(
        refused(&ids(&[1; 513]), &plain)
            .contains("513 positions are more than the model's context of 512")
    );
    assert!(refused(&Tensor::new(&[1u32], &Device::Cpu).unwrap(), &plain).contains("[batch, seq]"));
    let mut dropping = Forward::default();
    dropping.overrides.dropped = vec![0];
    assert!(refused(&ids(&[1]), &dropping).contains("the model is dense"));
}

/// The configuration with its keys in both spellings.
fn config(family: &str) -> serde_json::Value {
    let text = std::fs::read(fixture(family).join("seed/config.json")).unwrap();
    let mut config = serde_json::from_slice(&text).unwrap();
    bam_convert::family::both_spellings(&mut config);
    serde_json::Value::Object(config)
}
