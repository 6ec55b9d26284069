//! `--config FILE`: the command's own settings, and mergekit's files. What mergekit 0.1.5 itself makes of the files in
//! `fixtures/mergekit/` is in `golden.json` and `linear*.safetensors` there; `fixtures/make_mergekit.py` made them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{
    Run, Tensors, assert_same_folder, assert_same_tensor, bam, binary, copy_folder, edit_json,
    edit_tensors, finish, fixture, read_file, read_folder, read_json, round, sha256,
};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

/// A folder to work in, with a file of settings.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a command with `text` as its file, in the root of the repository.
    fn run(&self, command: &str, text: &str, more: &[&str]) -> Run {
        let file = self.path("settings.yaml");
        std::fs::write(&file, text).unwrap();
        configured(command, &file, &self.path("out"), more)
    }

    fn upcycle(&self, text: &str, more: &[&str]) -> Run {
        self.run("upcycle", text, more)
    }

    fn merge(&self, text: &str, more: &[&str]) -> Run {
        self.run("merge", text, more)
    }

    fn settings(&self) -> serde_json::Value {
        read_json(self.path("out/bam-manifest.json"))["settings"].clone()
    }
}

fn configured(command: &str, file: &Path, out: &Path, more: &[&str]) -> Run {
    let mut line = Command::new(binary());
    line.env("HF_HUB_OFFLINE", "1");
    line.current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg(command)
        .arg("--config")
        .arg(file);
    if !out.as_os_str().is_empty() {
        line.arg("--out").arg(out);
    }
    finish({
        line.args(more);
        line
    })
}

fn mergekit(name: &str) -> PathBuf {
    fixture("mergekit").join(name)
}

const OWN: &str = "method: btx\nseed: fixtures/llama/seed\nexpert: {code: fixtures/llama/code, law: fixtures/llama/law}\ntop-k: 2\nrng-seed: 3\n";

// ---------------------------------------------------------------- our own settings

#[test]
fn a_file_says_what_flags_say() {
    let bench = Bench::new();
    bench.upcycle(OWN, &[]).ok();
    let [seed, code, law] = ["seed", "code", "law"].map(|name| format!("fixtures/llama/{name}"));
    let flags = bench.path("flags");
    let mut line = Command::new(binary());
    line.current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["upcycle", "--method", "btx", "--seed", &seed]);
    line.args([
        "--expert",
        &format!("code={code}"),
        "--expert",
        &format!("law={law}"),
    ]);
    line.args(["--top-k", "2", "--rng-seed", "3", "--out"])
        .arg(&flags);
    finish(line).ok();
    assert_same_folder(&bench.path("out"), &flags);
}

#[test]
fn a_target_on_the_command_line_holds_what_no_output_of_mergekit_does() {
    let bench = Bench::new();
    let (file, out) = (bench.path("moe.yaml"), bench.path("out"));
    let mut text = format!(
        "base_model: {}\ngate_mode: random\nexperts:\n",
        fixture("cohere/seed").display()
    );
    for expert in ["code", "law"] {
        let model = fixture("cohere").join(expert);
        text += &format!("- source_model: {}\n", model.display());
        text += "  positive_prompts: [\"a\"]\n";
    }
    std::fs::write(&file, text).unwrap();

    let run = bam!("upcycle", "--config", file, "--out", out, "-q");
    run.refused(2, &["no output holds experts of `cohere` models"]);
    bam!(
        "upcycle", "--config", file, "--method", "bam", "--target", "bam", "--out", out, "-q"
    )
    .ok();
    bam!("validate", out).ok();
}

#[test]
fn flags_win_and_lists_are_replaced_whole() {
    let bench = Bench::new();
    let text = format!("{OWN}no-seed-expert: true\nforce: false\n");
    bench
        .upcycle(
            &text,
            &[
                "--top-k",
                "1",
                "--expert",
                "math=fixtures/llama/law",
                "--rest=seed",
                "-q",
            ],
        )
        .ok();
    let settings = bench.settings();
    assert_eq!(settings["experts"], json!(["math"]));
    assert_eq!(
        (&settings["top_k"], &settings["rest"], &settings["rng_seed"]),
        (&json!(1), &json!("seed"), &json!(3))
    );
    // The flag may come first, and in one word.
    let mut line = Command::new(binary());
    line.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "-q",
        "upcycle",
        "--dry-run",
        "--json",
        "--out",
        "none",
    ]);
    line.arg(format!(
        "--config={}",
        bench.path("settings.yaml").display()
    ));
    assert_eq!(finish(line).ok().json()["method"], "btx");
}

#[test]
fn the_folder_of_the_file_has_a_name() {
    let bench = Bench::new();
    for name in ["a", "b"] {
        copy_folder(&fixture("qwen2/seed"), &bench.path(name));
    }
    bench
        .merge(
            "model: [\"${config}/a\", \"${config}/b:0.5\"]\nout: \"${config}/out\"\nforce: true\n",
            &[],
        )
        .ok();
    crate::common::against(bench.path("out")).ok();
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let bench = Bench::new();
    let cases: &[(&str, &[&str])] = &[
        (
            "method: btx\ntopk: 2\n",
            &[
                "settings.yaml:2:1: key `topk`",
                "nearest known key is `top-k`",
            ],
        ),
        (
            "top-k:\n  zero\n",
            &["settings.yaml:2:3", "expected `soft` or a positive number"],
        ),
        (
            "seed: [a, b]\n",
            &["settings.yaml:1:7", "takes one value, found 2"],
        ),
        (
            "rest: most\n",
            &["settings.yaml:1:7", "invalid value 'most'", "mean, seed"],
        ),
        ("config: other.yaml\n", &["settings.yaml:1:1: key `config`"]),
        (
            "seed: \"${confg}/x\"\n",
            &[
                "settings.yaml:1:7",
                "no variable is named `confg`",
                "`config`",
            ],
        ),
        (
            "just words\n",
            &[
                "settings.yaml:1:1",
                "expected settings of `upcycle`, found a single value",
            ],
        ),
        ("a: [1\n", &["settings.yaml:", "not YAML that can be read"]),
        (
            "base_model: a\n---\nbase_model: b\n",
            &["settings.yaml:3:", "multiple YAML documents detected\n"],
        ),
        (
            &"[".repeat(100_000),
            &["settings.yaml:1:", "recursion limit"],
        ),
        (
            "base_model: {model: a}\nexperts: []\n",
            &["settings.yaml", "expected string", "line 1"],
        ),
        ("method: btx\n", &["--seed <DIR>"]),
        (
            "merge_method: linear\nmodels: []\n",
            &["mergekit-yaml", "bam-convert merge --config"],
        ),
    ];
    for (text, parts) in cases {
        bench.upcycle(text, &[]).refused(2, parts);
    }
    // Of a file of mergekit, the nearest key is one of mergekit's.
    for (text, parts) in [
        (
            "base_modle: a\nexperts: []\n",
            [
                "settings.yaml:1:1: key `base_modle`: is not known",
                "the nearest key of mergekit-moe's files is `base_model`",
            ],
        ),
        (
            "experts: []\ngate_mod: hidden\n",
            [
                "settings.yaml:2:1: key `gate_mod`",
                "the nearest key of mergekit-moe's files is `gate_mode`",
            ],
        ),
        (
            "gate_mode: hidden\nexperts: []\n",
            [
                "settings.yaml:1:1: key `gate_mode`: is a key of mergekit-moe, whose files also have `base_model`",
                "add `base_model`",
            ],
        ),
    ] {
        bench.upcycle(text, &[]).refused(2, &parts);
    }
    // A target that cannot hold the mixture is the first thing that is said.
    let (prompts, shared) = ("positive_prompts: [a]", "shared_experts");
    let text = [
        "base_model: fixtures/qwen2/seed\nexperts:\n",
        &format!("- source_model: fixtures/qwen2/code\n  {prompts}\n"),
        &format!(
            "- source_model: fixtures/qwen2/law\n  {}\n",
            prompts.replace("[a]", "[b]")
        ),
        &format!("{shared}:\n- source_model: fixtures/qwen2/seed\n  {prompts}\n"),
    ];
    bench
        .upcycle(&text.concat(), &["--target", "mixtral"])
        .refused(2, &["mixtral cannot hold this mixture", "shared expert"]);
    bench
        .merge("merge_metod: linear\nmodels: []\n", &[])
        .refused(
            2,
            &["the nearest key of mergekit-yaml's files is `merge_method`"],
        );
    configured("upcycle", &bench.path("none.yaml"), &bench.path("out"), &[])
        .refused(2, &["none.yaml"]);
    bench
        .merge("base_model: x\nexperts: []\n", &[])
        .refused(2, &["mergekit-moe", "bam-convert upcycle --config"]);
    assert!(!bench.path("out").exists());
}

// ---------------------------------------------------------------- mergekit-moe

/// Our tensors under the names that mergekit gives them, experts apart.
fn as_mergekit_names(tensors: Tensors) -> Tensors {
    let renamed = |name: String| {
        let parts = [
            ("block_sparse_moe", "mlp"),
            (".w1.", ".gate_proj."),
            (".w2.", ".down_proj."),
            (".w3.", ".up_proj."),
        ];
        parts
            .iter()
            .fold(name, |name, (ours, theirs)| name.replace(ours, theirs))
    };
    tensors
        .into_iter()
        .map(|(name, tensor)| (renamed(name), tensor))
        .collect()
}

/// Compares the mixture of a file with mergekit's: every tensor by its hash, and router rows within a tolerance.
fn assert_is_mergekits(name: &str) {
    let bench = Bench::new();
    let out = bench.path("out");
    configured("upcycle", &mergekit(&format!("{name}.yaml")), &out, &[]).ok();
    let golden = &read_json(mergekit("golden.json"))[name];
    let tensors = as_mergekit_names(read_folder(&out));
    let expected = golden["tensors"].as_object().unwrap();
    let mut differing = Vec::new();
    for (tensor, hash) in expected {
        let found = tensors
            .get(tensor)
            .unwrap_or_else(|| panic!("{name}: {tensor} is missing"));
        if sha256(&found.bytes) != *hash {
            differing.push(tensor.as_str());
        }
    }
    assert!(differing.is_empty(), "{name}: {differing:?}");
    for (router, rows) in golden["routers"].as_object().unwrap() {
        let found = &tensors[router];
        // mergekit computes hidden states in bfloat16, ours in float32; embeddings are added up in float32 by both.
        let tolerance = if name.contains("cheap") { 1e-6 } else { 0.008 };
        let rows: Vec<f64> = rows
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap())
            .map(|v| v.as_f64().unwrap())
            .collect();
        let worst = found
            .values()
            .iter()
            .zip(&rows)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(
            found.values().len() == rows.len() && worst <= tolerance,
            "{name}: {router} is {worst} apart"
        );
    }
    let routers = tensors.keys().filter(|name| {
        name.ends_with("mlp.gate.weight") || name.ends_with("shared_expert_gate.weight")
    });
    assert_eq!(
        tensors.len(),
        expected.len() + routers.count(),
        "{name}: tensors that mergekit has not"
    );
    crate::common::against(&out).ok();
}

#[test]
fn mixtral_of_llama() {
    assert_is_mergekits("mixtral-hidden");
}

#[test]
fn mixtral_of_mistral_with_one_expert_twice_in_another_dtype() {
    assert_is_mergekits("mixtral-cheap-embed");
}

#[test]
fn qwen3_moe() {
    assert_is_mergekits("qwen3-hidden-avg");
}

#[test]
fn qwen2_moe_with_its_shared_expert() {
    assert_is_mergekits("qwen2-hidden-last");
}

#[test]
fn qwen2_moe_of_llama() {
    assert_is_mergekits("qwen-of-llama");
}

#[test]
fn a_factor_on_the_residual_stream() {
    assert_is_mergekits("mixtral-scales");
}

const MOE: &str = "base_model: fixtures/llama/seed\ngate_mode: random\nexperts:\n- source_model: fixtures/llama/code\n- source_model: fixtures/llama/law\n";

#[test]
fn what_mergekit_does_and_ours_does_not_is_refused_by_name() {
    let bench = Bench::new();
    let with = |line: &str| format!("{MOE}{line}\n");
    let expert = |line: &str| format!("{MOE}- {line}\n");
    let shared = "shared_experts:\n- source_model: fixtures/llama/seed\n";
    let cases: Vec<(String, &[&str])> = vec![
        (
            with("experts_per_tokn: 4"),
            &[
                "settings.yaml:6:1: key `experts_per_tokn`",
                "`experts_per_token`",
            ],
        ),
        (
            expert("source_modle: fixtures/llama/code"),
            &["settings.yaml:6:3: key `source_modle`", "`source_model`"],
        ),
        (
            with("experts_per_token: 3"),
            &[
                "settings.yaml:6:",
                "expected 1 to 2, the number of experts, found 3",
            ],
        ),
        (
            with("experts_per_token: 1"),
            &[
                "mixtral cannot hold",
                "always renormalises",
                "`bam` holds it",
            ],
        ),
        (
            with("architecture: deepseek"),
            &[
                "settings.yaml:6:",
                "DeepSeek-MoE",
                "`architecture: mixtral`",
            ],
        ),
        (
            with(shared),
            &[
                "settings.yaml:7:",
                "key `shared_experts`",
                "DeepSeek-MoE",
                "`architecture: qwen`",
            ],
        ),
        (
            with("architecture: qwen3"),
            &["settings.yaml:6:", "no output holds experts of `llama`"],
        ),
        (
            with("architecture: mixtrall"),
            &["settings.yaml:6:", "`Mixtral`", "found `mixtrall`"],
        ),
        (with("dtype: bf17"), &["settings.yaml:6:", "bfloat16"]),
        (
            with(&format!("{shared}- source_model: fixtures/llama/law")),
            &["settings.yaml:7:", "at most one, found 2"],
        ),
        (
            with("architecture: qwen\nshared_experts:\n- source_model: fixtures/mistral/seed"),
            &[
                "settings.yaml:8:",
                "neither base_model nor among the experts",
            ],
        ),
        (
            expert("source_model: fixtures/llama/code+adapter"),
            &["settings.yaml:6:", "no folder `adapter`"],
        ),
        (
            expert("source_model: ./mistral"),
            &["settings.yaml:6:", "no folder `./mistral`", "org/name"],
        ),
        (
            expert("source_model: mistralai/Mistral-7B"),
            &["hf://mistralai/Mistral-7B", "HF_HUB_OFFLINE"],
        ),
        (
            MOE.replace("random", "hiden"),
            &["settings.yaml:2:", "found `hiden`", "`hidden`"],
        ),
        (
            MOE.replace("random", "hiden")
                .replace("- source_model: fixtures/llama/law\n", ""),
            &["settings.yaml:2:", "key `gate_mode`", "found `hiden`"],
        ),
        (
            MOE.replace("random", "hidden"),
            &["settings.yaml:4:", "positive_prompts", "gate_mode: random"],
        ),
        (
            MOE.replace("fixtures/llama/law", "fixtures/mistral/law"),
            &["model_type", "mistral", "llama"],
        ),
        (
            "base_model: fixtures/llama/seed\nexperts: []\n".to_owned(),
            &["settings.yaml:2:", "at least one expert"],
        ),
    ];
    for (text, parts) in cases {
        bench.upcycle(&text, &[]).refused(2, parts);
    }
}

#[test]
fn what_mergekit_loses_silently_is_said_or_refused() {
    let bench = Bench::new();
    let edited = |edit: &dyn Fn(&Path)| {
        let folder = bench.path("edited");
        let _ = std::fs::remove_dir_all(&folder);
        copy_folder(&fixture("llama/code"), &folder);
        edit(&folder);
        MOE.replace("fixtures/llama/code", folder.to_str().unwrap())
    };
    // NaN in an expert.
    let text = edited(&|folder| {
        edit_tensors(folder, |tensors| {
            let tensor = tensors
                .get_mut("model.layers.1.mlp.up_proj.weight")
                .unwrap();
            tensor.bytes[4..6].copy_from_slice(&[0xc0, 0x7f]);
        });
    });
    bench
        .upcycle(&text, &[])
        .refused(2, &["model.layers.1.mlp.up_proj.weight", "NaN"]);
    // An expert with more layers than the base.
    let text = edited(&|folder| {
        edit_json(&folder.join("config.json"), |config| {
            config["num_hidden_layers"] = json!(3)
        })
    });
    bench.upcycle(&text, &[]).refused(2, &["layers.2"]);
    // Biases, for which Mixtral has no place.
    let text = MOE.replace("fixtures/llama/seed", "fixtures/llama_bias/seed");
    let text = text
        .replace("fixtures/llama/code", "fixtures/llama_bias/seed")
        .replace("fixtures/llama/law", "fixtures/llama_bias/seed");
    bench
        .upcycle(&text, &[])
        .refused(2, &["mixtral cannot hold", "biases"]);
    // Another vocabulary: its embeddings are not used, so it can be an expert, with a note.
    let text = edited(&|folder| {
        edit_json(&folder.join("config.json"), |config| {
            config["vocab_size"] = json!(386)
        });
        edit_tensors(folder, |tensors| {
            let embedding = tensors.get_mut("model.embed_tokens.weight").unwrap();
            embedding.shape[0] = 386;
            embedding.bytes.extend([0; 2 * 2 * 32]);
        });
    });
    let said = bench.upcycle(&text, &[]).ok().stderr;
    assert!(said.contains("vocab_size is 386, the seed's 384"), "{said}");
    // Gates of N(0, 1).
    assert!(
        said.contains("N(0, 0.02²)") && said.contains("--router normal:1"),
        "{said}"
    );
    assert_eq!(bench.settings()["router"], "normal:0.02");
}

#[test]
fn other_gates_and_flags_beside_the_file() {
    let bench = Bench::new();
    let text = MOE
        .replace("random", "uniform_random")
        .replace("code\n", "code\n  positive_prompts: [x]\n");
    let said = bench
        .upcycle(
            &text,
            &[
                "--router-dtype",
                "f32",
                "--top-k",
                "1",
                "--norm-topk-prob",
                "false",
                "--target",
                "bam",
            ],
        )
        .ok()
        .stderr;
    assert!(said.contains("the prompts are not used"), "{said}");
    let routers = read_folder(&bench.path("out"));
    let rows = routers["model.layers.0.mlp.router.weight"].values();
    let bound = 1.0 / 32f64.sqrt();
    assert!(
        rows.iter().all(|value| value.abs() <= bound)
            && rows.iter().any(|value| value.abs() > 0.8 * bound)
    );
    // The same file makes a BAM.
    bench
        .upcycle(
            &text,
            &[
                "--method", "bam", "--target", "bam", "--force", "--router", "normal:1",
            ],
        )
        .ok();
    let settings = bench.settings();
    assert_eq!(
        (&settings["method"], &settings["router"]),
        (&json!("bam"), &json!("normal:1"))
    );
    // Noise and factors by the name of the expert.
    let scaled = text.replace(
        "- source_model: fixtures/llama/law\n",
        "- source_model: fixtures/llama/law\n  noise_scale: 0.01\n  residual_scale: 2\n",
    );
    bench.upcycle(&scaled, &["--target", "bam", "--force"]).ok();
    crate::common::against(bench.path("out")).ok();
    let (out, law) = (
        read_folder(&bench.path("out")),
        read_folder(&fixture("llama/law")),
    );
    let moved = |part: &str, factor: f64| -> f64 {
        let (found, from) = (
            &out[&format!("model.layers.1.mlp.experts.1.{part}.weight")],
            &law[&format!("model.layers.1.mlp.{part}.weight")],
        );
        let apart: Vec<f64> = found
            .values()
            .iter()
            .zip(from.values())
            .map(|(a, b)| (a / factor - b).powi(2))
            .collect();
        (apart.iter().sum::<f64>() / apart.len() as f64).sqrt()
    };
    assert!(
        (moved("up_proj", 1.0) - 0.01).abs() < 1e-3
            && (moved("down_proj", 2.0) - 0.01).abs() < 1e-3
    );
    assert_eq!(bench.settings()["residual_scale"], json!({"law": 2.0}));
    // Copies of one model are said to be.
    let said = bench
        .upcycle(&MOE.replace("law", "code"), &["--dry-run"])
        .ok()
        .stderr;
    assert!(
        said.contains("every expert is a copy of one model"),
        "{said}"
    );
}

// ---------------------------------------------------------------- mergekit-yaml

#[test]
fn averages_are_mergekits_but_for_ties() {
    for (name, weights, divisor) in [
        ("linear", &[1.0, 0.3, 0.7][..], 2.0),
        ("linear-sum", &[1.0, -0.5][..], 1.0),
    ] {
        let bench = Bench::new();
        let out = bench.path("out");
        configured("merge", &mergekit(&format!("{name}.yaml")), &out, &[]).ok();
        crate::common::against(&out).ok();
        let models: Vec<Tensors> = ["seed", "code", "law"]
            .iter()
            .map(|model| read_folder(&fixture("llama").join(model)))
            .collect();
        let (ours, theirs) = (
            read_folder(&out),
            read_file(&mergekit(&format!("{name}.safetensors"))),
        );
        assert!(ours.keys().eq(theirs.keys()));
        let (mut differing, mut all) = (0, 0);
        for (tensor, of_mergekit) in &theirs {
            let parts: Vec<Vec<f64>> = models.iter().map(|model| model[tensor].values()).collect();
            for element in 0..parts[0].len() {
                let exact = weights
                    .iter()
                    .zip(&parts)
                    .map(|(weight, part)| weight * part[element])
                    .sum::<f64>()
                    / divisor;
                let bytes = |tensor: &crate::common::Tensor| {
                    tensor.bytes[2 * element..2 * element + 2].to_vec()
                };
                let (found, expected) = (bytes(&ours[tensor]), bytes(of_mergekit));
                assert_eq!(found, round(Dtype::BF16, exact), "{tensor} {element}");
                all += 1;
                if found != expected {
                    differing += 1;
                    // mergekit's is as near to the exact sum, but for what float32 loses of its terms.
                    let [a, b] = [found, expected]
                        .map(|bytes| (crate::common::decode(Dtype::BF16, &bytes)[0] - exact).abs());
                    let terms: f64 = weights
                        .iter()
                        .zip(&parts)
                        .map(|(weight, part)| (weight * part[element]).abs())
                        .sum();
                    assert!(
                        b - a < 2e-7 * terms / divisor,
                        "{tensor} {element}: {a} {b}"
                    );
                }
            }
        }
        let expected = if name == "linear" { 140 } else { 0 };
        assert_eq!((differing, all), (expected, 27808), "{name}");
    }
}

#[test]
fn the_base_lends_configuration_and_tokenizer() {
    let bench = Bench::new();
    let text = "merge_method: linear\nbase_model: fixtures/llama/law\nmodels:\n- model: fixtures/llama/code\nparameters: {weight: 2}\n";
    let said = bench.merge(text, &[]).ok().stderr;
    assert!(
        said.contains("is added with the weight of all, 2"),
        "{said}"
    );
    let (settings, manifest) = (
        bench.settings(),
        read_json(bench.path("out/bam-manifest.json")),
    );
    assert_eq!(
        (&settings["weights"], &settings["base"]),
        (&json!([2.0, 2.0]), &json!("model-2"))
    );
    assert!(
        manifest["sources"][1]["path"]
            .as_str()
            .unwrap()
            .ends_with("llama/law"),
        "{manifest}"
    );
    // A difference of two models has weights that add up to nothing.
    let text = "merge_method: linear\nmodels:\n- model: fixtures/llama/code\n- model: fixtures/llama/seed\n  parameters: {weight: -1}\nparameters: {weight: 1, normalize: false}\n";
    bench.merge(text, &["--force", "--dtype", "f32"]).ok();
    let found = read_folder(&bench.path("out"));
    let [code, seed] = ["code", "seed"].map(|name| read_folder(&fixture("llama").join(name)));
    let name = "model.layers.0.self_attn.q_proj.weight";
    let values: Vec<f64> = code[name]
        .values()
        .iter()
        .zip(seed[name].values())
        .map(|(a, b)| a - b)
        .collect();
    assert_same_tensor(
        name,
        &found[name],
        &crate::common::Tensor::new(Dtype::F32, &found[name].shape, &values),
    );
    assert_eq!(read_json(bench.path("out/config.json"))["dtype"], "float32");
}

/// Merges that `fixtures/make_merges.py` computes in float64, and how many values mergekit takes from other values of equal
/// magnitude, as its sort is not stable. All others are equal to mergekit's or one step away.
const MERGES: [(&str, usize); 13] = [
    ("slerp", 0),
    ("task-arithmetic", 0),
    ("ties", 9),
    ("ties-rescaled", 4),
    ("dare-linear", 0),
    ("dare-ties", 0),
    ("della", 0),
    ("model-stock", 0),
    ("model-stock-rows", 0),
    ("passthrough", 0),
    ("slerp-slices", 0),
    ("task-slices", 0),
    ("ties-few", 2),
];

#[test]
fn merges_are_those_of_float64_and_of_mergekit_but_for_ties() {
    let exact = read_json(mergekit("merges.json"));
    for (name, others) in MERGES {
        let bench = Bench::new();
        let out = bench.path("out");
        configured("merge", &mergekit(&format!("{name}.yaml")), &out, &["-q"]).ok();
        crate::common::against(&out).ok();
        let theirs = read_file(&mergekit(&format!("{name}.safetensors")));
        let ours = read_folder(&out);
        assert!(ours.keys().eq(theirs.keys()));
        let (mut near, mut far, mut all) = (0, 0, 0);
        for (tensor, of_mergekit) in &theirs {
            let found = sha256(&ours[tensor].bytes);
            assert_eq!(found, exact[name][tensor], "{name} {tensor}");
            let pairs = ours[tensor].values().into_iter();
            for (a, b) in pairs.zip(of_mergekit.values()) {
                // A step of bfloat16, and what float32 loses of terms that cancel each other.
                let (apart, step) = ((a - b).abs(), b.abs() / 128.0 + 1e-6);
                near += usize::from(apart > 0.0 && apart <= step);
                far += usize::from(apart > step);
                all += 1;
            }
        }
        assert_eq!(far, others, "{name}");
        assert!(near < all / 200, "{name}: {near} of {all}");
    }
}

#[test]
fn drawn_merges_are_those_of_float64_and_replayed() {
    let exact = read_json(mergekit("merges.json"));
    for name in ["drawn-dare-linear", "drawn-dare-ties", "drawn-della"] {
        let bench = Bench::new();
        let out = bench.path("out");
        let run = |threads: &str, more: &[&str]| {
            let more = [&["-q", "--threads", threads][..], more].concat();
            configured("merge", &mergekit(&format!("{name}.yaml")), &out, &more).ok();
            read_folder(&out)
        };
        let ours = run("1", &[]);
        for (tensor, found) in &ours {
            assert_eq!(sha256(&found.bytes), exact[name][tensor], "{name} {tensor}");
        }
        assert!(ours == run("4", &["--force"]));
        crate::common::against(&out).ok();
        assert!(ours != run("4", &["--force", "--rng-seed", "1"]));
        assert_eq!(bench.settings()["rng_seed"], 1);
    }
}

#[test]
fn slices_of_flags_are_stacked() {
    let bench = Bench::new();
    let [code, law] = ["code", "law"].map(|name| format!("fixtures/llama/{name}"));
    let flags =
        format!("method: passthrough\nmodel: [{code}, {law}]\nslice: [\"1:0-1\", \"2:1\"]\n");
    bench.merge(&flags, &["-q"]).ok();
    let out = bench.path("out");
    bam!("validate", &out).ok();
    crate::common::against(&out).ok();
    assert_eq!(read_json(out.join("config.json"))["num_hidden_layers"], 3);
    let (ours, law_tensors) = (read_folder(&out), read_folder(&fixture("llama/law")));
    for part in ["mlp.up_proj", "self_attn.o_proj"] {
        let name = |layer| format!("model.layers.{layer}.{part}.weight");
        assert_same_tensor(&name(2), &ours[&name(2)], &law_tensors[&name(1)]);
    }
    for (from, to, parts) in [
        (
            "2:1",
            "2:1-2",
            &["slice 2", "layers 1 to 2", "have 2 layers"][..],
        ),
        ("2:1", "3:1", &["--slice names model 3, but there are 2"]),
        (
            "2:1",
            "2:x",
            &["expected a model and its layers, as in 1:0-7, found `2:x`"],
        ),
        ("2:1", "2:1,1:1", &["passthrough takes 1 models", "found 2"]),
        (
            "2:1",
            "2:1,1:0-1",
            &["slice 2: expected 1 layers of each model, found 2"],
        ),
        (
            "2:1",
            "2:1,2:0",
            &["slice 2: has model 2 twice", "as another model"],
        ),
    ] {
        let text = flags.replace(from, to);
        bench.merge(&text, &["--force"]).refused(2, parts);
    }
}

#[test]
fn flags_say_what_a_file_says() {
    let bench = Bench::new();
    let [seed, code, law] = ["seed", "code", "law"].map(|name| format!("fixtures/llama/{name}"));
    let models =
        format!("models:\n- model: {code}\n  parameters: {{weight: 0.5}}\n- model: {law}\n");
    let file = format!(
        "merge_method: ties\nbase_model: {seed}\n{models}parameters: {{density: [0.3, 0.6], weight: 1, lambda: 0.5}}\n"
    );
    let flags = format!(
        "method: ties\nbase: {seed}\nmodel: [\"{code}:0.5\", {law}]\ndensity: \"[0.3, 0.6]\"\nlambda: 0.5\n"
    );
    bench.merge(&file, &["-q"]).ok();
    let first = read_folder(&bench.path("out"));
    bench.merge(&flags, &["-q", "--force"]).ok();
    assert!(first == read_folder(&bench.path("out")));
    let settings = bench.settings();
    assert_eq!(
        (
            &settings["method"],
            &settings["weights"],
            &settings["density"]
        ),
        (&json!("ties"), &json!([0.5, 1.0, null]), &json!([0.3, 0.6]))
    );
    // A flag wins over the file, also over what single models have.
    let own = file.replace("{weight: 0.5}", "{weight: 0.5, density: 0.1}");
    bench
        .merge(&own, &["-q", "--force", "--density", "[0.3, 0.6]"])
        .ok();
    assert!(first == read_folder(&bench.path("out")));
    for (text, parts) in [
        (
            flags.replace("ties", "slerp"),
            &["--density has no effect", "ties"][..],
        ),
        (
            flags.replace("lambda: 0.5", "lambda: x"),
            &["--lambda", "expected a finite number"],
        ),
        (
            flags.replace("\"[0.3, 0.6]\"", "1.5"),
            &["--density", "expected a number from 0 to 1, found 1.5"],
        ),
        (
            file.replace("[0.3, 0.6]", "[-1, 1]"),
            &["`density`: expected 0 or more, found -1"],
        ),
        (
            format!("{flags}rng-seed: 1\n"),
            &["--rng-seed has no effect without --method dare_linear"],
        ),
        (
            file.replace("weight: 1,", ""),
            &["parameter `weight`: is missing"],
        ),
        (
            file.replace("lambda:", "lamda:"),
            &["settings.yaml:", "`lambda`"],
        ),
        (
            flags.replace("ties", "della").replace("[0.3, 0.6]", "0.1"),
            &[
                "`epsilon`: expected 0 or more, and `density` further than it from 0 and 1, found 0.15",
            ],
        ),
        (
            format!("method: model_stock\nbase: {seed}\nmodel: {code}\n"),
            &["model_stock takes 3 or more models", "found 2"],
        ),
        (
            flags.replace("method: ties", "method: tie"),
            &["did you mean `ties`?"],
        ),
    ] {
        bench.merge(&text, &["--force"]).refused(2, parts);
    }
}

#[test]
fn a_base_outside_of_an_average_gets_the_weight_of_all() {
    let bench = Bench::new();
    let [seed, code] = ["seed", "code"].map(|name| format!("fixtures/llama/{name}"));
    let file = format!(
        "merge_method: linear\nbase_model: {seed}\nmodels:\n- model: {code}\n  parameters: {{weight: [0.2, 0.6]}}\nparameters: {{weight: 0.3, normalize: 0}}\n"
    );
    let said = bench.merge(&file, &[]).ok().stderr;
    assert!(said.contains("is added with the weight of all"), "{said}");
    let first = read_folder(&bench.path("out"));
    let listed = file.replace(
        "parameters: {weight: 0.3",
        &format!("- model: {seed}\nparameters: {{weight: 0.3"),
    );
    bench.merge(&listed, &["-q", "--force"]).ok();
    assert!(first == read_folder(&bench.path("out")));
}

#[test]
fn what_drops_out_must_be_finite_too() {
    let bench = Bench::new();
    let law = copy_folder(&fixture("llama/law"), &bench.path("law"));
    let name = "model.layers.1.mlp.up_proj.weight";
    edit_tensors(&law, |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        tensor.bytes[4..6].copy_from_slice(&[0xc0, 0x7f]);
    });
    for method in ["dare_ties", "della", "ties"] {
        let text = format!(
            "method: {method}\nbase: fixtures/llama/seed\nmodel: [fixtures/llama/code, {}]\ndensity: 0.2\nrescale: false\n",
            law.display()
        );
        bench.merge(&text, &[]).refused(2, &[name, "NaN"]);
    }
}

#[test]
fn flags_that_differ_from_a_file_of_parameters_are_said() {
    let bench = Bench::new();
    let path = bench.path("parameters.yaml");
    let text = "merge_method: ties\nbase_model: fixtures/llama/seed\nmodels:\n- model: fixtures/llama/code\nparameters: {weight: 0.5, density: 0.5}\n";
    std::fs::write(&path, text).unwrap();
    let flags = format!(
        "method: task_arithmetic\nbase: fixtures/llama/seed\nmodel: fixtures/llama/law\nparameters: {}\n",
        path.display()
    );
    let said = bench.merge(&flags, &[]).ok().stderr;
    for part in [
        "has the method ties; --method task_arithmetic wins",
        "model 1 is fixtures/llama/code",
        "parameters without effect on the method task_arithmetic, as in mergekit: density",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn other_merges_are_refused_by_name() {
    let bench = Bench::new();
    let models = "models:\n- model: fixtures/llama/code\n  parameters: {weight: 1}\n";
    let linear = format!("merge_method: linear\n{models}");
    let with = |line: &str| format!("{linear}{line}\n");
    let cases: Vec<(String, &[&str])> = vec![
        (
            "merge_method: linear\nslices: [{sources: []}]\n".to_owned(),
            &["settings.yaml:2:", "key `slices`: is empty"],
        ),
        (
            with("slices: [{sources: [{model: a, layer_range: [0, 1]}]}]"),
            &["settings.yaml:5:", "key `slices`", "beside `models`"],
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: fixtures/llama/code, layer_range: [0, 1]}], residual_weight: 1}]\n".to_owned(),
            &["settings.yaml:2:", "key `residual_weight`: is not supported"],
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: fixtures/llama/code, layer_range: [0, 1]}], base_model: b}]\n".to_owned(),
            &["settings.yaml:2:", "key `base_model`: is none of the models"],
        ),
        (
            "merge_method: linear\nmodules: {}\n".to_owned(),
            &["settings.yaml:2:", "key `modules`"],
        ),
        (
            "merge_method: linear\n".to_owned(),
            &["key `models`: is missing"],
        ),
        (
            with("tokenizer_source: union"),
            &["settings.yaml:5:", "expected `base`", "found `union`"],
        ),
        (
            with("tokenizer: {source: base}"),
            &["settings.yaml:5:", "key `tokenizer`"],
        ),
        (
            with("chat_template: auto"),
            &["settings.yaml:5:", "key `chat_template`"],
        ),
        (
            with("out_dtpe: float16"),
            &["settings.yaml:5:1: key `out_dtpe`", "`out_dtype`"],
        ),
        (with("dtype: int64"), &["settings.yaml:5:", "found `int64`"]),
        (
            with("base_model: fixtures/llama/seed"),
            &["settings.yaml:5:", "key `weight`: is missing"],
        ),
        (
            linear.replace("weight: 1", "weight: [0, a]"),
            &["settings.yaml:4:", "key `weight`", "list of numbers"],
        ),
        (
            linear.replace("weight: 1", "weight: [{fliter: mlp, value: 1}]"),
            &["settings.yaml:4:", "`filter` and `value`", "found `fliter`"],
        ),
        (
            linear.replace("linear", "ties"),
            &["--method ties", "no --base"],
        ),
        (
            linear.replace("weight: 1", "weigth: 1"),
            &["settings.yaml:4:", "key `weigth`", "`weight`"],
        ),
        (
            linear.replace("weight: 1", "weight: .nan"),
            &["settings.yaml:4:", "finite"],
        ),
        (
            linear.replace("weight: 1", "normalize: true"),
            &["settings.yaml:4:", "key `normalize`", "`weight`"],
        ),
        (
            linear.replace("llama/code", "llama/code+lora"),
            &["settings.yaml:3:", "no folder `lora`"],
        ),
    ];
    for (text, parts) in cases {
        bench.merge(&text, &[]).refused(2, parts);
    }
    // The method is named before the keys that only it has, whichever command is given the file.
    let sliced = "slices:\n- sources: [{model: a, layer_range: [0, 1]}]\nmerge_method: METHOD\nparameters: {t: [0, 1]}\n";
    for method in ["nuslerp", "breadcrumbs", "karcher"] {
        let text = sliced.replace("METHOD", method);
        let found = format!("found `{method}`, which only mergekit runs");
        let parts = [
            "settings.yaml:3:15",
            &found,
            "expected one of `linear`, `slerp`",
            "mergekit-yaml",
        ];
        bench.merge(&text, &[]).refused(2, &parts);
        bench.upcycle(&text, &[]).refused(2, &parts);
    }
    bench
        .merge(&sliced.replace("METHOD", "tiess"), &[])
        .refused(2, &["found `tiess`", "`ties`"]);
    let several = format!("{linear}---\n{linear}");
    bench.merge(&several, &[]).refused(
        2,
        &[
            "settings.yaml:6:",
            "multiple YAML documents",
            "file of its own",
        ],
    );
    bam!(
        "merge",
        "--model",
        fixture("llama/seed"),
        "--base",
        fixture("llama/law"),
        "--out",
        bench.path("out")
    )
    .refused(2, &["--base", "none of the models"]);
}
