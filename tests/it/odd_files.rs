//! Files of built-in families in the spellings of other programs and older versions: right as in transformers, or refused.
//!
//! Golden numbers are of transformers 5.24.0 and 4.57.6 in float32, from the same folders.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::common::{Run, bam, copy_folder, edit_json, fixture, read_file, read_json};

/// Positions and token ids of golden numbers.
const PLACES: [(usize, usize); 4] = [(7, 3), (7, 201), (15, 3), (15, 201)];

/// A checkpoint of `fixtures/` with changed keys, in a folder of that name.
fn changed(
    work: &TempDir,
    name: &str,
    source: &str,
    change: impl FnOnce(&mut Map<String, Value>),
) -> PathBuf {
    let folder = copy_folder(&fixture(source), &work.path().join(name));
    edit_json(&folder.join("config.json"), |config| {
        change(config.as_object_mut().unwrap());
    });
    folder
}

/// Runs `logits` on the golden tokens.
fn logits(folder: &Path) -> (Run, PathBuf) {
    let dump = folder.with_extension("logits");
    let tokens = fixture("golden/tokens.json");
    (
        bam!("logits", folder, "--tokens", tokens, "--dump", dump),
        dump,
    )
}

/// The logits at the places of golden numbers.
fn at_places(folder: &Path) -> [f64; 4] {
    let (run, dump) = logits(folder);
    run.ok();
    let logits = &read_file(&dump)["logits"];
    let (width, values) = (logits.shape[1], logits.values());
    PLACES.map(|(position, token)| values[position * width + token])
}

fn assert_close(found: [f64; 4], expected: [f64; 4], name: &str) {
    for (found, expected) in found.into_iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-4,
            "{name}: {found} {expected}"
        );
    }
}

/// Refuses a folder in a message with these parts.
fn assert_refused(folder: &Path, parts: &[&str]) {
    logits(folder).0.refused(2, parts);
}

/// Checks that a folder computes what its fixture does.
fn assert_same_as(folder: &Path, source: &str) {
    bam!("logits", fixture(source), folder, "--tolerance", "0").ok();
}

/// The keys of transformers 4 for a Phi-3, whose longrope has this name.
fn phi_of_version_4(config: &mut Map<String, Value>, name: &str) {
    let mut rope = config.remove("rope_parameters").unwrap();
    let rope = rope.as_object_mut().unwrap();
    config.insert("rope_theta".to_owned(), rope["rope_theta"].clone());
    config.insert(
        "partial_rotary_factor".to_owned(),
        rope["partial_rotary_factor"].clone(),
    );
    let [short, long] = ["short_factor", "long_factor"].map(|key| rope[key].clone());
    config.insert(
        "rope_scaling".to_owned(),
        json!({"type": name, "short_factor": short, "long_factor": long}),
    );
    config.insert("transformers_version".to_owned(), json!("4.39.3"));
}

// ---------------------------------------------------------------- rotary positions

#[test]
fn a_longrope_of_transformers_5_is_the_same_after_convert() {
    let work = TempDir::new().unwrap();
    let in_llama = |more: Value| {
        let mut rope = json!({
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.1, 1.1, 1.1, 1.1],
            "long_factor": [1.5, 2.0, 2.5, 3.0], "original_max_position_embeddings": 8,
        });
        let object = rope.as_object_mut().unwrap();
        object.extend(more.as_object().unwrap().clone());
        rope
    };
    for (name, source, more, golden) in [
        (
            "phi3-factor",
            "families/phi3",
            json!({"factor": 4.0}),
            [0.98417, 5.00627, -1.8271, 3.40519],
        ),
        (
            "phi3-attention",
            "families/phi3",
            json!({"attention_factor": 1.3}),
            [0.60386, 5.05897, -1.93798, 3.38269],
        ),
        (
            "phi3-both",
            "families/phi3",
            json!({"factor": 4.0, "attention_factor": 1.3}),
            [0.60386, 5.05897, -1.93798, 3.38269],
        ),
        (
            "llama",
            "llama/seed",
            json!({}),
            [0.29224, 2.51835, -2.36034, 2.65382],
        ),
        (
            "llama-factor",
            "llama/seed",
            json!({"factor": 4.0}),
            [-0.58992, 2.90205, -1.80552, 3.57238],
        ),
        (
            "llama-attention",
            "llama/seed",
            json!({"attention_factor": 1.3}),
            [-0.5591, 2.89754, -1.84767, 3.53223],
        ),
    ] {
        let folder = changed(&work, name, source, |config| {
            config.remove("rope_theta");
            config.remove("rope_scaling");
            config.insert("transformers_version".to_owned(), json!("5.24.0"));
            if source == "llama/seed" {
                config.insert("rope_parameters".to_owned(), in_llama(more));
            } else {
                let rope = config["rope_parameters"].as_object_mut().unwrap();
                rope.extend(more.as_object().unwrap().clone());
            }
        });
        assert_close(at_places(&folder), golden, name);
        let converted = work.path().join(format!("{name}-converted"));
        bam!("convert", folder, converted, "--dtype", "f32").ok();
        assert_close(at_places(&converted), golden, name);
    }
}

/// Phi-3's class takes `su` and `yarn` for longrope, its names in the first published files, and has no other scaling.
#[test]
fn old_names_of_longrope_mean_it_in_phi_3() {
    let work = TempDir::new().unwrap();
    for name in ["su", "yarn", "longrope"] {
        let folder = changed(&work, name, "families/phi3", |config| {
            phi_of_version_4(config, name);
        });
        assert_same_as(&folder, "families/phi3");
        let converted = work.path().join(format!("{name}-converted"));
        bam!("convert", folder, converted, "--dtype", "f32").ok();
        assert_same_as(&converted, "families/phi3");
        // Both versions refuse the older names under both keys.
        let config = read_json(converted.join("config.json"));
        assert_eq!(config["rope_scaling"]["type"], "longrope");
        assert_eq!(config["rope_parameters"]["rope_type"], "longrope");
    }
    for (name, scaling, parts) in [
        (
            "linear",
            json!({"type": "linear", "factor": 2.0}),
            ["rope_scaling.rope_type", "longrope"],
        ),
        (
            "yarn-alone",
            json!({"type": "yarn", "factor": 2.0}),
            ["rope_scaling.short_factor", "is missing"],
        ),
    ] {
        let folder = changed(&work, name, "families/phi3", |config| {
            phi_of_version_4(config, name);
            config["rope_scaling"] = scaling;
        });
        assert_refused(&folder, &parts);
    }
}

/// The class reads `rotary_emb_base`, and another key of that meaning in no version.
#[test]
fn a_base_that_gpt_neox_does_not_read_stays_unread_after_convert() {
    let work = TempDir::new().unwrap();
    let folder = changed(&work, "neox", "families/gpt_neox", |config| {
        config["rope_parameters"]
            .as_object_mut()
            .unwrap()
            .remove("rope_theta");
        config.insert("rotary_emb_base".to_owned(), json!(30000));
        config.insert("rope_theta".to_owned(), json!(10000.0));
        config.insert("partial_rotary_factor".to_owned(), json!(0.5));
    });
    assert_same_as(&folder, "families/gpt_neox");
    let converted = work.path().join("converted");
    bam!("convert", folder, converted, "--dtype", "f32").ok();
    assert_same_as(&converted, "families/gpt_neox");
}

/// transformers 4 refuses `type` alone in these classes, and transformers 5 passes it over.
#[test]
fn a_scaling_without_rope_type_is_refused_where_kinds_of_layers_differ() {
    let work = TempDir::new().unwrap();
    for family in ["gemma3_text", "olmo3"] {
        let with = |key: &str| {
            let source = format!("families/{family}");
            changed(&work, &format!("{family}-{key}"), &source, |config| {
                config.remove("rope_parameters");
                config.insert("rope_theta".to_owned(), json!(60000.0));
                config.insert(
                    "rope_scaling".to_owned(),
                    json!({key: "linear", "factor": 3.0}),
                );
                config.insert("transformers_version".to_owned(), json!("4.57.1"));
            })
        };
        logits(&with("rope_type")).0.ok();
        assert_refused(&with("type"), &["rope_scaling.type", "does not read"]);
    }
}

#[test]
fn a_scaling_that_says_nothing_is_fine_in_nemotron() {
    let work = TempDir::new().unwrap();
    for (number, scaling) in [json!({}), json!({"type": "default"}), json!(null)]
        .into_iter()
        .enumerate()
    {
        let name = format!("nemotron-{number}");
        let folder = changed(&work, &name, "families/nemotron", |config| {
            config.insert("rope_scaling".to_owned(), scaling);
            config.insert("rope_theta".to_owned(), json!(50000.0));
        });
        assert_same_as(&folder, "families/nemotron");
    }
}

// ---------------------------------------------------------------- what the version decides

/// Without a version, every command says what it takes for a base whose default differs between versions.
#[test]
fn a_base_that_no_version_decides_is_said_by_every_command() {
    let work = TempDir::new().unwrap();
    let without = |config: &mut Map<String, Value>| {
        for key in [
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "transformers_version",
        ] {
            config.remove(key);
        }
    };
    for (name, source, taken) in [
        (
            "cohere",
            "cohere/seed",
            "`rope_theta` is not said and is taken to be 10000.0",
        ),
        (
            "olmo3",
            "families/olmo3",
            "`rope_theta` is not said and is taken to be 10000.0",
        ),
    ] {
        let folder = changed(&work, name, source, without);
        let converted = work.path().join(format!("{name}-converted"));
        for run in [
            logits(&folder).0.ok(),
            bam!("cost", folder).ok(),
            bam!("convert", folder, converted, "--dtype", "f32").ok(),
        ] {
            let said = run.stderr.matches(taken).count();
            assert_eq!(said, 1, "{}: {}", run.command, run.stderr);
        }
        let run = logits(&converted).0.ok();
        assert!(!run.stderr.contains("note"), "{}", run.stderr);
    }
    let folder = changed(&work, "window", "families/olmo3", |config| {
        without(config);
        config.insert("rope_theta".to_owned(), json!(60000.0));
    });
    let run = logits(&folder).0.ok();
    assert!(
        run.stderr.contains("layers with a window"),
        "{}",
        run.stderr
    );
    // Only version 5 has `rope_parameters`, so that its default counts.
    let folder = changed(&work, "new", "cohere/seed", |config| {
        without(config);
        config.insert(
            "rope_parameters".to_owned(),
            json!({"rope_type": "default"}),
        );
    });
    let said = changed(&work, "said", "cohere/seed", |config| {
        without(config);
        config.insert("rope_theta".to_owned(), json!(500_000.0));
    });
    bam!("logits", folder, said, "--tolerance", "0").ok();
}

/// The published Gemma 1 says `gelu`: transformers 5 and those before 4.48 compute its approximation, with which it was trained.
#[test]
fn the_gelu_of_published_gemma_is_its_approximation() {
    let work = TempDir::new().unwrap();
    let folder = changed(&work, "gemma", "families/gemma", |config| {
        config["hidden_act"] = json!("gelu");
        config.insert("hidden_activation".to_owned(), Value::Null);
    });
    assert_same_as(&folder, "families/gemma");
    let run = logits(&folder).0.ok();
    assert!(
        run.stderr
            .contains("taken for the string \"gelu_pytorch_tanh\""),
        "{}",
        run.stderr
    );
    for (command, out) in [("convert", "converted"), ("merge", "merged")] {
        let out = work.path().join(out);
        match command {
            "convert" => bam!("convert", folder, out, "--dtype", "f32").ok(),
            _ => bam!("merge", "--model", folder, "--model", folder, "--out", out).ok(),
        };
        let config = read_json(out.join("config.json"));
        assert_eq!(config["hidden_act"], "gelu_pytorch_tanh", "{command}");
        assert_same_as(&out, "families/gemma");
    }
    for (version, is_read) in [
        ("4.38.0.dev0", true),
        ("4.47.1", true),
        ("4.48.0", false),
        ("4.57.6", false),
        ("5.0.0", true),
    ] {
        let folder = changed(&work, version, "families/gemma", |config| {
            config["hidden_act"] = json!("gelu");
            config["transformers_version"] = json!(version);
            config.remove("rope_parameters");
            config.insert("rope_theta".to_owned(), json!(30000.0));
        });
        if is_read {
            assert_same_as(&folder, "families/gemma");
        } else {
            let out = work.path().join("refused");
            bam!("convert", folder, out).refused(2, &["read differently", "gelu_pytorch_tanh"]);
        }
    }
    let exact = changed(&work, "gemma2", "families/gemma2", |config| {
        config["hidden_activation"] = json!("gelu");
    });
    let run = bam!(
        "logits",
        fixture("families/gemma2"),
        exact,
        "--tolerance",
        "0"
    );
    assert_eq!(run.code, Some(1), "{}", run.stderr);
}

// ---------------------------------------------------------------- models with images

/// As transformers 5.24 saves them: it ties nothing where the checkpoint has a head.
#[test]
fn the_language_model_says_whether_its_head_is_tied() {
    let work = TempDir::new().unwrap();
    for family in ["mistral3", "llava"] {
        let source = format!("families/{family}");
        for (name, of_text) in [("false", json!(false)), ("null", Value::Null)] {
            let folder = changed(&work, &format!("{family}-{name}"), &source, |config| {
                config["tie_word_embeddings"] = json!(true);
                config["text_config"]["tie_word_embeddings"] = of_text;
            });
            assert_same_as(&folder, &source);
        }
        let folder = changed(&work, &format!("{family}-tied"), &source, |config| {
            config["text_config"]["tie_word_embeddings"] = json!(true);
        });
        assert_refused(
            &folder,
            &["tie_word_embeddings", "text_config.tie_word_embeddings"],
        );
    }
}

/// LLaVA 1.5 leaves out what its language model's class has as a default.
#[test]
fn sizes_that_a_text_config_leaves_out_are_those_of_its_class() {
    let work = TempDir::new().unwrap();
    let folder = changed(&work, "llava", "families/llava", |config| {
        config["text_config"] =
            json!({"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5});
    });
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let cost = bam!("cost", folder, "--json").ok().json();
    let text = cost.to_string();
    // Vicuna 7B with 64 more tokens: 6,738,415,616 + 2 · 64 · 4096 parameters.
    assert!(text.contains("6738939904"), "{text}");
}

#[test]
fn errors_about_a_language_model_name_the_key_in_the_file() {
    let work = TempDir::new().unwrap();
    let folder = changed(&work, "llava", "families/llava", |config| {
        config["text_config"]["rms_norm_eps"] = json!("small");
    });
    assert_refused(
        &folder,
        &["config.json: key `text_config.rms_norm_eps`: expected"],
    );
}

// ---------------------------------------------------------------- keys that no class can compute with

/// Each class of transformers 5 checks the list, also one that ignores it. Version 4 opens the file.
#[test]
fn an_ignored_list_of_layers_is_checked_as_transformers_5_does() {
    let work = TempDir::new().unwrap();
    let with = |name: &str, version: &str, kinds: Value| {
        changed(&work, name, "llama/seed", |config| {
            // Both spellings of rotary positions, as `convert` writes them.
            let mut scaling = config["rope_parameters"].clone();
            let theta = scaling.as_object_mut().unwrap().shift_remove("rope_theta");
            config.insert("rope_theta".to_owned(), theta.unwrap());
            config.insert("rope_scaling".to_owned(), scaling);
            config.insert("layer_types".to_owned(), kinds);
            config.insert("transformers_version".to_owned(), json!(version));
        })
    };
    let sliding = json!(["sliding_attention", "full_attention"]);
    assert_same_as(&with("known", "5.24.0", sliding), "llama/seed");
    for (number, kinds) in [json!(["sliding_attention"]), json!(["x", "x"]), json!(5)]
        .into_iter()
        .enumerate()
    {
        let name = format!("wrong-{number}");
        assert_refused(&with(&name, "5.24.0", kinds.clone()), &["`layer_types`"]);
        let old = with(&format!("old-{number}"), "4.57.1", kinds);
        assert_same_as(&old, "llama/seed");
    }
}

/// Version 5 takes null for the part, whatever is said beside the object, and stops.
#[test]
fn a_part_of_null_is_refused() {
    let work = TempDir::new().unwrap();
    for family in ["glm", "stablelm", "nemotron"] {
        let folder = changed(&work, family, &format!("families/{family}"), |config| {
            config["rope_parameters"]["partial_rotary_factor"] = Value::Null;
            config.insert("partial_rotary_factor".to_owned(), json!(0.5));
            config.shift_remove("transformers_version");
        });
        assert_refused(&folder, &["`rope_parameters.partial_rotary_factor`"]);
    }
}

#[test]
fn an_old_name_of_longrope_is_refused_with_the_new_one() {
    let work = TempDir::new().unwrap();
    let folder = changed(&work, "su", "llama/seed", |config| {
        config.shift_remove("rope_parameters");
        config.insert(
            "rope_scaling".to_owned(),
            json!({"type": "su", "factor": 2.0}),
        );
    });
    assert_refused(&folder, &["found su", "write `longrope`"]);
}

/// A BAM's own norm decides which of the two keys counts.
#[test]
fn a_bam_may_have_the_keys_of_both_norms() {
    let work = TempDir::new().unwrap();
    for (seed, other) in [("llama", "layer_norm_eps"), ("cohere", "rms_norm_eps")] {
        let out = work.path().join(seed);
        let seed = fixture(format!("{seed}/seed"));
        let same = format!("same={}", seed.display());
        bam!(
            "upcycle", "--method", "bam", "--seed", seed, "--expert", same, "--top-k", "soft",
            "--out", out
        )
        .ok();
        edit_json(&out.join("config.json"), |config| {
            config[other] = json!(0.5);
        });
        bam!("logits", seed, out, "--tolerance", "1e-5").ok();
    }
}

/// transformers 4 fails on a longrope without a factor, so that a file of that version means nothing that it computes.
#[test]
fn a_longrope_of_transformers_4_without_a_factor_is_refused() {
    let work = TempDir::new().unwrap();
    let folder = changed(&work, "longrope", "mistral/seed", |config| {
        config.insert("transformers_version".to_owned(), json!("4.57.6"));
        config.insert(
            "rope_scaling".to_owned(),
            json!({
                "rope_type": "longrope", "original_max_position_embeddings": 8,
                "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 3.0, 4.0, 5.0],
            }),
        );
    });
    assert_refused(&folder, &["transformers 4 and 5 compute differently"]);
}
