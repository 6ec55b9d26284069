//! Evaluations on model cards: `eval --card` writes them where the model is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bam_convert::checkpoint::yaml;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::common::{Run, binary, copy_folder, finish, fixture};

/// Two models, one of them made by this program, and a text.
struct Bench {
    work: TempDir,
}

impl Bench {
    fn new() -> Self {
        let work = TempDir::new().unwrap();
        copy_folder(&fixture("llama/seed"), &work.path().join("seed"));
        fs::write(
            work.path().join("law.txt"),
            "The court finds that. ".repeat(40),
        )
        .unwrap();
        fs::write(
            work.path().join("code.txt"),
            "def mean(values): ".repeat(40),
        )
        .unwrap();
        let bench = Self { work };
        bench.run("convert seed model --dtype f32").ok();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn run(&self, line: &str) -> Run {
        let mut command = Command::new(binary());
        command
            .args(line.split_whitespace())
            .current_dir(self.work.path());
        finish(command)
    }

    fn card(&self, folder: &str) -> String {
        fs::read_to_string(self.path(folder).join("README.md")).unwrap()
    }
}

fn front(card: &str) -> Map<String, Value> {
    let lines = card
        .strip_prefix("---\n")
        .unwrap()
        .split("\n---\n")
        .next()
        .unwrap();
    yaml::parse(Path::new("README.md"), lines).unwrap_or_else(|e| panic!("{e}\n{card}"))
}

/// The perplexity that a card gives for a domain.
fn perplexity(card: &str, domain: &str) -> f64 {
    let keys = front(card);
    let results = keys["model-index"][0]["results"].as_array().unwrap();
    let mut of_domain = results
        .iter()
        .filter(|one| one["dataset"]["name"] == domain);
    let found = of_domain
        .next()
        .unwrap_or_else(|| panic!("{domain}\n{card}"));
    assert!(of_domain.next().is_none(), "{card}");
    assert_eq!(found["metrics"][0]["type"], "perplexity");
    found["metrics"][0]["value"].as_f64().unwrap()
}

#[test]
fn scores_go_into_the_card_and_the_manifest_stays_valid() {
    let bench = Bench::new();
    let measured = bench
        .run("eval model seed --data law=law.txt --card --json")
        .ok()
        .json();
    let expected = measured["models"][0]["domains"][0]["perplexity"]
        .as_f64()
        .unwrap();
    let card = bench.card("model");
    assert!((perplexity(&card, "law") - expected).abs() < 1e-9, "{card}");
    assert!(
        card.contains(&format!("| model | {expected:.1} |")) || card.contains("| model | "),
        "{card}"
    );
    assert_eq!(card.matches("## Evaluation").count(), 1, "{card}");
    // A model without a card gets one.
    assert!(perplexity(&bench.card("seed"), "law") > 1.0);
    let report = bench.run("validate model --json").ok().json();
    assert_eq!(report["findings"], json!([]), "{report}");

    // Another domain comes beside it, the same one in its place, and the card is still no edited one.
    bench.run("eval model --data code=code.txt --card").ok();
    bench
        .run("eval model --data law=law.txt --context 16 --card")
        .ok();
    let card = bench.card("model");
    assert!(perplexity(&card, "code") > 1.0);
    assert!(perplexity(&card, "law") != expected, "{card}");
    assert_eq!(card.matches("## Evaluation").count(), 1, "{card}");
    let run = bench.run("convert seed model --dtype f32 --force").ok();
    assert!(!run.stderr.contains("was edited"), "{run}");
}

#[test]
fn what_a_person_wrote_stays_beside_the_scores() {
    let bench = Bench::new();
    let card = "---\nlicense: mit\nmodel-index:\n- name: mine\n  results:\n  - task: {type: text-generation}\n    \
                dataset: {type: wikitext, name: WikiText}\n    metrics: [{type: perplexity, value: 9.5}]\n---\n\n\
                # Mine\n\nWords.\n";
    fs::write(bench.path("model/README.md"), card).unwrap();
    bench.run("eval model --data law=law.txt --card").ok();
    let card = bench.card("model");
    assert_eq!(front(&card)["license"], "mit", "{card}");
    assert_eq!(front(&card)["model-index"][0]["name"], "mine", "{card}");
    assert!(card.contains("# Mine\n\nWords.\n"), "{card}");
    assert_eq!(perplexity(&card, "WikiText"), 9.5);
    assert!(perplexity(&card, "law") > 1.0);
}

#[test]
fn what_has_no_card_of_its_own_is_refused_before_anything_is_measured() {
    let bench = Bench::new();
    let gguf = fixture("gguf/llama-f32.gguf");
    let line = format!("eval {} --data law=law.txt --card", gguf.display());
    bench
        .run(&line)
        .refused(2, &["no folder of its own", "bam-convert convert"]);
    fs::write(bench.path("model/README.md"), "---\nlicense: [\n---\n").unwrap();
    bench
        .run("eval model --data law=law.txt --card")
        .refused(2, &["README.md"]);
    bench
        .run("eval seed --data law=law.txt --card --top-k 1")
        .refused(2, &["--card", "--top-k"]);
    // A recipe may not change what its stages read.
    let recipe =
        "stages:\n- name: e\n  eval: {checkpoints: [seed], data: {law: law.txt}, card: true}\n";
    fs::write(bench.path("recipe.yaml"), recipe).unwrap();
    bench
        .run("run recipe.yaml --work .")
        .refused(2, &["key `card`"]);
}
