//! `report`: one page about runs, checkpoints and evaluations.

mod browser;

use crate::common::{Noise, bam, copy_folder, edit_json, edit_tensors, fixture};
use bam_convert::train::metrics::{
    Detail, DomainLoss, Record, RoleDetail, Routing, Step, Validation,
};
use std::fs;
use std::path::{Path, PathBuf};

const DOMAINS: [&str; 3] = ["code", "law", "math"];

/// A log such as training writes, of a mixture or a dense model.
fn log(steps: u64, experts: usize, noise: &mut Noise) -> Vec<Record> {
    let object = |value: serde_json::Value| value.as_object().unwrap().clone();
    let model_type = if experts > 1 { "bam" } else { "llama" };
    let mut records = vec![Record::Start {
        tool_version: "0.1.0".to_owned(),
        architecture: object(
            serde_json::json!({"model_type": model_type, "parameters": 3_600_000, "active_parameters": 1_900_000}),
        ),
        settings: object(
            serde_json::json!({"steps": steps, "batch": 8, "learning-rate": 1e-3 * experts as f64, "train": ["all"]}),
        ),
    }];
    for step in 1..=steps {
        let along = step as f64 / steps as f64;
        let nll = 4.0 * (-2.0 * along).exp() + 1.5 + 0.1 * noise.value();
        let domains = DOMAINS.map(|name| {
            (
                name.to_owned(),
                DomainLoss {
                    nll: nll + 0.1 * noise.value(),
                    tokens: 512,
                },
            )
        });
        let (load_balance, z) = if experts > 1 {
            (4.0 + 0.2 * noise.value(), 0.7)
        } else {
            (0.0, 0.0)
        };
        records.push(Record::Step(Box::new(Step {
            step,
            time: step as f64,
            tokens: step * 2048,
            loss: nll + 0.01 * load_balance,
            nll,
            load_balance,
            z,
            learning_rate: 1e-3 * (1.0 - along),
            router_learning_rate: 2e-3 * (1.0 - along),
            gradient_norm: 1.0 + 0.5 * noise.value(),
            seconds: 0.5,
            tokens_per_second: 4000.0 + 200.0 * noise.value(),
            flops_per_second: 1e11,
            peak_share: 0.5,
            ranks: None,
            tokens_per_second_per_rank: None,
            memory_bytes: None,
            domains: domains.into(),
        })));
        if step % 10 == 0 {
            let routing = |noise: &mut Noise| -> Vec<Routing> {
                let layer = |layer| {
                    let mut load: Vec<f64> = (0..experts).map(|_| 1.2 + noise.value()).collect();
                    let sum: f64 = load.iter().sum();
                    load.iter_mut().for_each(|share| *share /= sum);
                    Routing {
                        layer,
                        mean_gates: load.clone(),
                        load,
                        entropy: 0.9 + 0.05 * noise.value(),
                    }
                };
                if experts > 1 {
                    (0..2).map(layer).collect()
                } else {
                    Vec::new()
                }
            };
            let roles = ["embedding", "q", "k", "v", "o", "gate", "up", "down"].map(|role| {
                let ratio = 1e-3 * (1.5 + noise.value());
                (
                    role.to_owned(),
                    RoleDetail {
                        gradient_norm: 0.2 * (1.5 + noise.value()),
                        update_ratio: ratio,
                    },
                )
            });
            let detail = Detail {
                step,
                roles: roles.into(),
                ffn_routing: routing(noise),
                attention_routing: routing(noise),
            };
            records.push(Record::Detail(Box::new(detail)));
        }
        if step % 25 == 0 {
            let found = Validation {
                nll,
                perplexity: nll.exp(),
                bits_per_byte: nll / 2.0,
                tokens: 1000,
            };
            let domains = DOMAINS.map(|name| (name.to_owned(), found.clone()));
            records.push(Record::Validation {
                step,
                domains: domains.into(),
            });
        }
    }
    records.push(Record::Resume { step: steps / 2 });
    records.push(Record::End {
        step: steps,
        seconds: 93.0,
        peak_memory_bytes: Some(512 << 20),
    });
    records
}

fn write_run(out: &Path, records: &[Record]) {
    let run = out.with_file_name(format!(
        "{}.run",
        out.file_name().unwrap().to_str().unwrap()
    ));
    fs::create_dir_all(&run).unwrap();
    let lines: Vec<String> = records
        .iter()
        .map(|record| serde_json::to_string(record).unwrap() + "\n")
        .collect();
    fs::write(run.join("metrics.jsonl"), lines.concat()).unwrap();
}

/// A seed, two experts moved away from it, a mixture of them, with logs; and an evaluation.
fn bench(folder: &Path) -> Vec<PathBuf> {
    let path = |name: &str| folder.join(name);
    copy_folder(&fixture("llama/seed"), &path("seed"));
    bam!(
        "branch",
        path("seed"),
        "--into",
        "code,law",
        "--out",
        path("experts")
    )
    .ok();
    for (number, name) in ["code", "law"].iter().enumerate() {
        edit_tensors(&path("experts").join(name), |tensors| {
            let mut noise = Noise(7 + number as u64);
            for tensor in tensors.values_mut() {
                let moved: Vec<f64> = tensor
                    .values()
                    .iter()
                    .map(|value| value + 0.01 * noise.value())
                    .collect();
                *tensor = crate::common::Tensor::new(tensor.dtype, &tensor.shape.clone(), &moved);
            }
        });
        write_run(
            &path("experts").join(name),
            &log(200, 1, &mut Noise(3 + number as u64)),
        );
    }
    let expert = |name: &str| format!("{name}={}", path("experts").join(name).display());
    let (code, law) = (expert("code"), expert("law"));
    bam!(
        "upcycle",
        "--method",
        "bam",
        "--seed",
        path("seed"),
        "--expert",
        code,
        "--expert",
        law,
        "--out",
        path("bam")
    )
    .ok();
    write_run(&path("bam"), &log(300, 3, &mut Noise(11)));
    fs::write(
        path("code.txt"),
        "fn main() { println!(\"two\"); }\n".repeat(20),
    )
    .unwrap();
    fs::write(
        path("law.txt"),
        "No person shall be held to answer.\n".repeat(20),
    )
    .unwrap();
    let data = |name: &str| format!("{name}={}", path(&format!("{name}.txt")).display());
    let run = bam!(
        "eval",
        path("seed"),
        path("bam"),
        "--data",
        data("code"),
        "--data",
        data("law"),
        "--context",
        "64",
        "--max-tokens",
        "256",
        "--report-routing",
        "--json"
    );
    fs::write(path("evaluation.json"), run.ok().stdout).unwrap();
    vec![
        path("experts/code"),
        path("experts/law.run"),
        path("bam"),
        path("evaluation.json"),
    ]
}

fn names_of_runs(data: &serde_json::Value) -> Vec<&str> {
    let runs = data["runs"].as_array().unwrap().iter();
    runs.map(|run| run["name"].as_str().unwrap()).collect()
}

/// The JSON that the page's script reads.
fn data(page: &str) -> serde_json::Value {
    let start = page
        .find("<script id=\"data\" type=\"application/json\">")
        .unwrap();
    let text = &page[start..];
    let text = &text[text.find('>').unwrap() + 1..text.find("</script>").unwrap()];
    serde_json::from_str(text).unwrap()
}

#[test]
fn runs_checkpoints_and_evaluations_come_to_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = bench(folder.path());
    let page = folder.path().join("report.html");
    bam!(
        "report", inputs[0], inputs[1], inputs[2], inputs[3], "--out", page
    )
    .ok();
    if let Some(keep) = std::env::var_os("KEEP_REPORT") {
        fs::copy(&page, keep).unwrap();
    }
    let text = fs::read_to_string(&page).unwrap();
    let data = data(&text);
    let names = names_of_runs(&data);
    assert_eq!(names, ["code", "law", "bam"]);
    let charts = data["charts"].as_array().unwrap();
    let loss = charts
        .iter()
        .find(|chart| chart["title"] == "negative log-likelihood")
        .unwrap();
    let lengths: Vec<usize> = loss["series"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["points"].as_array().unwrap().len())
        .collect();
    assert_eq!(lengths, [200, 200, 300]);
    let shares = charts.iter().filter(|chart| chart["kind"] == "shares");
    let experts: Vec<&serde_json::Value> = shares
        .clone()
        .flat_map(|chart| chart["series"].as_array().unwrap())
        .collect();
    assert_eq!(shares.count(), 4, "two kinds of routers in two layers");
    assert_eq!(experts[2]["name"], "law");
    assert_eq!(text.matches("data-chart=").count(), charts.len());
    for part in [
        "Training loss by domain",
        "Perplexity on held-back text",
        "Entropy of routers",
        "feed-forward routers of bam",
        "attention routers of bam",
        "Gradient norm by role",
        "Update ratio by role",
        "Divergence from the seed",
        "Lineage",
        "93 s",
        "537 MB",
        "resumed",
        "class=\"method\">bam<",
        "class=\"method\">branch<",
    ] {
        assert!(text.contains(part), "{part}");
    }
    // What fetches something would be a link, a source or an import.
    for part in ["http://", "https://", " src=", "href=", "@import", "url("] {
        let rest = text
            .replace("http://www.w3.org/2000/svg", "")
            .replace("url(#${clip})", "")
            .replace("href=\"#", "");
        assert!(!rest.contains(part), "{part}");
    }
    // Equal inputs make equal pages, and a page is replaced.
    bam!(
        "report",
        inputs[0],
        inputs[1],
        inputs[2],
        inputs[3],
        "--out",
        page,
        "--threads",
        "1"
    )
    .ok();
    assert_eq!(fs::read_to_string(&page).unwrap(), text);
}

#[test]
fn texts_from_files_are_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("<img src=x>");
    let mut records = log(3, 1, &mut Noise(1));
    if let Record::Start { settings, .. } = &mut records[0] {
        settings.insert("</script><b>".to_owned(), "<i>&\"'".into());
    }
    write_run(&out, &records);
    let page = folder.path().join("report.html");
    bam!(
        "report",
        out.with_file_name("<img src=x>.run"),
        "--out",
        page
    )
    .ok();
    let text = fs::read_to_string(&page).unwrap();
    for part in ["<img", "</script><b>", "<i>&\""] {
        assert!(!text.contains(part), "{part}");
    }
    assert_eq!(data(&text)["runs"][0]["name"], "<img src=x>");
}

#[test]
fn what_is_no_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let page = path("report.html");
    bam!("report", folder.path(), "--out", page)
        .refused(2, &["metrics.jsonl", "config.json", "found none"]);
    bam!("report", path("nowhere"), "--out", page).refused(2, &["cannot open", "nowhere"]);
    fs::write(path("eval.json"), "{\"context\": 2}").unwrap();
    bam!("report", path("eval.json"), "--out", page).refused(
        2,
        &["eval.json: expected the result of an evaluation", "hint"],
    );
    fs::create_dir(path("x.run")).unwrap();
    fs::write(path("x.run/metrics.jsonl"), "{\"kind\": \"step\"}\n").unwrap();
    bam!("report", path("x.run"), "--out", page).refused(2, &["metrics.jsonl: line 1"]);
    assert!(!page.exists());
    fs::write(&page, "my own").unwrap();
    copy_folder(&fixture("llama/seed"), &path("seed"));
    bam!("report", path("seed"), "--out", page).refused(2, &["exists already, and is no report"]);
    edit_json(&path("seed/config.json"), |config| {
        config["expert_names"] = 3.into()
    });
    bam!("report", path("seed"), "--out", path("other.html")).ok();
}

#[test]
fn a_folder_shows_the_runs_and_evaluations_in_it() {
    let folder = tempfile::tempdir().unwrap();
    bench(folder.path());
    let page = folder.path().join("report.html");
    bam!("report", folder.path(), "--out", page).ok();
    let text = fs::read_to_string(&page).unwrap();
    let data = data(&text);
    let names = names_of_runs(&data);
    // The seed has neither a manifest nor a run: it is in the lineage.
    assert_eq!(names, ["bam", "code", "law"]);
    assert_eq!(data["charts"][0]["kind"], "bars");
    assert_eq!(
        data["charts"][0]["labels"],
        serde_json::json!(["code", "law"])
    );

    // A name has one colour: as a run, as an evaluated model and as an expert.
    let mut colours: std::collections::BTreeMap<&str, std::collections::BTreeSet<&str>> =
        Default::default();
    for series in data["charts"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|chart| chart["series"].as_array().unwrap())
    {
        let (name, colour) = (
            series["name"].as_str().unwrap(),
            series["colour"].as_str().unwrap(),
        );
        colours.entry(name).or_default().insert(colour);
    }
    assert_eq!(colours.len(), 4, "{colours:?}");
    assert!(
        colours.values().all(|colours| colours.len() == 1),
        "{colours:?}"
    );

    // Time and operations add up, whatever the axis of a chart.
    let axes = &data["runs"][0]["axes"];
    let last = |axis: &str| {
        axes[axis]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .as_f64()
            .unwrap()
    };
    assert_eq!((last("steps"), last("tokens")), (300.0, 614_400.0));
    assert!((last("seconds") - 150.0).abs() < 1e-9 && (last("flops") / 1.5e13 - 1.0).abs() < 1e-9);
    // Hashes are short, and whole in a title.
    let manifest = crate::common::read_json(folder.path().join("bam/bam-manifest.json"));
    let hash = manifest["sources"][0]["files"]
        .as_array()
        .unwrap()
        .iter()
        .find(|file| file["path"] == "model.safetensors")
        .unwrap()["sha256"]
        .as_str()
        .unwrap();
    assert!(text.contains(&format!(
        "title=\"SHA-256 of its weights: {hash}\">{}…<",
        &hash[..10]
    )));
}
