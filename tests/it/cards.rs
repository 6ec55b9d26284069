//! Model cards: every command that writes a checkpoint writes one, and it is true for the settings of that command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bam_convert::checkpoint::yaml;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::common::{Run, binary, copy_folder, finish, fixture};
use crate::train::{Shared, train};

/// Three models of a family, and commands on them in one folder.
struct Bench {
    work: TempDir,
}

impl Bench {
    fn new() -> Self {
        let work = TempDir::new().unwrap();
        for name in ["seed", "code", "law"] {
            copy_folder(&fixture("llama").join(name), &work.path().join(name));
        }
        Self { work }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// Runs a command line in the folder.
    fn run(&self, line: &str) -> Run {
        let mut command = Command::new(binary());
        command
            .args(line.split_whitespace())
            .current_dir(self.work.path());
        finish(command)
    }

    fn upcycle(&self, settings: &str) -> String {
        let expert = "--expert code=code --expert law=law";
        let line = format!("upcycle --seed seed {settings} --out out --force");
        let takes_experts = settings.contains("bam") || settings.contains("btx");
        self.run(&format!(
            "{line} {}",
            if takes_experts { expert } else { "" }
        ))
        .ok();
        self.card("out")
    }

    fn card(&self, folder: &str) -> String {
        fs::read_to_string(self.path(folder).join("README.md")).unwrap()
    }

    /// Makes a folder look as if it were pulled from a repository, with this card.
    fn pulled(&self, folder: &str, card: &str) {
        let origin =
            json!({"repository": format!("org/{folder}"), "commit": "0".repeat(40), "files": []});
        fs::write(self.path(folder).join(".hub.json"), origin.to_string()).unwrap();
        fs::write(self.path(folder).join("README.md"), card).unwrap();
    }
}

/// The keys of a card's front matter.
fn front(card: &str) -> Map<String, Value> {
    let lines = card
        .strip_prefix("---\n")
        .unwrap()
        .split("\n---\n")
        .next()
        .unwrap();
    yaml::parse(Path::new("README.md"), lines).unwrap_or_else(|e| panic!("{e}\n{card}"))
}

/// The commands of the card's snippets.
fn commands(card: &str) -> Vec<String> {
    let blocks = card.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    lines.map(str::to_owned).collect()
}

#[test]
fn every_checkpoint_has_a_card_whose_commands_run() {
    let bench = Bench::new();
    let lines = [
        ("branches/a", "branch seed --into a --out branches"),
        ("converted", "convert seed converted --dtype f32"),
        ("merged", "merge --model code --model law --out merged"),
        (
            "mixture",
            "upcycle --method bam --seed seed --expert code=code --out mixture",
        ),
        ("more", "expert add mixture --expert law=law --out more"),
        ("fewer", "expert remove more seed --out fewer"),
        ("dense", "expert extract more code --out dense"),
        (
            "stock",
            "upcycle --method btx --target mixtral --seed seed --expert code=code --out stock",
        ),
        ("fused", "convert stock fused --layout fused"),
        ("fresh", "init seed --out fresh"),
    ];
    for (folder, line) in lines {
        bench.run(line).ok();
        let card = bench.card(folder);
        let keys = front(&card);
        assert_eq!(keys["library_name"], "transformers", "{card}");
        assert_eq!(keys["pipeline_tag"], "text-generation", "{card}");
        // Nobody has published these models, and their folders are nobody's business.
        assert!(!keys.contains_key("base_model"), "{card}");
        assert!(
            !card.contains(bench.work.path().to_str().unwrap()),
            "{card}"
        );
        let is_bam = bench.path(folder).join("modeling_bam.py").exists();
        assert_eq!(card.contains("trust_remote_code=True"), is_bam, "{card}");
        let vllm = "With vLLM: `vllm serve . --trust-remote-code`, after `pip install bam-vllm`.";
        assert_eq!(card.matches(vllm).count(), usize::from(is_bam), "{card}");

        let commands = commands(&card);
        let has_gguf = card.contains("In this folder, with llama.cpp:");
        // With two attention experts.
        let fits = ["mixture", "fewer"].contains(&folder);
        assert_eq!(has_gguf, fits, "{card}");
        assert_eq!(commands.len(), if has_gguf { 5 } else { 3 }, "{card}");
        for command in commands {
            if command.starts_with("llama-server ") {
                continue;
            }
            let mut shell = Command::new("sh");
            let path = binary().parent().unwrap().display();
            let script = format!("PATH={path}:$PATH; {command}");
            shell.args(["-c", &script]).current_dir(bench.path(folder));
            assert_eq!(finish(shell).code, Some(0), "{folder}: {command}");
        }
        if fits {
            fs::remove_file(bench.path("model.gguf")).unwrap();
        }
    }
    let weights = bench.path("weights.safetensors");
    fs::copy(bench.path("seed/model.safetensors"), weights).unwrap();
    bench.run("convert weights.safetensors bare").ok();
    let card = bench.card("bare");
    assert!(
        card.contains("# weights.safetensors") && commands(&card).is_empty(),
        "{card}"
    );
}

#[test]
fn a_card_names_vllm_as_far_as_it_serves_the_model() {
    let bench = Bench::new();
    let line = "`vllm serve . --trust-remote-code`";
    let card = bench.upcycle("--method btx");
    assert!(card.contains(&format!("{line}.\n")), "{card}");
    // Angles that depend on the longest text of a batch.
    let rope = json!({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0});
    for name in ["seed", "code", "law"] {
        let path = bench.path(name).join("config.json");
        let mut config: Map<String, Value> =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config.remove("rope_theta");
        config.remove("rope_scaling");
        config.insert("rope_parameters".to_owned(), rope.clone());
        fs::write(path, json!(config).to_string()).unwrap();
    }
    let card = bench.upcycle("--method btx");
    assert!(!card.contains("vLLM"), "{card}");
}

#[test]
fn a_card_is_true_for_its_settings() {
    let bench = Bench::new();
    let all = "Everything else is the mean of seed, code, law.";
    let cases: [(&str, &[&str]); 13] = [
        (
            "--method btx",
            &[all, "Attention is dense", "Routers are drawn at random."],
        ),
        (
            "--method btx --rest seed",
            &["Everything else is taken from seed."],
        ),
        (
            "--method btx --no-seed-expert",
            &["Everything else is the mean of code, law."],
        ),
        (
            "--method btx --seed-copies 1",
            &[all, "4 feed-forward experts (seed, code, law, seed)"],
        ),
        (
            "--method btx --expert x=random",
            &[all, "x starts with random weights."],
        ),
        ("--method btx --dtype f32", &[all]),
        (
            "--method bam",
            &[
                all,
                "3 attention experts, each with keys and values of its own",
                "(soft routing)",
            ],
        ),
        (
            "--method bam --kv shared",
            &[
                all,
                "which share keys and values",
                "Shared keys and values are the mean of seed, code, law.",
            ],
        ),
        (
            "--method bam --kv shared --shared-kv seed",
            &[all, "Shared keys and values are taken from seed."],
        ),
        (
            "--method bam --top-k 2 --norm-topk-prob true --attention-top-k 1",
            &[
                "to 2 of them, with gates that add up to one",
                "a second router sends each token to 1 of them",
            ],
        ),
        (
            "--method bam --layers 1 --shared-expert seed:gated",
            &[
                "Layer 1 of 2 (counted from 0) has",
                "weighted by a sigmoid gate",
            ],
        ),
        (
            "--method bam --top-k soft --router zeros",
            &[
                "a router weights all of them for each token",
                "Routers are constant.",
            ],
        ),
        (
            "--method sparse --experts 3",
            &[
                "Everything else is taken from seed.",
                "3 feed-forward experts",
            ],
        ),
    ];
    for (settings, sentences) in cases {
        let card = bench.upcycle(settings);
        for sentence in sentences {
            assert!(card.contains(sentence), "{settings}: {sentence}\n{card}");
        }
        if settings.contains("--rest") || settings.contains("sparse") {
            assert!(
                !card.contains("the mean of") && !card.contains("averaged"),
                "{card}"
            );
        }
        let relation = front(&card).contains_key("base_model_relation");
        assert!(
            !relation,
            "without base models there is nothing to relate to\n{card}"
        );
    }

    for (weights, sentence) in [
        ("--model seed --model law", "The mean of seed, law."),
        (
            "--model seed:1 --model law:3",
            "The weighted mean of seed (weight 1), law (weight 3).",
        ),
        (
            "--model seed:1 --model law:-0.5 --normalize false",
            "The weighted sum of seed (weight 1), law (weight -0.5).",
        ),
    ] {
        bench
            .run(&format!("merge {weights} --out merged --force"))
            .ok();
        assert!(
            bench.card("merged").contains(sentence),
            "{}",
            bench.card("merged")
        );
    }
}

#[test]
fn what_sources_say_is_carried() {
    let bench = Bench::new();
    bench.pulled(
        "seed",
        "---\nlicense: other\nlicense_name: my-licence\nlicense_link: https://a.b/c\nlanguage: [en, de]\n\
         datasets:\n- org/corpus\n- \"a b\"\n---\n# Words of the seed\n",
    );
    bench.pulled(
        "code",
        "---\nlicense: other\nlanguage: no\n---\n# Words of code\n",
    );
    bench
        .run("upcycle --method bam --seed seed --expert code=code --out mixture")
        .ok();
    let card = bench.card("mixture");
    let keys = front(&card);
    for (key, expected) in [
        ("license", json!("other")),
        ("license_name", json!("my-licence")),
        ("license_link", json!("https://a.b/c")),
        ("language", json!(["en", "de", "no"])),
        ("datasets", json!(["org/corpus"])),
        ("base_model", json!(["org/seed", "org/code"])),
        ("base_model_relation", json!("merge")),
        ("tags", json!(["moe", "merge", "bam"])),
    ] {
        assert_eq!(keys[key], expected, "{key}\n{card}");
    }
    assert!(
        !card.contains("Words of"),
        "a mixture is another model\n{card}"
    );

    // A conversion is the same model: its card says the same of it, and what was changed.
    bench.run("convert mixture converted --dtype f32").ok();
    let converted = bench.card("converted");
    assert_eq!(front(&converted), front(&card), "{converted}");
    for part in [
        "the Branch-Attend-Mix",
        "Routers are drawn at random.",
        "## Routers and experts",
        "| seed | org/seed at 000",
        "## About this copy",
        "Weights are in f32.",
    ] {
        assert!(
            converted.contains(part) || !card.contains(part),
            "{part}\n{converted}"
        );
    }
    let usages = |card: &str| card.matches("from_pretrained(").count();
    assert_eq!(usages(&converted), usages(&card), "{converted}");

    // So does a conversion of the conversion, and a copy to be trained.
    bench.run("convert converted again --dtype bf16").ok();
    bench.run("branch again --into copy --out .").ok();
    let copy = bench.card("copy");
    assert_eq!(front(&copy), front(&card), "{copy}");
    assert_eq!(usages(&copy), usages(&card), "{copy}");
    assert_eq!(copy.matches("## About this copy").count(), 1, "{copy}");
    assert!(copy.contains("Routers are drawn at random."), "{copy}");

    // A model that is made of a mixture is made of all models that the mixture was made of.
    bench.run("expert remove mixture code --out fewer").ok();
    let fewer = bench.card("fewer");
    let keys = front(&fewer);
    assert_eq!(
        keys["base_model"],
        json!(["org/seed", "org/code"]),
        "{fewer}"
    );
    assert_eq!(keys["tags"], json!(["moe", "merge", "bam"]), "{fewer}");
    assert!(
        fewer.contains("some of its experts removed: code.")
            && fewer.contains("| mixture | `bam` | seed, code |"),
        "{fewer}"
    );
}

#[test]
fn a_licence_without_an_identifier_keeps_its_name() {
    let bench = Bench::new();
    bench.pulled("seed", "---\nlicense: My House Licence, 2.0\n---\n# A\n");
    bench.pulled("code", "---\nlicense: mit\n---\n# B\n");
    bench.pulled("law", "# C\n");
    bench
        .run("merge --model seed --model code --model law --out merged")
        .ok();
    let card = bench.card("merged");
    let keys = front(&card);
    assert_eq!(
        keys["license"],
        json!(["other", "mit", "unknown"]),
        "{card}"
    );
    assert_eq!(keys["license_name"], "my-house-licence-2.0", "{card}");

    // A model that is made of this one does not forget the part without a licence.
    bench
        .run("merge --model merged --model code --out twice")
        .ok();
    let card = bench.card("twice");
    assert_eq!(
        front(&card)["license"],
        json!(["other", "mit", "unknown"]),
        "{card}"
    );
    assert!(
        card.contains("model-1 is made in part of models that name none"),
        "{card}"
    );
}

#[test]
fn scores_stay_with_the_values_that_they_are_of() {
    let bench = Bench::new();
    let card = "---\nlicense: mit\nmodel-index:\n- name: x\n  results: []\ntags: [a]\n---\n# A\n";
    bench.pulled("seed", card);
    for (dtype, stays) in [("f32", true), ("f16", false)] {
        bench
            .run(&format!("convert seed out --dtype {dtype} --force"))
            .ok();
        let card = bench.card("out");
        let keys = front(&card);
        assert_eq!(keys.contains_key("model-index"), stays, "{dtype}\n{card}");
        assert_eq!(keys["tags"], json!(["a"]), "{card}");
        let said = card.contains("scores of that model are left out");
        assert_eq!(said, !stays, "{dtype}\n{card}");
    }
}

#[test]
fn a_shared_expert_of_zeros_is_called_one() {
    let bench = Bench::new();
    bench
        .run("upcycle --method btx --target qwen2_moe --seed seed --expert code=code --out moe")
        .ok();
    bench.run("convert moe wide --dtype f32").ok();
    bench.run("merge --model moe --model moe --out same").ok();
    for folder in ["moe", "wide", "same"] {
        let card = bench.card(folder);
        assert!(
            card.contains("it holds zeros and adds nothing") && !card.contains("gets every token"),
            "{folder}\n{card}"
        );
    }
    // One of a model is a real one.
    bench
        .run("upcycle --method btx --target qwen2_moe --seed seed --expert code=code --shared-expert code:gated --out real")
        .ok();
    let card = bench.card("real");
    assert!(
        card.contains("it gets every token, weighted by a sigmoid gate"),
        "{card}"
    );
}

#[test]
fn notes_and_prompts_are_on_the_card() {
    let bench = Bench::new();
    copy_folder(&fixture("llama/seed"), &bench.path("twin"));
    let prompts = "gate_mode: hidden\nexperts:\n- name: seed\n  positive_prompts: [The year]\n\
                   - name: twin\n  positive_prompts: [\"The | court\"]\n  negative_prompts: [\"def x():\"]\n";
    fs::write(bench.path("prompts.yaml"), prompts).unwrap();
    let run = bench
        .run("upcycle --method bam --seed seed --expert twin=twin --router prompts:prompts.yaml --out out")
        .ok();
    let note = "seed, twin: have the same weights, byte for byte, so these experts start alike";
    assert!(run.stderr.contains(note), "{run}");
    let card = bench.card("out");
    for part in [
        note,
        "were computed from these prompts:",
        "| seed | `The year` |  |",
        "| twin | `The \\| court` | `def x():` |",
    ] {
        assert!(card.contains(part), "{part}\n{card}");
    }
    // Models that differ are not.
    let run = bench
        .run("upcycle --method bam --seed seed --expert code=code --out two")
        .ok();
    assert!(!run.stderr.contains("byte for byte"), "{run}");

    // Paths of this machine are not on it, also where a shell has completed them.
    copy_folder(&fixture("llama/seed"), &bench.path("odd"));
    let config = bench.path("odd/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen('{', "{\"strange_key\": 1,", 1)).unwrap();
    let seed = bench.path("odd").display().to_string();
    bench
        .run(&format!(
            "upcycle --method bam --seed {seed}/ --expert code=code --out three"
        ))
        .ok();
    let card = bench.card("three");
    assert!(card.contains("strange_key"), "{card}");
    assert!(!card.contains(&seed), "{card}");
}

#[test]
fn an_edited_card_runs_no_stage_again() {
    let bench = Bench::new();
    let recipe = "stages:\n- name: copies\n  branch: {seed: ../seed, into: a, out: branches}\n\
                  - name: merged\n  merge: {model: [branches/a, ../code], out: merged}\n";
    fs::write(bench.path("recipe.yaml"), recipe).unwrap();
    bench.run("run recipe.yaml --work work").ok();
    for folder in ["work/branches/a", "work/merged"] {
        let edited = bench.card(folder).replace('#', "# My");
        fs::write(bench.path(folder).join("README.md"), edited).unwrap();
    }
    let run = bench
        .run("run recipe.yaml --work work --dry-run --json")
        .ok();
    assert_eq!(run.json()["total"]["stages"], 0, "{run}");
    // Weights are another matter.
    fs::write(bench.path("work/merged/model.safetensors"), "x").unwrap();
    let run = bench
        .run("run recipe.yaml --work work --dry-run --json")
        .ok();
    assert_eq!(run.json()["total"]["stages"], 1, "{run}");
}

#[test]
fn a_copy_keeps_the_words_of_its_model() {
    let bench = Bench::new();
    let card = "---\nlicense: mit\ntags: [mine]\n---\n# My model\n\nMy words.\n";
    bench.pulled("seed", card);
    for (line, folder) in [
        ("convert seed one --dtype f32", "one"),
        ("convert one two --dtype bf16", "two"),
        ("branch two --into three --out .", "three"),
    ] {
        bench.run(line).ok();
        let card = bench.card(folder);
        let keys = front(&card);
        assert_eq!(
            (&keys["license"], &keys["tags"]),
            (&json!("mit"), &json!(["mine"])),
            "{card}"
        );
        assert_eq!(keys["base_model"], json!(["org/seed"]), "{card}");
        assert!(card.contains("\n# My model\n\nMy words.\n"), "{card}");
        assert_eq!(card.matches("## About this copy").count(), 1, "{card}");
    }
    // A card that nobody can read as YAML keeps its words, and the new card can be published.
    fs::write(
        bench.path("law/README.md"),
        "---\nlicense: [\n---\nSome words.\n",
    )
    .unwrap();
    bench.run("convert law four --dtype f32").ok();
    let card = bench.card("four");
    assert_eq!(front(&card)["library_name"], "transformers");
    assert!(card.contains("\nSome words.\n"), "{card}");
}

#[test]
fn an_edited_card_is_not_lost() {
    let bench = Bench::new();
    bench.run("init seed --out out").ok();
    let run = bench.run("init seed --out out --force --rng-seed 1").ok();
    assert!(!run.stderr.contains("edited"), "{run}");
    assert!(!bench.path("out.README.md").exists());

    for (number, copy) in [(1, "out.README.md"), (2, "out.2.README.md")] {
        let edited = bench
            .card("out")
            .replace("# Random", &format!("# {number}: random"));
        fs::write(bench.path("out/README.md"), &edited).unwrap();
        let run = bench.run("init seed --out out --force").ok();
        assert!(
            run.stderr.contains("was edited") && run.stderr.contains(copy),
            "{run}"
        );
        assert_eq!(fs::read_to_string(bench.path(copy)).unwrap(), edited);
        assert!(bench.card("out").contains("# Random"));
    }
}

#[test]
fn a_gguf_file_says_its_licence_and_languages() {
    let bench = Bench::new();
    let text = |value: &str| [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat();
    let entry = |key: &str, value: &str| [text(key), vec![8, 0, 0, 0], text(value)].concat();
    let mut keys = [
        entry("general.license", "other"),
        entry("general.license.name", "my-licence"),
        entry("general.repo_url", "https://huggingface.co/org/model"),
        [
            text("general.languages"),
            vec![9, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            text("en"),
            text("evil: x"),
        ]
        .concat(),
    ]
    .concat();
    // Tensor data stays aligned where the new keys take a multiple of 32 bytes.
    let short = entry("pad", "").len();
    keys.extend(entry("pad", &"x".repeat(32 - (keys.len() + short) % 32)));
    let mut bytes = fs::read(fixture("gguf/llama-f32.gguf")).unwrap();
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 5;
    bytes[16..24].copy_from_slice(&count.to_le_bytes());
    bytes.splice(24..24, keys);
    fs::write(bench.path("model.gguf"), bytes).unwrap();

    bench.run("convert model.gguf out").ok();
    let card = bench.card("out");
    let keys = front(&card);
    assert_eq!(keys["license"], "other", "{card}");
    assert_eq!(keys["license_name"], "my-licence", "{card}");
    assert_eq!(keys["language"], json!(["en"]), "{card}");
    assert_eq!(keys["base_model"], json!(["org/model"]), "{card}");
    assert!(card.contains("converted from a GGUF file"), "{card}");
}

#[test]
fn a_trained_model_says_how_it_was_trained() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let settings = [
        "--steps",
        "4",
        "--batch",
        "2",
        "--validate-every",
        "2",
        "--save-every",
        "2",
    ];
    train(&fixture("llama/seed"), &out, &settings).ok();
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    for part in [
        "Trained for 4 steps on ",
        " tokens of code, law.",
        "The peak learning rate was 0.01.",
        "The last step had a loss of ",
        "Held-back text after step 4:",
        "Trained further from seed.",
    ] {
        assert!(card.contains(part), "{part}\n{card}");
    }
    let results = &front(&card)["model-index"][0]["results"];
    assert_eq!(results[1]["dataset"]["name"], "law", "{card}");
    assert_eq!(results[1]["metrics"][0]["type"], "perplexity", "{card}");
    assert!(
        results[1]["metrics"][0]["value"].as_f64().unwrap() > 1.0,
        "{card}"
    );

    // A mixture says what its experts are, and an earlier checkpoint its own step.
    let mixture = work.path().join("mixture");
    train(&Shared::get().path("bam"), &mixture, &settings).ok();
    let card = fs::read_to_string(mixture.join("README.md")).unwrap();
    assert!(
        card.contains("3 feed-forward experts (seed, code, law)"),
        "{card}"
    );
    let step = work
        .path()
        .join("mixture.run/checkpoints/step-00000002/README.md");
    let card = fs::read_to_string(step).unwrap();
    assert!(card.contains("Trained for 2 steps"), "{card}");
}

/// A GGUF conversion writes these keys, and a note warned of them as if somebody had meant something by them.
#[test]
fn keys_that_say_that_something_is_absent_get_no_note() {
    let bench = Bench::new();
    copy_folder(&fixture("mistral/seed"), &bench.path("mistral"));
    crate::common::edit_json(&bench.path("mistral/config.json"), |config| {
        config["attention_bias"] = false.into();
        config["mlp_bias"] = false.into();
        config["pretraining_tp"] = 1.into();
        config["my_key"] = 1.into();
    });
    let run = bench
        .run("upcycle --method sparse --experts 2 --seed mistral --out out")
        .ok();
    assert!(run.stderr.contains("which are left out: my_key\n"), "{run}");
}

#[test]
fn a_missing_input_names_its_flag() {
    let bench = Bench::new();
    bench
        .run("upcycle --method bam --seed seed --expert code=none --expert law=law --out out")
        .refused(2, &["none", "it is given with `--expert code=none`"]);
}
