//! Rotary frequencies against transformers and plain arithmetic.

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::backend::rotate;
use super::params::Mode;
use super::rope::{Rope, Ropes};
use crate::family::{Architecture, Config};

fn rope(extra: serde_json::Value) -> crate::Result<Rope> {
    let mut json = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 8, "max_position_embeddings": 4096,
    });
    let json = json.as_object_mut().unwrap();
    json.extend(extra.as_object().unwrap().clone());
    let config = Config::from_json("config.json", json.clone());
    let ropes = Ropes::new(&Architecture::of(&config)?, &config)?;
    Ok(ropes.full().clone())
}

/// Golden numbers: `ROPE_INIT_FUNCTIONS[kind](config)` of transformers 5.23.0 for the configurations below.
#[test]
fn frequencies_are_those_of_transformers() {
    let cases = GOLDEN_ROPE;
    for (parameters, frequencies, factor) in cases {
        let parameters: serde_json::Value = serde_json::from_str(parameters).unwrap();
        let rope = rope(json!({ "rope_parameters": parameters })).unwrap();
        let (ours, our_factor) = rope.parts();
        assert_eq!(ours.len(), frequencies.len());
        for (ours, theirs) in ours.iter().zip(*frequencies) {
            assert!(
                (ours / theirs - 1.0).abs() < 1e-6,
                "{parameters}: {ours} {theirs}"
            );
        }
        assert!((our_factor - factor).abs() < 1e-9, "{parameters}");
    }
}

#[test]
fn part_of_a_head_can_be_rotated() {
    let half = rope(json!({ "model_type": "bam", "num_experts": 2, "partial_rotary_factor": 0.5 }))
        .unwrap();
    assert_eq!(half.parts().0.len(), 4);
    let x = Tensor::ones((1, 3, 2, 16), DType::F64, &Device::Cpu).unwrap();
    let rotation = half
        .rotation(&[vec![0, 1, 2]], DType::F64, &Device::Cpu)
        .unwrap();
    let out = rotate::apply(&x, &rotation, Mode::Train).unwrap();
    let out: Vec<f64> = out
        .narrow(1, 2, 1)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    assert!(
        (out[0] - (2f64.cos() - 2f64.sin())).abs() < 1e-7
            && (out[4] - (2f64.cos() + 2f64.sin())).abs() < 1e-7
    );
    assert!(out[8..16].iter().all(|value| *value == 1.0));
}

#[test]
fn bad_scalings_are_refused_by_name() {
    let refused = |parameters: serde_json::Value| {
        rope(json!({ "rope_parameters": parameters }))
            .unwrap_err()
            .to_string()
    };
    let error = refused(json!({ "rope_type": "llama4", "factor": 2.0 }));
    assert!(
        error.contains("rope_parameters.rope_type") && error.contains("llama4"),
        "{error}"
    );
    assert!(refused(json!({ "rope_type": "linear" })).contains("rope_parameters.factor"));
    assert!(
        refused(json!({ "rope_type": "linear", "factor": "two" }))
            .contains("expected a number above 0")
    );
}

/// Parameters, frequencies, factor on cosines and sines; numbers as transformers printed them.
#[allow(clippy::excessive_precision)]
const GOLDEN_ROPE: &[(&str, &[f32], f64)] = &[
    (
        r#"{"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}"#,
        &[
            0.25,
            0.07905694097280502,
            0.02500000037252903,
            0.007905694656074047,
            0.0024999999441206455,
            0.0007905694656074047,
            0.0002500000118743628,
            7.905694656074047e-05,
        ],
        1.0,
    ),
    (
        r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 500000.0}"#,
        &[
            1.0,
            0.07940301299095154,
            0.004700753837823868,
            0.0009115831344388425,
            0.00017677668074611574,
            3.428102354519069e-05,
            6.647869668086059e-06,
            1.289173155782919e-06,
        ],
        1.0,
    ),
    (
        r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 10000.0}"#,
        &[
            1.0,
            0.3162277638912201,
            0.08125000447034836,
            0.019764237105846405,
            0.0043750000186264515,
            0.0007905694656074047,
            0.0002500000118743628,
            7.905694656074047e-05,
        ],
        1.138629436111989,
    ),
    (
        r#"{"rope_type": "yarn", "factor": 40.0, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": false, "original_max_position_embeddings": 256, "rope_theta": 50000.0}"#,
        &[
            1.0,
            0.2079460769891739,
            0.01136727910488844,
            0.00043234083568677306,
            0.00011180340516148135,
            2.8912374546052888e-05,
            7.47674403100973e-06,
            1.933487055794103e-06,
        ],
        1.1557219901962608,
    ),
];
