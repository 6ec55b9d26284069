//! Kinds of layers and their rotations, as the configuration classes of transformers 4.57.6 and 5.24.0 read them.

use serde_json::{Value, json};

use super::rope_kinds::LayerRope;
use super::tests::small;
use super::*;
use crate::Error;
use crate::error::InputError;

fn read(model_type: &str, keys: Value) -> Architecture {
    four_layers(model_type, keys).unwrap_or_else(|error| panic!("{model_type}: {error}"))
}

fn four_layers(model_type: &str, keys: Value) -> crate::Result<Architecture> {
    let mut config = small(model_type, json!({"num_hidden_layers": 4}));
    config.json.extend(keys.as_object().unwrap().clone());
    Architecture::of(&config)
}

fn list(layers: &[u64]) -> Layers {
    Layers::List(layers.to_vec())
}

/// The window, its layers, and the layers that rotate.
fn kinds(of: Architecture) -> (Option<u64>, Layers, Layers) {
    (of.sliding_window, of.window_layers, of.rope_layers)
}

#[test]
fn absent_keys_have_the_meaning_of_their_class() {
    let three = || list(&[0, 1, 2]);
    for (model_type, keys, expected) in [
        ("cohere2", json!({}), (Some(4096), three(), three())),
        (
            "cohere2",
            json!({"sliding_window": 9, "sliding_window_pattern": 2}),
            (Some(9), list(&[0, 2]), list(&[0, 2])),
        ),
        // The list counts, and not the pattern.
        (
            "cohere2",
            json!({"sliding_window_pattern": 2, "layer_types": vec!["full_attention"; 4]}),
            (None, Layers::All, list(&[])),
        ),
        ("exaone4", json!({}), (Some(4096), three(), three())),
        (
            "exaone4",
            json!({"sliding_window": null, "layer_types": vec!["full_attention"; 4]}),
            (None, Layers::All, Layers::All),
        ),
        (
            "exaone4",
            json!({"layer_types": vec!["full_attention"; 4]}),
            (None, Layers::All, list(&[])),
        ),
        ("olmo3", json!({}), (Some(4096), three(), Layers::All)),
        ("smollm3", json!({}), (None, Layers::All, three())),
        (
            "smollm3",
            json!({"no_rope_layer_interval": 2}),
            (None, Layers::All, list(&[0, 2])),
        ),
        (
            "smollm3",
            json!({"no_rope_layers": [1, 1, 1, 1, 0]}),
            (None, Layers::All, Layers::All),
        ),
        // The layers that do not rotate have the window.
        (
            "smollm3",
            json!({"no_rope_layers": [0, 1, 1, 0], "use_sliding_window": true, "sliding_window": 9}),
            (Some(9), list(&[0, 3]), list(&[1, 2])),
        ),
    ] {
        assert_eq!(
            kinds(read(model_type, keys.clone())),
            expected,
            "{model_type} {keys}"
        );
    }
}

/// A base of one kind and a base of the other; the scaling belongs to layers that see all positions.
#[test]
fn kinds_of_layers_rotate_as_the_version_that_wrote_the_file_reads_it() {
    let linear = json!({"rope_type": "linear", "factor": 3.0});
    let ropes = |keys: Value| {
        let of = read("olmo3", keys);
        let full = LayerRope {
            theta: of.rope_theta,
            scaling: of.rope_scaling,
        };
        (full, of.window_rope)
    };
    let rope = |theta: f64, scaling: Option<&Value>| LayerRope {
        theta,
        scaling: scaling.cloned(),
    };
    for (keys, full, window) in [
        (
            json!({"rope_theta": 7.0, "rope_scaling": linear, "transformers_version": "4.57.1"}),
            rope(7.0, Some(&linear)),
            Some(rope(7.0, None)),
        ),
        (
            json!({"rope_theta": 7.0, "transformers_version": "5.24.0"}),
            rope(7.0, None),
            Some(rope(5e5, None)),
        ),
        (json!({"rope_theta": 7.0}), rope(7.0, None), None),
        // As bam-convert adds it to a file of version 4.
        (
            json!({"rope_theta": 7.0, "transformers_version": "4.57.1", "rope_parameters": {
                "full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 7.0},
            }}),
            rope(7.0, None),
            None,
        ),
        (json!({}), rope(1e4, None), None),
        (
            json!({"transformers_version": "5.24.0"}),
            rope(5e5, None),
            None,
        ),
        (
            json!({"rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 7.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
            }}),
            rope(7.0, Some(&linear)),
            Some(rope(5.0, None)),
        ),
        // With a window in every layer, nothing rotates in the other way.
        (
            json!({"layer_types": vec!["sliding_attention"; 4], "rope_parameters": {
                "full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 5.0},
            }}),
            rope(5.0, None),
            None,
        ),
    ] {
        assert_eq!(ropes(keys.clone()), (full, window), "{keys}");
    }
}

/// Whether an error is of the rule that a row breaks, with its key.
type IsRule = fn(&Error) -> bool;

/// The key of a value that is none of those that it may be, and what is expected of it.
fn wrong_value(error: &Error) -> Option<(&str, &str)> {
    match error {
        Error::Input(InputError::WrongValue { key, expected, .. }) => Some((key, expected)),
        _ => None,
    }
}

/// The key of a value that cannot be computed.
fn not_computed(error: &Error) -> Option<&str> {
    match error {
        Error::Config(ConfigError::NotComputed { key, .. }) => Some(key),
        _ => None,
    }
}

#[test]
fn unclear_windows_are_refused() {
    let sliding = json!([
        "sliding_attention",
        "full_attention",
        "full_attention",
        "full_attention"
    ]);
    let rows: [(&str, Value, IsRule); 6] = [
        ("cohere2", json!({"sliding_window": null}), |error| {
            not_computed(error) == Some("sliding_window")
        }),
        ("olmo3", json!({"sliding_window": null}), |error| {
            not_computed(error) == Some("sliding_window")
        }),
        ("cohere2", json!({"sliding_window_pattern": 0}), |error| {
            wrong_value(error) == Some(("sliding_window_pattern", "a positive integer"))
        }),
        (
            "exaone4",
            json!({"sliding_window_pattern": "LLLG"}),
            |error| wrong_value(error) == Some(("sliding_window_pattern", "a positive integer")),
        ),
        (
            "exaone4",
            json!({"sliding_window_pattern": null}),
            |error| matches!(error, Error::Config(ConfigError::Null { key, .. }) if key == "sliding_window_pattern"),
        ),
        (
            "smollm3",
            json!({ "layer_types": sliding }),
            |error| matches!(error, Error::Config(ConfigError::NoWindow { key, .. }) if key == "layer_types"),
        ),
    ];
    assert_refused(&rows);
}

#[test]
fn unclear_rotations_are_refused() {
    let rows: [(&str, Value, IsRule); 8] = [
        ("smollm3", json!({"no_rope_layers": [1, 0]}), |error| {
            wrong_value(error) == Some(("no_rope_layers", "a 0 or 1 for each of 4 layers"))
        }),
        (
            "smollm3",
            json!({"no_rope_layers": [1, 0, 2, 1]}),
            |error| wrong_value(error) == Some(("no_rope_layers", "a 0 or 1 for each layer")),
        ),
        ("smollm3", json!({"no_rope_layer_interval": 0}), |error| {
            wrong_value(error) == Some(("no_rope_layer_interval", "a positive integer"))
        }),
        (
            "olmo3",
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
            |error| {
                let kinds = "an object with `full_attention` and `sliding_attention`";
                wrong_value(error) == Some(("rope_parameters", kinds))
            },
        ),
        (
            "olmo3",
            json!({"transformers_version": "4.57.1", "rope_theta": 7.0, "rope_parameters": {"sliding_attention": {"rope_theta": 5.0}}}),
            |error| {
                matches!(error, Error::Config(ConfigError::UnreadTheta { key, .. })
                    if *key == "rope_parameters.sliding_attention.rope_theta")
            },
        ),
        (
            "olmo3",
            json!({"rope_theta": 6.0, "rope_parameters": {"full_attention": {"rope_theta": 7.0}}}),
            |error| {
                matches!(error, Error::Config(ConfigError::TwoSpellings { other, .. })
                    if other == "rope_parameters.full_attention.rope_theta")
            },
        ),
        (
            "olmo3",
            json!({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}),
            |error| {
                matches!(error, Error::Input(InputError::MissingKey { key, .. })
                    if key == "rope_parameters.full_attention.factor")
            },
        ),
        (
            "llama",
            json!({"rope_parameters": {"full_attention": {"rope_theta": 7.0}}}),
            |error| not_computed(error) == Some("rope_parameters.full_attention"),
        ),
    ];
    assert_refused(&rows);
}

fn assert_refused(rows: &[(&str, Value, IsRule)]) {
    for (model_type, keys, is_rule) in rows {
        let error = four_layers(model_type, keys.clone()).unwrap_err();
        assert!(is_rule(&error), "{model_type} {keys}: {error:?}");
    }
}

/// What a mixture says reads back, and so does the dense model of one of its experts.
#[test]
fn mixtures_say_which_layers_rotate_and_how() {
    for (model_type, keys) in [
        ("smollm3", json!({})),
        ("smollm3", json!({"no_rope_layers": [1, 1, 1, 1]})),
        ("cohere2", json!({"sliding_window": 9})),
        (
            "exaone4",
            json!({"sliding_window": 9, "layer_types": vec!["full_attention"; 4]}),
        ),
        (
            "olmo3",
            json!({"rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
        ),
        (
            "olmo3",
            json!({"rope_parameters": {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 5.0}}}),
        ),
    ] {
        let mut seed = small(model_type, json!({"num_hidden_layers": 4}));
        seed.json.extend(keys.as_object().unwrap().clone());
        let dense = Architecture::of(&seed).unwrap();
        let target = dense.upcycled(Mixture::new(&dense, 2));
        let written = Config::from_json("config.json", bam_config(&seed, &dense, &target).unwrap());
        assert_eq!(
            Architecture::of(&written).unwrap(),
            target,
            "{:?}",
            written.json
        );

        let alone = super::dense(&written, &target).unwrap();
        assert_eq!(
            alone.architecture, dense,
            "{model_type}: {:?}",
            alone.config
        );
        assert_eq!(alone.config["model_type"], model_type);
    }
}

#[test]
fn both_spellings_say_the_rotation_of_each_kind_of_layer() {
    let both = |keys: Value| {
        let mut config = small("olmo3", keys).json;
        both_spellings(&mut config);
        ["rope_theta", "rope_scaling", "rope_parameters"]
            .map(|key| config.get(key).cloned().unwrap_or_default())
    };
    let scaling = json!({"rope_type": "linear", "factor": 3.0});
    let kinds = json!({
        "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 7.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
    });
    let expected = [json!(7.0), scaling.clone(), kinds.clone()];
    assert_eq!(
        both(json!({"rope_theta": 7.0, "rope_scaling": scaling})),
        expected
    );
    assert_eq!(both(json!({ "rope_parameters": kinds })), expected);
    assert_eq!(both(json!({})), [Value::Null, Value::Null, Value::Null]);

    // A base inside is said, so that none is assumed.
    let config = small("olmo3", json!({ "rope_parameters": kinds }));
    let mut json = config.json.clone();
    assert_eq!(config.say_assumptions(&mut json).unwrap(), [""; 0]);
    assert_eq!(json, config.json);
}
