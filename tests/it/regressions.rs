//! Faults of the past: each test is named after what must hold, and its first line says what went wrong.
//!
//! A test for a fault that a user met belongs here.
//! The tests of a capability, refusals included, are in the module of that capability.

mod manifests;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{
    Tensor, Tensors, against, bam, binary, copy_folder, edit_tensors, finish, fixture, listing,
    read_folder, read_json, run, sha256,
};
use crate::hub::{REPOSITORY, World, assert_is_seed};
use crate::refusals::Bench;
use crate::run::Bench as RecipeBench;
use crate::tokenize::{changed_tokenizer, lines, shards, texts, write};
use crate::train::{Shared, metrics, of_kind, run_folder, seed, series, train};
use hub_server::Options;
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

/// `convert` and `upcycle` copied a `generation_config.json` that was not JSON, and no reader could open their outputs.
#[test]
fn a_generation_config_that_nobody_could_read_is_not_carried_on() {
    let bench = Bench::new("llama");
    let path = bench.path("seed/generation_config.json");
    fs::write(&path, "{\"temperature\": NaN}").unwrap();
    let out = bench.path("out");
    bench.expert_refused(&["seed/generation_config.json", "JSON has no NaN"]);
    bam!("convert", bench.path("seed"), &out).refused(2, &["seed/generation_config.json", "NaN"]);
    assert!(!out.exists());
}

/// The error for a number out of range spoke of a repeated key.
#[test]
fn numbers_beyond_the_largest_float() {
    let bench = Bench::new("llama");
    let path = bench.path("code/config.json");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace(
        "\"initializer_range\": 0.02",
        "\"initializer_range\": 1e400",
    );
    fs::write(&path, text).unwrap();
    bench.expert_refused(&["code/config.json", "expected JSON: number out of range"]);
}

/// Where folders cannot be exchanged, a run killed during `--force` left the old output under a hidden name for good.
#[test]
fn an_output_moved_aside_by_a_killed_run_comes_back() {
    let bench = Bench::new("llama");
    run(bench.upcycle(&[])).ok();
    let old = listing(&bench.path("out"));
    fs::rename(bench.path("out"), bench.path(".out.replaced")).unwrap();
    run(bench.upcycle(&["--rng-seed", "1"])).refused(2, &["exists already", "--force"]);
    assert_eq!(listing(&bench.path("out")), old);
    // Had the new one its place already, the old one goes; not with files of somebody else in it.
    copy_folder(&bench.path("out"), &bench.path(".out.replaced"));
    fs::write(bench.path(".out.replaced/notes.txt"), "mine").unwrap();
    bench.refused(
        bench.upcycle(&["--force"]),
        2,
        &[".out.replaced", "notes.txt"],
    );
    fs::remove_file(bench.path(".out.replaced/notes.txt")).unwrap();
    run(bench.upcycle(&["--force"])).ok();
    assert!(!bench.path(".out.replaced").exists());
    assert_eq!(listing(&bench.path("out")), old);
}

/// A run continued in the folder of a killed one, and so wrote through a hard link into the weights of the seed.
#[test]
fn branch_after_a_killed_run() {
    let bench = Bench::new("llama");
    let (out, partial) = (bench.path("branches"), bench.path("branches/.code.partial"));
    let seed = listing(&bench.path("seed"));
    for flags in [&["--link"][..], &[]] {
        fs::create_dir_all(partial.join("deep")).unwrap();
        fs::write(partial.join(".lock"), "").unwrap();
        fs::hard_link(
            bench.path("seed/model.safetensors"),
            partial.join("model.safetensors"),
        )
        .unwrap();
        // Of a killed pull, and of another method.
        for stray in ["deep/x", ".hub.json", "model-00001-of-00002.safetensors"] {
            fs::write(partial.join(stray), "{}").unwrap();
        }
        let mut arguments: Vec<OsString> = vec!["branch".into(), bench.path("seed").into()];
        arguments.extend(["--into", "code", "--force", "--out"].map(Into::into));
        arguments.push(out.clone().into());
        arguments.extend(flags.iter().map(Into::into));
        run(arguments).ok();
        assert_eq!(listing(&bench.path("seed")), seed);
        assert!(read_folder(&out.join("code")) == read_folder(&bench.path("seed")));
        for stray in ["deep", ".hub.json", "model-00001-of-00002.safetensors"] {
            assert!(!out.join("code").join(stray).exists(), "{stray}");
        }
    }
    // The same of a surgery.
    fs::create_dir_all(bench.path(".out.partial/onnx")).unwrap();
    fs::write(bench.path(".out.partial/onnx/model.onnx"), "x").unwrap();
    fs::write(bench.path(".out.partial/.hub.json"), "{}").unwrap();
    run(bench.upcycle(&[])).ok();
    assert!(!bench.path("out/onnx").exists() && !bench.path("out/.hub.json").exists());
}

/// `train` took the end of a folder's name, for example `:2`, for the weight of a domain.
#[test]
fn a_token_folder_whose_name_ends_like_a_weight_is_that_folder() {
    let work = TempDir::new().unwrap();
    let (shared, out) = (Shared::get(), work.path().join("out"));
    copy_folder(&shared.path("law"), &work.path().join("tok"));
    let exact = copy_folder(&shared.path("code"), &work.path().join("tok:2"));
    let train_on = |data: &str| {
        let mut command = Command::new(binary());
        command.arg("train").arg(seed()).arg("--out").arg(&out);
        command.args([
            "--steps",
            "1",
            "--seq",
            "24",
            "--validate-every",
            "0",
            "--force",
        ]);
        finish({
            command
                .arg("--data")
                .arg(format!("a={}", work.path().join(data).display()));
            command
        })
    };
    let record = || read_json(out.join("bam-manifest.json"))["lineage"]["data"][0].clone();
    train_on("tok:2").ok();
    let header = fs::read(exact.join("header.json")).unwrap();
    assert_eq!(record()["weight"], 1.0);
    assert_eq!(record()["sha256"], sha256(&header));
    train_on("tok:2:3").ok();
    assert_eq!(record()["weight"], 3.0);
    assert_eq!(record()["sha256"], sha256(&header));
    train_on("tok:4").ok();
    assert_eq!(record()["weight"], 4.0);
    train_on("tok:none").refused(2, &["finite number", "`none`"]);
}

/// The tied seed as others store it: with a second copy of its matrix, the same in another dtype, and as the head alone.
fn tied_seeds(work: &Path) -> Vec<(&'static str, PathBuf)> {
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let edits: [(&str, &dyn Fn(&mut Tensors)); 3] = [
        ("second", &|tensors| {
            tensors.insert(head.to_owned(), tensors[embedding].clone());
        }),
        ("widened", &|tensors| {
            let stored = &tensors[embedding];
            let wide = Tensor::new(Dtype::F32, &stored.shape, &stored.values());
            tensors.insert(head.to_owned(), wide);
        }),
        ("head", &|tensors| {
            let stored = tensors.remove(embedding).unwrap();
            tensors.insert(head.to_owned(), stored);
        }),
    ];
    let seeds = edits.into_iter().map(|(name, edit)| {
        let folder = copy_folder(&seed(), &work.join(name));
        edit_tensors(&folder, edit);
        (name, folder)
    });
    seeds.collect()
}

/// Training updated the embedding of a tied model, and left a second stored copy of it as it was.
#[test]
fn a_tied_model_trains_the_same_however_its_matrix_is_stored() {
    let work = TempDir::new().unwrap();
    let arguments = ["--steps", "3", "--validate-every", "0", "--batch", "2"];
    let plain = work.path().join("plain-out");
    train(&seed(), &plain, &arguments).ok();
    let perplexity = |folder: &Path| {
        let data = format!("a={}", Shared::get().path("law").display());
        let report = bam!("eval", folder, "--data", data, "--json");
        report.ok().json()["models"][0]["domains"][0]["perplexity"].clone()
    };
    let before = perplexity(&seed());
    let losses = series(&plain, "nll");
    for (name, folder) in tied_seeds(work.path()) {
        assert_eq!(perplexity(&folder), before, "{name}");
        for dtype in ["f32", "bf16"] {
            let out = work.path().join(format!("{name}-{dtype}"));
            train(
                &folder,
                &out,
                &[&arguments[..], &["--dtype", dtype]].concat(),
            )
            .ok();
            if dtype == "f32" {
                assert_eq!(series(&out, "nll"), losses, "{name}");
                assert_eq!(read_folder(&out), read_folder(&plain), "{name}");
                assert_eq!(perplexity(&out), perplexity(&plain), "{name}");
            }
            against(&out).ok();
        }
    }
}

/// Commands refused a tied model whose matrix is stored as the head alone.
#[test]
fn every_command_reads_a_tied_model_however_its_matrix_is_stored() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let upcycled = |seed: &Path, out: &Path| {
        let code = format!("code={}", fixture("llama/code").display());
        bam!(
            "upcycle", "--method", "bam", "--seed", seed, "--expert", code, "--out", out
        )
        .ok();
        read_folder(out)
    };
    let plain = upcycled(&seed(), &path("plain"));
    for (name, folder) in tied_seeds(work.path()) {
        let out = |what: &str| path(&format!("{name}-{what}"));
        bam!("validate", &folder).ok();
        assert!(upcycled(&folder, &out("bam")) == plain, "{name}");
        bam!("merge", "--model", &folder, "--out", out("merged")).ok();
        assert_eq!(read_folder(&out("merged")), read_folder(&seed()), "{name}");
        bam!("convert", &folder, out("f32"), "--dtype", "f32").ok();
        bam!("branch", &folder, "--into", "x", "--out", out("branches")).ok();
        bam!(
            "convert",
            &folder,
            out("gguf"),
            "--to",
            "gguf",
            "--dtype",
            "f32"
        )
        .ok();
        for made in [
            out("bam"),
            out("merged"),
            out("f32"),
            out("branches").join("x"),
        ] {
            against(&made).ok();
        }
        if name == "head" {
            bam!("diff", seed(), &folder).ok();
        }
        bam!(
            "logits",
            seed(),
            &folder,
            "--tokens",
            fixture("golden/tokens.json")
        )
        .ok();
    }
    let [(_, second), ..] = &tied_seeds(&path("again"))[..] else {
        unreachable!()
    };
    edit_tensors(second, |tensors| {
        tensors.get_mut("lm_head.weight").unwrap().bytes[1] ^= 1;
    });
    train(second, &path("refused"), &["--steps", "1"])
        .refused(2, &["`lm_head.weight`", "differs", "tie_word_embeddings"]);
}

/// A token folder for the tokenizer of `checkpoint` with one document of `ids`, all to train on.
fn tokens_of(checkpoint: &Path, ids: &[u16], folder: &Path) {
    fs::create_dir(folder).unwrap();
    let tokenizer = fs::read(checkpoint.join("tokenizer.json")).unwrap();
    let bin: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let ends = (ids.len() as u64).to_le_bytes();
    fs::write(folder.join("train-00000.bin"), &bin).unwrap();
    fs::write(folder.join("train-00000.ends"), ends).unwrap();
    fs::write(folder.join("tokenizer.json"), &tokenizer).unwrap();
    let shard = json!({
        "file": "train-00000.bin", "tokens": ids.len(), "documents": 1, "bytes_of_text": 4 * ids.len(),
        "sha256": sha256(&bin), "ends_sha256": sha256(&ends),
    });
    let header = json!({
        "format_version": 1, "tokenizer_sha256": sha256(&tokenizer), "vocab_size": 384,
        "dtype": "u16", "end_of_text": 2, "sources": [], "splits": {"train": [shard]},
    });
    fs::write(folder.join("header.json"), header.to_string()).unwrap();
}

/// A stock mixture trained with its load-balancing loss multiplied by the number of layers.
#[test]
fn the_loss_of_a_stock_mixture_has_the_weight_of_transformers() {
    let work = TempDir::new().unwrap();
    let golden = read_json(fixture("golden/router_losses.json"));
    for (family, golden) in golden.as_object().unwrap() {
        let (checkpoint, out) = (fixture("mixtures").join(family), work.path().join(family));
        let ids: Vec<u16> = serde_json::from_value(golden["ids"].clone()).unwrap();
        let data = work.path().join(format!("{family}-tokens"));
        tokens_of(&checkpoint, &ids, &data);
        let seq = (ids.len() - 1).to_string();
        let mut command = Command::new(binary());
        command.arg("train").arg(&checkpoint).arg("--out").arg(&out);
        command.args([
            "--steps",
            "1",
            "--batch",
            "1",
            "--seq",
            &seq,
            "--validate-every",
            "0",
        ]);
        finish({
            command.arg("--data").arg(format!("a={}", data.display()));
            command
        })
        .ok();
        let of = |key: &str| golden[key].as_f64().unwrap();
        let layers: Vec<f64> = serde_json::from_value(golden["layers"].clone()).unwrap();
        let (sum, mean) = (
            layers.iter().sum::<f64>(),
            layers.iter().sum::<f64>() / layers.len() as f64,
        );
        let step = of_kind(&metrics(&out), "step").remove(0);
        let found = |key: &str| step[key].as_f64().unwrap();
        let settings = read_json(run_folder(&out).join("settings.json"));
        let z = settings["z-loss-coef"].as_f64().unwrap() * found("z");
        let close = |found: f64, expected: f64, far: f64| {
            assert!(
                (found - expected).abs() < far,
                "{family}: {found}, {expected}"
            );
        };
        close(found("nll"), of("nll"), 1e-4);
        close(found("load_balance"), sum, 1e-4);
        close(found("loss") - found("nll") - z, of("weight") * mean, 1e-6);
        // transformers multiplies means over all layers; ours is a mean of products, of the same size.
        close(mean, of("pooled"), 0.2 * of("pooled"));
        assert_eq!(
            settings["aux-loss-coef"],
            of("weight") / layers.len() as f64
        );
    }
}

/// With a tokenizer that has a dropout, the same text had other tokens in each run.
#[test]
fn dropout_is_switched_off_and_said() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let input = write(path("a.jsonl"), lines(&texts(20), "text"));
    let random = changed_tokenizer(&work, |tokenizer| {
        tokenizer["model"]["dropout"] = json!(0.5)
    });
    let mut found = Vec::new();
    for (name, tokenizer) in [
        ("plain", seed()),
        ("a", random.clone()),
        ("b", random.clone()),
    ] {
        let run = bam!(
            "tokenize",
            input,
            "--tokenizer",
            tokenizer,
            "--validation",
            "0",
            "--out",
            path(name)
        )
        .ok();
        assert_eq!(
            run.stderr.contains("dropout of 0.5 is switched off"),
            name != "plain",
            "{run}"
        );
        found.push(shards(&path(name)));
    }
    assert!(found[1] == found[0] && found[2] == found[0]);
    let data = format!("x={}", input.display());
    for run in [
        bam!(
            "generate",
            random,
            "--prompt",
            "the court",
            "--max-tokens",
            "1"
        ),
        bam!("eval", random, "--data", data, "--max-tokens", "8"),
    ] {
        let run = run.ok();
        assert!(run.stderr.contains("dropout of 0.5"), "{run}");
    }
}

/// Kills the run with SIGKILL once `begun` is there, and asserts that none of the `files` grows afterwards.
#[cfg(target_os = "linux")]
fn kill_and_watch(bench: &RecipeBench, begun: &str, files: &[&str]) {
    let length = |name: &str| fs::metadata(bench.work().join(name)).map_or(0, |file| file.len());
    let mut run = Command::new(binary());
    run.arg("run")
        .arg(bench.recipe())
        .arg("--work")
        .arg(bench.work())
        .stderr(std::process::Stdio::null());
    let mut run = run.spawn().unwrap();
    let pause = || std::thread::sleep(std::time::Duration::from_millis(20));
    let start = std::time::Instant::now();
    while !bench.work().join(begun).exists() || files.iter().any(|file| length(file) == 0) {
        assert!(start.elapsed().as_secs() < 60, "nothing began");
        assert!(run.try_wait().unwrap().is_none(), "the run ended by itself");
        pause();
    }
    run.kill().unwrap();
    run.wait().unwrap();
    // The kernel and the supervisor need a moment; a writer needs far less for its next line.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let before: Vec<u64> = files.iter().map(|file| length(file)).collect();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let after: Vec<u64> = files.iter().map(|file| length(file)).collect();
    assert_eq!(before, after, "{files:?} are still written");
}

/// After `kill -9` of a run, processes that its shell stages had started went on writing.
#[test]
#[cfg(target_os = "linux")]
fn nothing_that_a_stage_has_started_outlives_a_killed_run() {
    let bench = RecipeBench::new();
    // A grandchild, one with a session of its own, and one whose parent has ended.
    let write = |file: &str| format!("while :; do echo x >> {file}; sleep 0.01; done");
    let command = format!(
        "({}) & setsid sh -c '{}' & sh -c '({}) & :'; touch begun; wait",
        write("child"),
        write("session"),
        write("orphan")
    );
    let recipe = json!({
        "stages": [{"name": "long", "shell": {"command": command, "outputs": "begun"}}]
    });
    fs::write(bench.recipe(), recipe.to_string()).unwrap();
    kill_and_watch(&bench, "begun", &["child", "session", "orphan"]);
}

/// After `kill -9` of a run, its training continued alone.
#[test]
#[cfg(target_os = "linux")]
fn a_command_of_this_program_does_not_outlive_a_killed_run() {
    let bench = RecipeBench::new();
    let texts = "All that is begun is ended. ".repeat(50);
    fs::write(bench.path("texts.txt"), texts).unwrap();
    let seed = fixture("llama/seed");
    let recipe = json!({"stages": [
        {"name": "tokens", "tokenize": {"tokenizer": seed, "paths": "${recipe}/texts.txt", "validation": 0, "out": "tokens"}},
        {"name": "law", "train": {"checkpoint": seed, "data": {"law": "tokens"}, "steps": 1_000_000, "batch": 1, "seq": 24,
                                  "threads": 1, "dump-rows": "rows.jsonl", "out": "law"}},
    ]});
    fs::write(bench.recipe(), recipe.to_string()).unwrap();
    kill_and_watch(&bench, "law.run", &["rows.jsonl"]);
}

/// A mirror linked to further pages of a listing under the name of another Hub, and `pull` refused them.
#[test]
fn a_hub_that_names_itself_otherwise_is_asked_where_it_is() {
    let named = Some("https://hub.example".to_owned());
    let world = World::with(Options {
        page_size: 2,
        named,
        ..Options::default()
    });
    world.run(&["pull", REPOSITORY]).ok();
    assert_is_seed(&world.snapshot());
    let pages = world
        .server
        .requests()
        .iter()
        .filter(|request| request.target.contains("cursor="))
        .count();
    assert_eq!(pages, 3);
}
