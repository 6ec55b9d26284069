//! Bad input: a refusal that names file, tensor or key and both values; no file left, no source touched.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{
    Run, Tensor, bam, contents, copy_folder, edit_json, edit_tensors, finish, fixture, listing,
    read_folder, read_json, run,
};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

/// A folder with `seed/` and an expert `code/` that a test spoils.
pub struct Bench {
    work: TempDir,
}

impl Bench {
    pub fn new(family: &str) -> Self {
        let work = TempDir::new().unwrap();
        for name in ["seed", "code"] {
            copy_folder(&fixture(family).join(name), &work.path().join(name));
        }
        Self { work }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// An upcycling of `seed/` and `code/` into `out/`.
    pub fn upcycle(&self, flags: &[&str]) -> Vec<OsString> {
        self.by("bam", flags)
    }

    fn by(&self, method: &str, flags: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ["upcycle", "--method", method, "--seed"]
            .map(Into::into)
            .to_vec();
        arguments.extend([self.path("seed").into(), "--expert".into()]);
        arguments.push(format!("code={}", self.path("code").display()).into());
        if !flags.contains(&"--out") {
            arguments.extend(["--out".into(), self.path("out").into()]);
        }
        arguments.extend(flags.iter().map(Into::into));
        arguments
    }

    /// Runs what must be refused, and asserts that the folder is as it was.
    #[track_caller]
    pub fn refused(&self, arguments: Vec<OsString>, code: i32, parts: &[&str]) -> Run {
        let before = listing(self.work.path());
        let run = run(arguments).refused(code, parts);
        assert_eq!(
            listing(self.work.path()),
            before,
            "something was left or touched\n{run}"
        );
        run
    }

    /// The usual upcycling, refused; `--dry-run` must say the same before anything is written.
    #[track_caller]
    pub fn expert_refused(&self, parts: &[&str]) {
        self.refused(self.upcycle(&[]), 2, parts);
        self.refused(self.upcycle(&["--dry-run"]), 2, parts);
        self.refused(self.by("btx", &[]), 2, parts);
    }

    fn config(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        edit_json(&self.path("code/config.json"), edit);
    }
}

fn constant(shape: &[usize]) -> Tensor {
    Tensor::new(Dtype::BF16, shape, &vec![0.5; shape.iter().product()])
}

const LAYER: &str = "model.layers.1";

// ---------------------------------------------------------------- experts that do not fit

#[test]
fn another_feed_forward_width() {
    let bench = Bench::new("llama");
    bench.config(|config| config["intermediate_size"] = json!(64));
    edit_tensors(&bench.path("code"), |tensors| {
        for l in 0..2 {
            for part in ["gate_proj", "up_proj"] {
                tensors.insert(
                    format!("model.layers.{l}.mlp.{part}.weight"),
                    constant(&[64, 32]),
                );
            }
            tensors.insert(
                format!("model.layers.{l}.mlp.down_proj.weight"),
                constant(&[32, 64]),
            );
        }
    });
    bench.expert_refused(&[
        "code/config.json",
        "`intermediate_size`",
        "64",
        "48",
        "seed/config.json",
        "hint:",
    ]);
}

#[test]
fn weights_of_another_width_than_the_config_says() {
    let bench = Bench::new("llama");
    edit_tensors(&bench.path("code"), |tensors| {
        tensors.insert(format!("{LAYER}.mlp.up_proj.weight"), constant(&[64, 32]));
    });
    bench.expert_refused(&[
        "code/model.safetensors",
        &format!("`{LAYER}.mlp.up_proj.weight`"),
        "[64, 32]",
        "[48, 32]",
    ]);
}

#[test]
fn fewer_and_more_layers() {
    let bench = Bench::new("llama");
    bench.config(|config| config["num_hidden_layers"] = json!(1));
    edit_tensors(&bench.path("code"), |tensors| {
        tensors.retain(|name, _| !name.starts_with(LAYER))
    });
    bench.expert_refused(&["code/config.json", "`num_hidden_layers`", "is 1,", "has 2"]);

    let bench = Bench::new("llama");
    bench.config(|config| config["num_hidden_layers"] = json!(3));
    edit_tensors(&bench.path("code"), |tensors| {
        let third: Vec<_> = tensors
            .iter()
            .filter(|(name, _)| name.starts_with(LAYER))
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect();
        tensors.extend(
            third
                .into_iter()
                .map(|(name, tensor)| (name.replace(LAYER, "model.layers.2"), tensor)),
        );
    });
    bench.expert_refused(&["code/config.json", "`num_hidden_layers`", "is 3,", "has 2"]);
}

#[test]
fn layers_that_the_config_hides_or_promises() {
    let bench = Bench::new("llama");
    bench.config(|config| config["num_hidden_layers"] = json!(1));
    bench.expert_refused(&[
        "code/model.safetensors",
        "`model.layers.1.",
        "it would be lost",
    ]);

    let bench = Bench::new("llama");
    bench.config(|config| config["num_hidden_layers"] = json!(3));
    bench.expert_refused(&["code", "`model.layers.2.", "is missing"]);
}

#[test]
fn numbers_that_only_python_writes() {
    for word in ["NaN", "Infinity", "-Infinity"] {
        let bench = Bench::new("llama");
        let path = bench.path("code/config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let key = "\"initializer_range\": 0.02";
        assert!(text.contains(key));
        let line = text.lines().position(|line| line.contains(key)).unwrap() + 1;
        std::fs::write(
            &path,
            text.replace(key, &format!("\"initializer_range\": {word}")),
        )
        .unwrap();
        let line = format!("line {line}:");
        bench.expert_refused(&[
            "code/config.json",
            &line,
            &format!("JSON has no {word},"),
            "Python",
        ]);
    }
}

/// One reason that names what the file is, rather than each tensor that is missing.
#[test]
fn names_of_another_module() {
    let renamed = |rename: &dyn Fn(&str) -> String, parts: &[&str]| {
        let bench = Bench::new("llama");
        edit_tensors(&bench.path("code"), |tensors| {
            let old = std::mem::take(tensors);
            tensors.extend(
                old.into_iter()
                    .map(|(name, tensor)| (rename(&name), tensor)),
            );
        });
        bench.expert_refused(parts);
        let code = bench.path("code");
        let run = bam!("validate", code);
        assert_eq!(run.code, Some(1), "{run}");
        assert!(
            parts[1..].iter().all(|part| run.stdout.contains(part)),
            "{run}"
        );
        bam!("generate", code, "--prompt", "a").refused(2, parts);
    };
    renamed(
        &|name| format!("module.{name}"),
        &[
            "model.safetensors",
            "`module.model.embed_tokens.weight`",
            "found `module.` before it",
        ],
    );
    renamed(
        &|name| format!("language_model.{name}"),
        &["model.safetensors", "found `language_model.` before it"],
    );
    renamed(
        &|name| name.replace("model.", ""),
        &[
            "model.safetensors",
            "`embed_tokens.weight`",
            "found it without `model.`",
        ],
    );
    renamed(
        &|name| name.replace("model.", "transformer."),
        &[
            "model.safetensors",
            "`transformer.embed_tokens.weight`",
            "expected the name `model.embed_tokens.weight`",
        ],
    );
}

#[test]
fn a_classifier() {
    let bench = Bench::new("llama");
    bench.config(|config| config["architectures"] = json!(["LlamaForSequenceClassification"]));
    edit_tensors(&bench.path("code"), |tensors| {
        tensors.insert("score.weight".to_owned(), constant(&[2, 32]));
    });
    bench.expert_refused(&[
        "model.safetensors",
        "`score.weight`",
        "head of a sequence classifier",
        "ForCausalLM",
    ]);
}

#[test]
fn biases() {
    let bench = Bench::new("llama");
    let add = |tensors: &mut crate::common::Tensors| {
        for l in 0..2 {
            for (part, size) in [("q", 32), ("k", 16), ("v", 16), ("o", 32)] {
                tensors.insert(
                    format!("model.layers.{l}.self_attn.{part}_proj.bias"),
                    constant(&[size]),
                );
            }
        }
    };
    edit_tensors(&bench.path("code"), add);
    // The config does not say so: nothing may be dropped in silence.
    bench.expert_refused(&["code/model.safetensors", "_proj.bias`", "attention_bias"]);
    bench.config(|config| config["attention_bias"] = json!(true));
    bench.expert_refused(&["code/config.json", "`attention_bias`", "true", "false"]);
}

#[test]
fn another_vocabulary() {
    let bench = Bench::new("llama");
    bench.config(|config| config["vocab_size"] = json!(390));
    edit_tensors(&bench.path("code"), |tensors| {
        tensors.insert("model.embed_tokens.weight".to_owned(), constant(&[390, 32]));
    });
    bench.expert_refused(&["code/config.json", "`vocab_size`", "390", "384"]);
}

#[test]
fn another_tokenizer() {
    let bench = Bench::new("llama");
    edit_json(&bench.path("code/tokenizer.json"), |tokenizer| {
        let vocabulary = &mut tokenizer["model"]["vocab"];
        (vocabulary["a"], vocabulary["b"]) = (vocabulary["b"].clone(), vocabulary["a"].clone());
    });
    bench.expert_refused(&[
        "code/tokenizer.json",
        "`model.vocab`",
        "\"a\"",
        "seed/tokenizer.json",
    ]);

    let bench = Bench::new("llama");
    edit_json(&bench.path("code/tokenizer.json"), |tokenizer| {
        tokenizer["added_tokens"][0]["content"] = json!("<|other|>")
    });
    bench.expert_refused(&[
        "code/tokenizer.json",
        "`added_tokens`",
        "<|other|>",
        "<|endoftext|>",
    ]);

    // Padding and truncation are no part of what makes ids: not refused.
    let bench = Bench::new("llama");
    edit_json(&bench.path("code/tokenizer.json"), |tokenizer| {
        tokenizer["truncation"] =
            json!({"max_length": 8, "stride": 0, "strategy": "LongestFirst", "direction": "Right"});
    });
    run(bench.upcycle(&[])).ok();
}

#[test]
fn tokenizers_in_other_files_are_compared_or_named() {
    // None at all.
    let bench = Bench::new("llama");
    std::fs::remove_file(bench.path("code/tokenizer.json")).unwrap();
    let run_of = |bench: &Bench| run(bench.upcycle(&["--force"])).ok();
    let seen = run_of(&bench);
    assert!(
        seen.stderr
            .contains("code has no tokenizer, and seed has its tokenizer in tokenizer.json"),
        "{seen}"
    );
    // In a format that is not read.
    std::fs::write(bench.path("code/tokenizer.model"), "sentences").unwrap();
    let seen = run_of(&bench);
    assert!(
        seen.stderr
            .contains("code has its tokenizer in tokenizer.model"),
        "{seen}"
    );
    // The same vocabulary in a file of its own.
    let vocabulary = read_json(bench.path("seed/tokenizer.json"))["model"]["vocab"].clone();
    std::fs::write(bench.path("code/vocab.json"), vocabulary.to_string()).unwrap();
    let seen = run_of(&bench);
    assert!(!seen.stderr.contains("compared"), "{seen}");
    // Another one.
    edit_json(&bench.path("code/vocab.json"), |vocabulary| {
        (vocabulary["a"], vocabulary["b"]) = (vocabulary["b"].clone(), vocabulary["a"].clone());
    });
    bench.expert_refused(&["code/vocab.json", "\"a\"", "seed/tokenizer.json"]);
}

#[test]
fn a_token_without_an_embedding_is_named() {
    let bench = Bench::new("llama");
    for name in ["seed", "code"] {
        edit_json(&bench.path(name).join("tokenizer.json"), |tokenizer| {
            tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": 384, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            }));
        });
    }
    let seen = run(bench.upcycle(&[])).ok();
    assert!(seen.stderr.contains("token id 384 (\"<pad>\")"), "{seen}");
    let text = bench.path("text.txt");
    std::fs::write(&text, "a b c").unwrap();
    let seed = bench.path("seed");
    let tokens = bench.path("tokens");
    let seen = bam!(
        "tokenize",
        text,
        "--tokenizer",
        seed,
        "--validation",
        "0",
        "--out",
        tokens
    )
    .ok();
    assert!(
        seen.stderr.contains("ids up to 384") && seen.stderr.contains("is 384"),
        "{seen}"
    );
    let data = format!("x={}", tokens.display());
    let trained = bench.path("trained");
    bam!(
        "train", seed, "--data", data, "--steps", "1", "--seq", "2", "--out", trained
    )
    .refused(2, &["385", "384"]);
    bam!("generate", seed, "--prompt", "a").refused(2, &["tokenizer.json", "384"]);
    let seen = bam!("validate", bench.path("out"));
    assert!(
        seen.code == Some(1) && seen.stdout.contains("has the token id 384"),
        "{seen}"
    );
}

#[test]
fn other_positions_norms_and_heads() {
    let cases: [(&str, fn(&mut serde_json::Value), &[&str]); 7] = [
        (
            "llama",
            |c| c["rope_parameters"]["rope_theta"] = json!(10000.0),
            &["`rope_theta`", "10000", "500000"],
        ),
        (
            "qwen2",
            |c| c["rope_theta"] = json!(10000.0),
            &["`rope_theta`", "10000", "200000"],
        ),
        (
            "llama",
            |c| c["rope_parameters"]["factor"] = json!(4.0),
            &["`rope_scaling`", "\"factor\":4.0", "\"factor\":8.0"],
        ),
        (
            "qwen2",
            |c| c["rope_scaling"] = json!({"type": "linear", "factor": 2.0}),
            &["`rope_scaling`", "linear", "null"],
        ),
        (
            "llama",
            |c| c["rms_norm_eps"] = json!(1e-6),
            &["`rms_norm_eps`", "1e-6", "0.00001"],
        ),
        (
            "cohere",
            |c| c["logit_scale"] = json!(0.25),
            &["`logit_scale`", "0.25", "0.0625"],
        ),
        // Half as many heads of twice the size: every tensor keeps its shape.
        (
            "llama",
            |c| {
                (
                    c["num_attention_heads"],
                    c["num_key_value_heads"],
                    c["head_dim"],
                ) = (json!(2), json!(1), json!(16))
            },
            &["`num_attention_heads`", "is 2,", "has 4"],
        ),
    ];
    for (family, edit, parts) in cases {
        let bench = Bench::new(family);
        bench.config(edit);
        bench.expert_refused(&[&["code/config.json"], parts].concat());
    }
}

#[test]
fn windows_in_other_layers() {
    for (key, of_code) in [
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        ("max_window_layers", json!(1)),
    ] {
        let bench = Bench::new("qwen2");
        for model in ["seed", "code"] {
            edit_json(&bench.path(model).join("config.json"), |c| {
                (c["use_sliding_window"], c["sliding_window"]) = (json!(true), json!(8));
                (c["layer_types"], c["max_window_layers"]) = (json!(null), json!(0));
            });
        }
        run(bench.upcycle(&["--dry-run"])).ok();
        bench.config(|c| c[key] = of_code);
        bench.expert_refused(&["code/config.json", "`layer_types`", "is [1]", "has \"all\""]);
    }
}

#[test]
fn other_key_value_heads() {
    let bench = Bench::new("llama");
    bench.config(|config| config["num_key_value_heads"] = json!(4));
    edit_tensors(&bench.path("code"), |tensors| {
        for l in 0..2 {
            for part in ["k", "v"] {
                tensors.insert(
                    format!("model.layers.{l}.self_attn.{part}_proj.weight"),
                    constant(&[32, 32]),
                );
            }
        }
    });
    bench.expert_refused(&[
        "code/config.json",
        "`num_key_value_heads`",
        "is 4,",
        "has 2",
    ]);
}

#[test]
fn tied_and_untied_embeddings() {
    let bench = Bench::new("llama");
    bench.config(|config| config["tie_word_embeddings"] = json!(false));
    edit_tensors(&bench.path("code"), |tensors| {
        let head = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_owned(), head);
    });
    bench.expert_refused(&["code/config.json", "`tie_word_embeddings`", "false", "true"]);

    // Tied by the config, but the stored head is another matrix.
    bench.config(|config| config["tie_word_embeddings"] = json!(true));
    run(bench.upcycle(&["--dry-run"])).ok();
    edit_tensors(&bench.path("code"), |tensors| {
        tensors.get_mut("lm_head.weight").unwrap().bytes[1] ^= 1
    });
    bench.expert_refused(&[
        "code/model.safetensors",
        "`lm_head.weight`",
        "tie_word_embeddings",
    ]);
}

#[test]
fn llama_and_mistral_mixed() {
    let bench = Bench::new("llama");
    std::fs::remove_dir_all(bench.path("code")).unwrap();
    copy_folder(&fixture("mistral/code"), &bench.path("code"));
    bench.expert_refused(&[
        "code/config.json",
        "`model_type`",
        "\"mistral\"",
        "\"llama\"",
    ]);
}

#[test]
fn a_mixture_as_seed() {
    let bench = Bench::new("llama");
    run(bench.upcycle(&[])).ok();
    let arguments = [
        "upcycle", "--method", "bam", "--expert", "x=random", "--seed",
    ]
    .map(OsString::from)
    .to_vec();
    let arguments = [
        arguments,
        vec![
            bench.path("out").into(),
            "--out".into(),
            bench.path("again").into(),
        ],
    ]
    .concat();
    bench.refused(arguments, 2, &["out", "mixture"]);
}

// ---------------------------------------------------------------- values and files

#[test]
fn not_a_number_and_infinity() {
    for (value, spelled) in [
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
        (f64::NEG_INFINITY, "-inf"),
    ] {
        // One tensor that is copied, one that is averaged.
        for name in ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"] {
            let bench = Bench::new("llama");
            edit_tensors(&bench.path("code"), |tensors| {
                let tensor = tensors.get_mut(name).unwrap();
                tensor.bytes[2 * 17..2 * 18]
                    .copy_from_slice(&crate::common::round(Dtype::BF16, value));
            });
            let parts = [
                "code/model.safetensors",
                &format!("`{name}`"),
                "17",
                spelled,
            ];
            bench.refused(bench.upcycle(&[]), 2, &parts);
            bench.refused(
                bench.upcycle(&["--max-shard-size", "9KB", "--threads", "3"]),
                2,
                &parts,
            );
            // Folders that would have been made for the output go too.
            let deep = bench.path("new/deeper/out");
            bench.refused(bench.upcycle(&["--out", deep.to_str().unwrap()]), 2, &parts);
        }
    }
}

#[test]
fn a_truncated_shard() {
    let bench = Bench::new("llama");
    std::fs::remove_dir_all(bench.path("code")).unwrap();
    let code = copy_folder(&fixture("llama_sharded/seed"), &bench.path("code"));
    let shard = code.join("model-00003-of-00004.safetensors");
    let file = File::options().write(true).open(&shard).unwrap();
    file.set_len(file.metadata().unwrap().len() - 5).unwrap();
    bench.expert_refused(&["code/model-00003-of-00004.safetensors", "bytes", "hint:"]);

    std::fs::remove_file(&shard).unwrap();
    bench.expert_refused(&["model-00003-of-00004.safetensors", "missing"]);
}

#[test]
fn two_models_in_one_folder() {
    let bench = Bench::new("llama");
    std::fs::copy(
        bench.path("code/model.safetensors"),
        bench.path("code/model-00001-of-00001.safetensors"),
    )
    .unwrap();
    bench.refused(bench.upcycle(&[]), 2, &["code"]);
    let bench = Bench::new("llama");
    for name in contents(&fixture("llama_sharded/seed"))
        .keys()
        .filter(|name| name.starts_with("model-"))
    {
        std::fs::copy(
            fixture("llama_sharded/seed").join(name),
            bench.path("code").join(name),
        )
        .unwrap();
    }
    bench.refused(bench.upcycle(&[]), 2, &["code", "model.safetensors"]);
}

#[test]
fn missing_and_wrong_paths() {
    let bench = Bench::new("llama");
    let nowhere = bench.path("nowhere");
    for arguments in [
        vec!["inspect".into(), nowhere.clone().into()],
        vec![
            "convert".into(),
            nowhere.clone().into(),
            bench.path("out").into(),
        ],
        vec![
            "branch".into(),
            nowhere.clone().into(),
            "--into".into(),
            "a".into(),
            "--out".into(),
            bench.path("out").into(),
        ],
        vec![
            "merge".into(),
            "--model".into(),
            nowhere.clone().into(),
            "--out".into(),
            bench.path("out").into(),
        ],
        vec![
            "init".into(),
            nowhere.clone().into(),
            "--out".into(),
            bench.path("out").into(),
        ],
        vec!["cost".into(), nowhere.clone().into()],
        vec![
            "upcycle".into(),
            "--method".into(),
            "btx".into(),
            "--seed".into(),
            nowhere.into(),
            "--expert".into(),
            "a=random".into(),
            "--out".into(),
            bench.path("out").into(),
        ],
    ] {
        let run = bench.refused(arguments, 2, &["nowhere", "No such file"]);
        assert_eq!(run.stderr.matches("No such file").count(), 1, "{run}");
    }
    // A file where a folder is meant, and a folder without weights.
    let file: OsString = bench.path("seed/model.safetensors").into();
    let arguments = [
        "merge".into(),
        "--model".into(),
        file,
        "--out".into(),
        bench.path("out").into(),
    ]
    .to_vec();
    bench.refused(arguments, 2, &["seed/model.safetensors", "folder"]);
    std::fs::remove_file(bench.path("code/model.safetensors")).unwrap();
    bench.refused(bench.upcycle(&[]), 2, &["code", "model.safetensors"]);
    std::fs::write(bench.path("code/pytorch_model.bin"), "pickle").unwrap();
    bench.refused(bench.upcycle(&[]), 2, &["code/pytorch_model.bin"]);
}

// ---------------------------------------------------------------- requests

#[test]
fn requests_that_make_no_sense() {
    let bench = Bench::new("llama");
    let cases: [(&[&str], &[&str]); 19] = [
        (&["--sed", "x"], &["--sed", "--seed"]),
        (&["--router", "normel"], &["normel", "`normal`"]),
        (&["--router", "orthogonl:1"], &["orthogonl", "`orthogonal`"]),
        (&["--router", "normal:-1"], &["normal", "-1"]),
        (
            &["--router", "zeros", "--top-k", "1"],
            &["--router zeros", "hint:"],
        ),
        (
            &["--router=zeros", "--attention-router=normal", "--top-k=1"],
            &["--router zeros"],
        ),
        (
            &["--norm-topk-prob", "true", "--preset", "paper"],
            &["--norm-topk-prob true", "--top-k 1"],
        ),
        (&["--top-k", "3"], &["--top-k 3", "2 experts"]),
        (&["--top-k", "0"], &["--top-k"]),
        (
            &["--attention-top-k", "3"],
            &["--attention-top-k 3", "2 experts"],
        ),
        (&["--shared-kv", "seed"], &["--shared-kv", "--kv shared"]),
        (&["--router-dtype", "i8"], &["i8", "bf16"]),
        (
            &["--expert", "code=random"],
            &["the expert name `code` is taken", "taken are code"],
        ),
        (
            &["--expert", "seed=random"],
            &["`seed` is reserved for the seed itself"],
        ),
        (
            &["--expert", "router file=random"],
            &["`router file` is reserved for the rows of routers"],
        ),
        (&["--expert", "nameless"], &["NAME=DIR", "nameless"]),
        (&["--memory", "1KB"], &["--memory", "hint:"]),
        (&["--kv", "shred"], &["shred", "shared"]),
        (&["--preset", "papr"], &["papr", "paper"]),
    ];
    for (flags, parts) in cases {
        bench.refused(bench.upcycle(flags), 2, parts);
    }
    let btx = |flag: &str, value: &str| {
        bench.refused(bench.by("btx", &[flag, value]), 2, &[flag, "btx"]);
    };
    btx("--kv", "shared");
    btx("--attention-top-k", "1");
    btx("--attention-router", "zeros");
    let missing = format!("file:{}", bench.path("rows.safetensors").display());
    bench.refused(
        bench.upcycle(&["--router", &missing]),
        2,
        &["rows.safetensors"],
    );
}

#[test]
fn long_values_of_a_configuration_are_cut_in_messages() {
    let bench = Bench::new("llama");
    for (model, factor) in [("seed", 4.0), ("code", 8.0)] {
        edit_json(&bench.path(model).join("config.json"), |config| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config["rope_theta"] = 10000.0.into();
            config["rope_scaling"] = json!({
                "rope_type": "yarn", "factor": factor, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.25,
                "original_max_position_embeddings": 128,
            });
        });
    }
    let run = bench.refused(
        bench.upcycle(&[]),
        2,
        &[
            "key `rope_scaling`",
            "\"factor\":8.0",
            "\"factor\":4.0",
            "…",
        ],
    );
    let message = run.stderr.lines().next().unwrap();
    let places = [bench.path("seed"), bench.path("code")];
    let places: usize = places.iter().map(|path| path.as_os_str().len()).sum();
    assert!(message.chars().count() < places + 260, "{message}");
}

#[test]
fn requests_of_the_other_commands() {
    let bench = Bench::new("llama");
    let (seed, out) = (bench.path("seed"), bench.path("out"));
    let (seed, out) = (seed.to_str().unwrap(), out.to_str().unwrap());
    let zero = (
        format!("{seed}:1"),
        format!("{}:-1", bench.path("code").display()),
    );
    let cases: [(&[&str], &[&str]); 9] = [
        (&["convert", seed, out, "--dtype", "i32"], &["i32"]),
        (
            &["convert", seed, out, "--dtype", "bfloat15"],
            &["bfloat15"],
        ),
        (&["branch", seed, "--into", "a,a", "--out", out], &["`a`"]),
        (&["branch", seed, "--into", "../a", "--out", out], &["../a"]),
        (&["branch", seed, "--into", ".a", "--out", out], &[".a"]),
        (
            &[
                "merge", "--model", &zero.0, "--model", &zero.1, "--out", out,
            ],
            &["weights", "sum 0"],
        ),
        (&["merge", "--model", "x:nan", "--out", out], &["nan"]),
        (&["cost", seed, "--experts", "0"], &["--experts"]),
        (&["inspct", seed], &["inspct", "inspect"]),
    ];
    for (arguments, parts) in cases {
        bench.refused(arguments.iter().map(Into::into).collect(), 2, parts);
    }
}

// ---------------------------------------------------------------- the target

#[test]
fn an_existing_output_needs_force() {
    let bench = Bench::new("llama");
    run(bench.upcycle(&[])).ok();
    let before = listing(&bench.path("out"));
    bench.refused(
        bench.upcycle(&["--rng-seed", "1"]),
        2,
        &["out", "exists already", "--force"],
    );
    let preview = run(bench.upcycle(&["--rng-seed", "1", "--dry-run"]))
        .ok()
        .stdout;
    assert!(
        preview.contains("refused now") && preview.contains("exists already"),
        "{preview}"
    );
    run(bench.upcycle(&["--rng-seed", "1", "--force"])).ok();
    assert_ne!(listing(&bench.path("out")), before);
    assert_eq!(
        read_json(bench.path("out/bam-manifest.json"))["settings"]["rng_seed"],
        1
    );
    let names: Vec<String> = listing(bench.work.path())
        .into_keys()
        .filter(|name| name.contains("partial") || name.contains("replaced"))
        .collect();
    assert!(names.is_empty(), "{names:?}");

    // A run that fails under --force leaves the old output as it was.
    edit_tensors(&bench.path("code"), |tensors| {
        tensors.get_mut("model.norm.weight").unwrap().bytes[..2].fill(0xff)
    });
    bench.refused(
        bench.upcycle(&["--force"]),
        2,
        &["`model.norm.weight`", "NaN"],
    );
}

#[test]
fn force_replaces_checkpoints_only() {
    let bench = Bench::new("llama");
    std::fs::create_dir(bench.path("out")).unwrap();
    std::fs::write(bench.path("out/thesis.tex"), "years of work").unwrap();
    bench.refused(
        bench.upcycle(&["--force"]),
        2,
        &["out", "neither a checkpoint"],
    );
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    std::fs::write(bench.path("out"), "a file").unwrap();
    bench.refused(
        bench.upcycle(&["--force"]),
        2,
        &["out", "neither a checkpoint"],
    );
}

#[test]
fn force_keeps_what_somebody_has_put_into_an_output() {
    let bench = Bench::new("llama");
    run(bench.upcycle(&[])).ok();
    // A card that was edited is replaced with its checkpoint.
    std::fs::write(bench.path("out/README.md"), "edited").unwrap();
    run(bench.upcycle(&["--force"])).ok();
    let whole = listing(&bench.path("out"));

    let deeds: [(&str, &dyn Fn(&Path)); 5] = [
        ("notes.txt", &|path| std::fs::write(path, "mine").unwrap()),
        (".git", &|path| {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("HEAD"), "ref: refs/heads/main").unwrap();
        }),
        ("empty", &|path| std::fs::create_dir(path).unwrap()),
        ("link", &|path| {
            std::os::unix::fs::symlink("/etc/hostname", path).unwrap()
        }),
        // A name that the manifest lists, but for a file.
        ("config.json", &|path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("notes.txt"), "mine").unwrap();
        }),
    ];
    for (name, deed) in deeds {
        deed(&bench.path("out").join(name));
        let before = listing(&bench.path("out"));
        bench.refused(
            bench.upcycle(&["--force"]),
            2,
            &["out: holds files", name, "hint: move them"],
        );
        let preview = run(bench.upcycle(&["--force", "--dry-run"])).ok().stdout;
        assert!(preview.contains("refused now"), "{preview}");
        assert_eq!(listing(&bench.path("out")), before);
        let path = bench.path("out").join(name);
        match path.is_dir() && !path.is_symlink() {
            true => std::fs::remove_dir_all(&path).unwrap(),
            false => std::fs::remove_file(&path).unwrap(),
        }
    }
    for number in 0..7 {
        std::fs::write(bench.path(&format!("out/mine-{number}")), "").unwrap();
    }
    let stderr = run(bench.upcycle(&["--force"]))
        .refused(2, &["mine-0, mine-1, mine-2, mine-3, mine-4 and more"])
        .stderr;
    assert!(!stderr.contains("mine-5"), "{stderr}");
    for number in 0..7 {
        std::fs::remove_file(bench.path(&format!("out/mine-{number}"))).unwrap();
    }
    // What killed runs leave is ours; a missing file is nobody's.
    std::fs::write(bench.path("out/.lock"), "").unwrap();
    std::fs::write(bench.path("out/.bam-manifest.json.partial"), "{").unwrap();
    run(bench.upcycle(&["--force"])).ok();
    assert_eq!(listing(&bench.path("out")), whole);

    // Without a record nothing is ours, whatever it looks like; an empty folder has nothing to lose.
    std::fs::remove_file(bench.path("out/bam-manifest.json")).unwrap();
    bench.refused(
        bench.upcycle(&["--force"]),
        2,
        &["out", "neither a checkpoint", "no bam-manifest.json"],
    );
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    std::fs::create_dir(bench.path("out")).unwrap();
    run(bench.upcycle(&["--force"])).ok();
    std::fs::write(bench.path("out/bam-manifest.json"), "{").unwrap();
    bench.refused(bench.upcycle(&["--force"]), 2, &["bam-manifest.json"]);
    assert!(bench.path("out/model.safetensors").exists());
}

#[test]
fn an_output_inside_a_source_or_around_it() {
    let bench = Bench::new("llama");
    std::os::unix::fs::symlink(bench.path("seed"), bench.path("link")).unwrap();
    for out in [
        "seed/out",
        "code/deep/out",
        "code",
        "link/out",
        "seed/../code/out",
    ] {
        let out = bench.path(out);
        bench.refused(
            bench.upcycle(&["--out", out.to_str().unwrap(), "--force"]),
            2,
            &["overlap", "hint:"],
        );
    }
    let around = bench.work.path().to_str().unwrap();
    bench.refused(
        bench.upcycle(&["--out", around, "--force"]),
        2,
        &["overlap"],
    );
    for command in ["convert", "merge", "branch"] {
        let (seed, inside) = (bench.path("seed"), bench.path("seed/out"));
        let (seed, inside) = (seed.to_str().unwrap(), inside.to_str().unwrap());
        let arguments: Vec<&str> = match command {
            "convert" => vec![command, seed, inside],
            "merge" => vec![command, "--model", seed, "--out", inside],
            _ => vec![command, seed, "--into", "a", "--out", seed],
        };
        bench.refused(
            arguments.into_iter().map(Into::into).collect(),
            2,
            &["overlap"],
        );
    }
    let file = bench.path("seed/model.safetensors");
    let arguments = vec![
        "convert".into(),
        file.clone().into(),
        file.into(),
        "--force".into(),
    ];
    bench.refused(arguments, 2, &["model.safetensors"]);
}

#[test]
fn a_target_that_cannot_be_written() {
    let bench = Bench::new("llama");
    std::fs::write(bench.path("file"), "").unwrap();
    let below = bench.path("file/out");
    bench.refused(
        bench.upcycle(&["--out", below.to_str().unwrap()]),
        2,
        &["file"],
    );
    bench.refused(bench.upcycle(&["--out", "/proc/out"]), 3, &["/proc"]);
}

#[test]
fn a_disk_that_is_full() {
    let bench = Bench::new("llama");
    // Found out before anything is written.
    let config = bench.path("huge.json");
    let huge = json!({
        "model_type": "llama", "hidden_size": 65536, "intermediate_size": 1 << 30, "num_hidden_layers": 100,
        "num_attention_heads": 512, "vocab_size": 1 << 30, "rms_norm_eps": 1e-5, "torch_dtype": "float32", "hidden_act": "silu",
    });
    std::fs::write(&config, huge.to_string()).unwrap();
    let arguments = vec![
        "init".into(),
        config.into(),
        "--out".into(),
        bench.path("out").into(),
    ];
    bench.refused(
        arguments.clone(),
        3,
        &["out", "needs up to", "free", "hint:"],
    );

    // Found out while writing: no file may grow past 20 KiB (the mixture's weights take 84 KiB).
    for flags in [&[][..], &["--max-shard-size", "10KB"], &["--threads", "1"]] {
        let before = listing(bench.work.path());
        let mut command = Command::new("bash");
        command
            .args(["-c", "ulimit -f 20; trap '' XFSZ; exec \"$@\"", "bash"])
            .arg(crate::common::binary());
        command.args(bench.upcycle(flags));
        finish(command).refused(3, &["cannot write", "model", "File too large"]);
        assert_eq!(listing(bench.work.path()), before);
    }
    // The same for the files beside the weights.
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -f 10; trap '' XFSZ; exec \"$@\"", "bash"])
        .arg(crate::common::binary());
    command.args(bench.upcycle(&["--max-shard-size", "4KB"]));
    let before = listing(bench.work.path());
    finish(command).refused(3, &["File too large"]);
    assert_eq!(listing(bench.work.path()), before);
}

#[test]
fn two_runs_into_one_target() {
    let bench = Bench::new("llama");
    let partial = bench.path(".out.partial");
    std::fs::create_dir(&partial).unwrap();
    let lock = File::create(partial.join(".lock")).unwrap();
    lock.try_lock().unwrap();
    std::fs::write(partial.join("model.safetensors"), "work of the other run").unwrap();
    bench.refused(bench.upcycle(&[]), 2, &["out", "another run"]);
    bench.refused(bench.upcycle(&["--force"]), 2, &["out", "another run"]);
    drop(lock);
    run(bench.upcycle(&[])).ok();
    assert!(!partial.exists());

    // Started one after the other while the first ends: whatever the others find, what it has made stays whole.
    let expected = listing(&bench.path("out"));
    let start = |flags: &[&str]| {
        let mut command = Command::new(crate::common::binary());
        command
            .args(bench.upcycle(flags))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    for flags in [&[][..], &[], &[], &["--force"], &["--force"]] {
        if flags.is_empty() {
            std::fs::remove_dir_all(bench.path("out")).unwrap();
        }
        let mut runs = vec![start(flags)];
        while runs[0].try_wait().unwrap().is_none() && runs.len() < 40 {
            runs.push(start(flags));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let outcomes: Vec<_> = runs
            .into_iter()
            .map(|run| run.wait_with_output().unwrap())
            .collect();
        let won = outcomes
            .iter()
            .filter(|outcome| outcome.status.code() == Some(0))
            .count();
        assert!(
            won == 1 || (won > 1 && !flags.is_empty()),
            "{won} runs won: {outcomes:?}"
        );
        for outcome in &outcomes {
            assert!(
                [Some(0), Some(2)].contains(&outcome.status.code()),
                "{outcome:?}"
            );
        }
        assert_eq!(listing(&bench.path("out")), expected);
        let left: Vec<String> = listing(bench.work.path())
            .into_keys()
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Of several runs that write one file at once, one wins.
#[test]
fn two_runs_into_one_file() {
    let bench = Bench::new("llama");
    for (to, out) in [("gguf", "out.gguf"), ("npz", "out.npz")] {
        let arguments: Vec<OsString> = vec![
            "convert".into(),
            bench.path("seed").into(),
            bench.path(out).into(),
            "--to".into(),
            to.into(),
        ];
        let partial = bench.path(&format!(".{out}.partial"));
        let lock = File::create(&partial).unwrap();
        lock.try_lock().unwrap();
        std::fs::write(&partial, "work of the other run").unwrap();
        run(arguments.clone()).refused(2, &[out, "another run is writing", "hint:"]);
        assert_eq!(std::fs::read(&partial).unwrap(), b"work of the other run");
        drop(lock);
        let runs: Vec<_> = (0..6)
            .map(|_| {
                let mut command = Command::new(crate::common::binary());
                command.args(&arguments).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        let mut won = 0;
        for run in runs {
            let outcome = run.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&outcome.stderr);
            match outcome.status.code() {
                Some(0) => won += 1,
                code => assert!(
                    code == Some(2)
                        && (stderr.contains("another run") || stderr.contains("exists already")),
                    "{stderr}"
                ),
            }
        }
        assert_eq!(won, 1);
        assert!(!partial.exists());
    }
    // A planted link, folder or pipe is not written through, and nobody waits for it.
    let out = bench.path("link.gguf");
    let arguments: Vec<OsString> = vec![
        "convert".into(),
        bench.path("seed").into(),
        out.clone().into(),
        "--to".into(),
        "gguf".into(),
    ];
    let partial = bench.path(".link.gguf.partial");
    std::fs::write(bench.path("victim"), "mine").unwrap();
    std::os::unix::fs::symlink(bench.path("victim"), &partial).unwrap();
    bench.refused(arguments.clone(), 2, &[".link.gguf.partial", "in the way"]);
    assert_eq!(std::fs::read(bench.path("victim")).unwrap(), b"mine");
    std::fs::remove_file(&partial).unwrap();
    std::fs::create_dir(&partial).unwrap();
    bench.refused(arguments, 2, &[".link.gguf.partial", "in the way"]);
}

/// Pages, drawings and dumps of other programs are not replaced, and a pipe keeps nobody waiting.
#[test]
fn only_files_of_our_own_formats_are_replaced() {
    let bench = Bench::new("llama");
    let seed = bench.path("seed");
    let out = bench.path("page.html");
    std::fs::write(&out, "<!doctype html>\n<title>Mine</title>").unwrap();
    bam!("report", seed, "--out", out).refused(2, &["page.html", "no report of bam-convert"]);
    std::fs::remove_file(&out).unwrap();
    bam!("report", seed, "--out", out).ok();
    bam!("report", seed, "--out", out).ok();
    let pipe = bench.path("pipe.svg");
    let mut command = Command::new("mkfifo");
    command.arg(&pipe);
    finish(command).ok();
    bam!(
        "inspect",
        "--divergence",
        seed,
        bench.path("code"),
        "--svg",
        pipe
    )
    .refused(2, &["pipe.svg", "is no SVG"]);
    std::os::unix::fs::symlink("nowhere", bench.path("dangling.svg")).unwrap();
    bam!(
        "inspect",
        "--divergence",
        seed,
        bench.path("code"),
        "--svg",
        bench.path("dangling.svg")
    )
    .refused(2, &["dangling.svg", "is no SVG"]);
}

#[test]
fn branch_makes_all_branches_or_none() {
    let bench = Bench::new("llama");
    let out = bench.path("branches");
    let into = |names: &str, flags: &[&str]| {
        let mut arguments: Vec<OsString> = vec![
            "branch".into(),
            bench.path("seed").into(),
            "--into".into(),
            names.into(),
        ];
        arguments.extend(["--out".into(), out.clone().into()]);
        arguments.extend(flags.iter().map(Into::into));
        arguments
    };
    let arguments = |flags: &[&str]| into("code,law", flags);
    run(into("law", &[])).ok();
    bench.refused(arguments(&[]), 2, &["branches/law", "exists already"]);
    let preview = run(arguments(&["--dry-run"])).ok().stdout;
    assert!(
        preview.contains("refused now") && preview.contains("branches/law: exists already"),
        "{preview}"
    );
    run(arguments(&["--force"])).ok();
    assert!(read_folder(&out.join("law")) == read_folder(&bench.path("seed")));
}

#[test]
fn quiet_keeps_the_error() {
    let run = bam!("--quiet", "inspect", fixture("nowhere")).refused(2, &["nowhere"]);
    assert!(run.stdout.is_empty());
    assert!(!run.stderr.contains("panicked") && Path::new(&fixture("llama")).exists());
}
