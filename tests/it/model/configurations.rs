//! Odd configurations: what transformers computes, or a refusal.
//!
//! `fixtures/configs.json`, by `fixtures/make_configs.py`, has for each family some 350 changes of its config.json and what
//! transformers 5 and 4.57.1 make of each. Our model must compute the same, and so must the mixture that an upcycling of the
//! altered model with itself as expert describes. What is refused although transformers computes it is listed in the snapshots.
//! The logits of the exported `modeling_bam.py` are compared by `tests/live/configs.py`.

use std::collections::BTreeMap;
use std::path::Path;

use bam_convert::family::{Architecture, Config, Mixture, output};
use bam_convert::model::{CausalLm, Forward, LoadOptions, Mode, Weights};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{fixture, golden_tokens, run};
use crate::common::{bam, copy_folder, edit_json, read_json};

const POSITIONS: [usize; 2] = [7, 15];
const COLUMNS: [usize; 4] = [3, 100, 201, 383];

/// Logits at the positions and columns of the golden file.
type Values = Vec<f64>;

/// One altered configuration of a family.
struct Case {
    config: Map<String, Value>,
    name: String,
    base: Values,
    five: Option<Values>,
    four: Option<Values>,
}

fn cases(family: &str) -> Vec<Case> {
    let all: Value =
        serde_json::from_slice(&std::fs::read(fixture("configs.json")).unwrap()).unwrap();
    let rows = all.as_array().unwrap().iter();
    let rows = rows
        .map(|rows| rows.as_array().unwrap())
        .find(|rows| rows[0]["family"] == family)
        .unwrap();
    let (config, base) = (rows[0]["config"].as_object().unwrap(), &rows[0]["base"]);
    let values = |found: &Value| {
        let found = if found == "base" { base } else { found };
        serde_json::from_value::<Values>(found.clone()).ok()
    };
    let case = |row: &Value| {
        let mut changed = config.clone();
        for key in row["drop"].as_array().into_iter().flatten() {
            changed.shift_remove(key.as_str().unwrap());
        }
        changed.extend(row["set"].as_object().cloned().unwrap_or_default());
        let mut name = row.clone();
        let about = name.as_object_mut().unwrap();
        about.shift_remove("five");
        about.shift_remove("four");
        Case {
            config: changed,
            name: name.to_string(),
            base: values(base).unwrap(),
            five: values(&row["five"]),
            four: values(row.get("four").unwrap_or(&row["five"])),
        }
    };
    rows[1..].iter().map(case).collect()
}

impl Case {
    /// What our model must compute, unless it refuses. If the versions disagree, the version that wrote the file counts, or
    /// the other if that one fails. Version 4 counts if the file names none. If neither computes anything, a value that
    /// changes nothing may be passed over, such as a null for a key whose default is meant.
    fn expected(&self) -> &Values {
        let version = self
            .config
            .get("transformers_version")
            .and_then(Value::as_str);
        let by_five = version.is_some_and(|version| version.starts_with('5'));
        let (of_writer, other) = if by_five {
            (&self.five, &self.four)
        } else {
            (&self.four, &self.five)
        };
        of_writer.as_ref().or(other.as_ref()).unwrap_or(&self.base)
    }

    /// Whether any version computes something.
    fn computes(&self) -> bool {
        self.five.is_some() || self.four.is_some()
    }
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

fn computed(folder: &Path) -> bam_convert::Result<Values> {
    let options = LoadOptions {
        mode: Mode::Train,
        weights: Weights::Widened,
        ..LoadOptions::default()
    };
    let model = CausalLm::load(folder, &options)?;
    let tokens = golden_tokens();
    let longest = model.architecture().max_position_embeddings;
    if longest.is_some_and(|longest| longest < tokens.len() as u64) {
        return Err(bam_convert::Error::compute(
            "run the model",
            "the tokens are too many",
        ));
    }
    let logits = run(&model, &tokens, &Forward::default());
    let values = POSITIONS
        .iter()
        .flat_map(|position| COLUMNS.map(|column| logits[*position][column]));
    let values: Values = values.collect();
    assert!(values.iter().all(|value| value.is_finite()));
    Ok(values)
}

/// The config.json of the mixture of a model with itself, all experts for every token: it computes what the model computes.
fn of_mixture(folder: &Path) -> Map<String, Value> {
    let config = Config::read(folder).unwrap();
    let dense = Architecture::of(&config).unwrap();
    let mixture = dense.mixture.clone().unwrap_or(Mixture {
        num_experts_per_tok: 2,
        ..Mixture::new(&dense, 2)
    });
    output(&dense, &config, mixture, "bam").unwrap().config
}

fn sweep(family: &str) {
    let mixture = fixture("mixtures").join(family);
    let dense = !mixture.is_dir();
    let source = if dense {
        fixture(family).join("seed")
    } else {
        mixture
    };
    let work = TempDir::new().unwrap();
    let (altered, made) = (work.path().join("altered"), work.path().join("made"));
    if dense {
        let expert = format!("x={}", source.display());
        bam!(
            "upcycle", "--method", "bam", "--seed", source, "--expert", expert, "--top-k", "soft",
            "--out", made
        )
        .ok();
    } else {
        bam!("convert", source, made, "--to", "bam").ok();
    }
    std::fs::create_dir(&altered).unwrap();
    std::fs::copy(
        source.join("model.safetensors"),
        altered.join("model.safetensors"),
    )
    .unwrap();
    let (mut wrong, mut refused) = (Vec::new(), Vec::new());
    let mut mixtures: BTreeMap<String, Values> = BTreeMap::new();
    for case in cases(family) {
        std::fs::write(altered.join("config.json"), json!(case.config).to_string()).unwrap();
        let found = match computed(&altered) {
            Ok(found) => found,
            Err(error) => {
                if case.computes() {
                    let message = error.to_string().replace(&*altered.to_string_lossy(), "");
                    refused.push(format!("{}\n    {message}", case.name));
                }
                continue;
            }
        };
        let off = difference(&found, case.expected());
        if off >= 1e-4 {
            wrong.push(format!("{}: {off}", case.name));
        }
        // Most changes lead to few mixtures.
        let config = json!(of_mixture(&altered)).to_string();
        let of_made = match mixtures.get(&config) {
            Some(values) => Ok(Values::clone(values)),
            None => {
                std::fs::write(made.join("config.json"), &config).unwrap();
                computed(&made)
            }
        };
        if let Ok(values) = &of_made {
            mixtures.insert(config, values.clone());
        }
        match of_made {
            Ok(of_made) if difference(&found, &of_made) < 1e-4 => {}
            Ok(of_made) => wrong.push(format!(
                "{}: the mixture differs by {}",
                case.name,
                difference(&found, &of_made)
            )),
            Err(error) => wrong.push(format!("{}: the mixture is refused: {error}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{family}:\n{}", wrong.join("\n"));
    insta::assert_snapshot!(format!("refused_{family}"), refused.join("\n"));
}

#[test]
fn odd_llama_configs() {
    sweep("llama");
}

#[test]
fn odd_mistral_configs() {
    sweep("mistral");
}

#[test]
fn odd_qwen2_configs() {
    sweep("qwen2");
}

#[test]
fn odd_qwen3_configs() {
    sweep("qwen3");
}

#[test]
fn odd_cohere_configs() {
    sweep("cohere");
}

#[test]
fn odd_mixtral_configs() {
    sweep("mixtral");
}

#[test]
fn odd_qwen2_moe_configs() {
    sweep("qwen2_moe");
}

#[test]
fn odd_qwen3_moe_configs() {
    sweep("qwen3_moe");
}

#[test]
fn odd_olmoe_configs() {
    sweep("olmoe");
}

#[test]
fn odd_flex_olmo_configs() {
    sweep("flex_olmo");
}

#[test]
fn odd_granitemoe_configs() {
    sweep("granitemoe");
}

#[test]
fn odd_granitemoeshared_configs() {
    sweep("granitemoeshared");
}

#[test]
fn odd_ernie4_5_moe_configs() {
    sweep("ernie4_5_moe");
}

#[test]
fn odd_cohere2_moe_configs() {
    sweep("cohere2_moe");
}

#[test]
fn odd_hunyuan_v1_moe_configs() {
    sweep("hunyuan_v1_moe");
}

/// What upcycle and validate accept, the models can run; what they cannot is refused by all.
#[test]
fn rope_kinds_through_the_binary() {
    let work = TempDir::new().unwrap();
    let seed = copy_folder(&fixture("mistral/seed"), &work.path().join("seed"));
    let out = work.path().join("out");
    let lists = json!({"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 5.0, 9.0]});
    let set = |scaling: &Value| {
        edit_json(&seed.join("config.json"), |config| {
            config["rope_scaling"] = scaling.clone();
            if scaling["rope_type"] == "longrope" {
                config["rope_scaling"]
                    .as_object_mut()
                    .unwrap()
                    .extend(lists.as_object().unwrap().clone());
            }
        });
    };
    let expert = format!("x={}", seed.display());
    for scaling in [
        json!(null),
        json!({"type": "linear", "factor": 4.0}),
        json!({"rope_type": "dynamic", "factor": 2.0}),
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}),
        json!({"rope_type": "longrope", "attention_factor": 1.2}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16}),
    ] {
        set(&scaling);
        bam!(
            "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--top-k", "soft",
            "--out", out, "--force"
        )
        .ok();
        bam!("validate", out, "--against").ok();
        bam!("logits", seed, out, "--tolerance", "1e-5").ok();
    }
    for (scaling, parts) in [
        (
            json!({"rope_type": "llama4", "factor": 2.0}),
            ["rope_scaling.rope_type", "found llama4"],
        ),
        (
            json!({"rope_type": "dynamic"}),
            ["rope_scaling.factor", "is missing"],
        ),
        (
            json!({"rope_type": "yarn", "factor": 2.0, "truncate": null}),
            ["rope_scaling.truncate", "true or false"],
        ),
    ] {
        set(&scaling);
        bam!(
            "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", out,
            "--force"
        )
        .refused(2, &parts);
        let run = bam!("validate", seed);
        assert_eq!(run.code, Some(1), "{run}");
        assert!(parts.iter().all(|part| run.stdout.contains(part)), "{run}");
        bam!("generate", seed, "--prompt", "a").refused(2, &parts);
    }
}

/// A key of another family changes nothing, and a note names it.
#[test]
fn keys_of_other_families_are_left_out_with_a_note() {
    let work = TempDir::new().unwrap();
    let seed = copy_folder(&fixture("mistral/seed"), &work.path().join("seed"));
    edit_json(&seed.join("config.json"), |config| {
        (config["use_sliding_window"], config["sliding_window"]) = (json!(false), json!(5));
        (config["norm_type"], config["logit_scale"]) = (json!("layer"), json!(0.5));
    });
    let (out, expert) = (work.path().join("out"), format!("x={}", seed.display()));
    let run = bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--top-k", "soft",
        "--out", out
    )
    .ok();
    assert!(
        run.stderr
            .contains("left out: use_sliding_window, norm_type, logit_scale"),
        "{run}"
    );
    let config = read_json(out.join("config.json"));
    assert_eq!(
        (&config["sliding_window"], &config["norm_type"]),
        (&json!(5), &json!("rms"))
    );
    assert!(config.get("use_sliding_window").is_none() && config.get("logit_scale").is_none());
    bam!("logits", seed, out, "--tolerance", "1e-5").ok();
}

/// The default of Cohere's `rope_theta` is another in transformers 5: a mixture says what was taken, and a note says why.
#[test]
fn a_default_of_the_version_that_wrote_the_file() {
    for (version, theta) in [
        (json!("4.57.1"), 10_000.0),
        (json!("5.24.0"), 500_000.0),
        (json!(null), 10_000.0),
    ] {
        let work = TempDir::new().unwrap();
        let seed = copy_folder(&fixture("cohere/seed"), &work.path().join("seed"));
        edit_json(&seed.join("config.json"), |config| {
            let config = config.as_object_mut().unwrap();
            config.shift_remove("rope_parameters");
            config.insert("transformers_version".to_owned(), version.clone());
        });
        let (out, expert) = (work.path().join("out"), format!("x={}", seed.display()));
        let run = bam!(
            "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", out
        )
        .ok();
        assert!(run.stderr.contains("`rope_theta` is not said"), "{run}");
        let config = read_json(out.join("config.json"));
        assert_eq!(config["rope_theta"], theta);
        assert_eq!(config["rope_parameters"]["rope_theta"], theta);
    }
}
