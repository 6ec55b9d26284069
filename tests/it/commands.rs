//! The other commands, and what all of them share: previews, help, completions, manual pages, pipes.

use std::path::Path;
use std::process::Command;

use crate::common::{
    Run, Tensor, Tensors, assert_same_folder, assert_same_tensor, bam, contents, copy_folder,
    edit_json, finish, fixture, identity, listing, mean, note, read_folder, read_json, sha256,
    write_file,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs the binary in a folder, so that what it prints holds no path of this machine.
fn run_in(folder: &Path, arguments: &[&str]) -> Run {
    let mut command = Command::new(crate::common::binary());
    command.current_dir(folder).args(arguments);
    finish(command)
}

// ---------------------------------------------------------------- branch

#[test]
fn branches_are_the_seed_byte_for_byte() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("branches");
    let seed = copy_folder(&fixture("llama_sharded/seed"), &work.path().join("seed"));
    bam!("branch", seed, "--into", "code,law,math", "--out", out).ok();
    let of_seed = contents(&seed);
    for name in ["code", "law", "math"] {
        let mut found = contents(&out.join(name));
        let manifest: Value =
            serde_json::from_slice(&found.remove("bam-manifest.json").unwrap()).unwrap();
        found.remove("README.md").unwrap();
        assert!(found == of_seed, "{name}");
        assert_eq!(manifest["method"], "branch");
        assert_eq!(manifest["sources"][0]["path"], "../../seed");
        for file in manifest["files"].as_array().unwrap() {
            assert_eq!(
                file["sha256"],
                sha256(&of_seed[file["path"].as_str().unwrap()]),
                "{file}"
            );
        }
        for file in found.keys() {
            assert_ne!(
                identity(&out.join(name).join(file)).1,
                identity(&seed.join(file)).1,
                "{file} must be a copy"
            );
        }
    }
    assert_eq!(
        listing(work.path())
            .keys()
            .filter(|name| name.contains("partial"))
            .count(),
        0
    );
}

#[test]
fn linked_branches_share_the_weights_only() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("branches");
    let seed = copy_folder(&fixture("llama_sharded/seed"), &work.path().join("seed"));
    bam!("branch", seed, "--into", "code,law", "--out", out, "--link").ok();
    for name in ["code", "law"] {
        for file in contents(&seed).keys() {
            let shared = identity(&out.join(name).join(file)).1 == identity(&seed.join(file)).1;
            // People edit a branch's config; its shards are replaced, not edited.
            assert_eq!(shared, file.ends_with(".safetensors"), "{name}/{file}");
        }
        assert!(read_folder(&out.join(name)) == read_folder(&seed));
    }
}

#[test]
fn a_branch_of_a_branch_names_its_own_parent() {
    let work = TempDir::new().unwrap();
    let first = work.path().join("first");
    bam!(
        "branch",
        fixture("qwen3/seed"),
        "--into",
        "a",
        "--out",
        first
    )
    .ok();
    bam!(
        "branch",
        first.join("a"),
        "--into",
        "b",
        "--out",
        work.path().join("second")
    )
    .ok();
    let manifest = read_json(work.path().join("second/b/bam-manifest.json"));
    assert_eq!(manifest["sources"][0]["path"], "../../first/a");
    assert!(read_folder(&work.path().join("second/b")) == read_folder(&fixture("qwen3/seed")));
}

// ---------------------------------------------------------------- merge

#[test]
fn a_merge_is_the_weighted_average() {
    let work = TempDir::new().unwrap();
    let folders = ["seed", "code", "law"].map(|name| fixture("cohere").join(name));
    let models = folders.clone().map(|folder| read_folder(&folder));
    let weights = [0.5, 1.25, -0.25];
    let out = work.path().join("out");
    let [a, b, c] = [0, 1, 2].map(|i| format!("{}:{}", folders[i].display(), weights[i]));
    bam!(
        "merge", "--model", a, "--model", b, "--model", c, "--out", out
    )
    .ok();
    for (name, tensor) in read_folder(&out) {
        let parts = [0, 1, 2].map(|i| models[i][&name].values());
        let values: Vec<f64> = (0..parts[0].len())
            .map(|e| {
                (weights[0] * parts[0][e] + weights[1] * parts[1][e] + weights[2] * parts[2][e])
                    / 1.5
            })
            .collect();
        assert_same_tensor(
            &name,
            &tensor,
            &Tensor::new(Dtype::BF16, &tensor.shape, &values),
        );
    }
    assert_eq!(read_folder(&out).len(), models[0].len());
    let found = contents(&out);
    assert!(found["tokenizer.json"] == contents(&folders[0])["tokenizer.json"]);
    let config = read_json(out.join("config.json"));
    assert_eq!(
        (&config["model_type"], &config["rope_theta"]),
        (&json!("cohere"), &json!(50000.0))
    );
    let manifest = read_json(out.join("bam-manifest.json"));
    assert_eq!(manifest["settings"]["weights"], json!(weights));
    assert_eq!(manifest["sources"].as_array().unwrap().len(), 3);
}

#[test]
fn equal_weights_are_the_mean_whatever_they_are() {
    let work = TempDir::new().unwrap();
    let [a, b] = ["seed", "code"].map(|name| fixture("llama").join(name));
    let (plain, heavy) = (work.path().join("plain"), work.path().join("heavy"));
    bam!("merge", "--model", a, "--model", b, "--out", plain).ok();
    let (heavy_a, heavy_b) = (format!("{}:3", a.display()), format!("{}:3", b.display()));
    bam!(
        "merge", "--model", heavy_a, "--model", heavy_b, "--out", heavy
    )
    .ok();
    let (left, right) = (read_folder(&a), read_folder(&b));
    for (name, tensor) in read_folder(&plain) {
        assert_same_tensor(&name, &tensor, &mean(&[&left[&name], &right[&name]]));
    }
    assert!(read_folder(&plain) == read_folder(&heavy));
}

// ---------------------------------------------------------------- init

/// Nemotron's norms multiply by one plus their weight, and have biases.
#[test]
fn init_starts_norms_at_the_factor_one() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    bam!("init", fixture("families/nemotron"), "--out", out).ok();
    for (name, tensor) in read_folder(&out) {
        if name.contains("norm") {
            assert!(tensor.values().iter().all(|value| *value == 0.0), "{name}");
        }
    }
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("Norms are 0 and biases are 0"), "{card}");
}

#[test]
fn init_draws_weights_sets_norms_and_clears_biases() {
    let work = TempDir::new().unwrap();
    let out = |name: &str| work.path().join(name);
    let folder = fixture("llama_bias/seed");
    bam!("init", folder, "--out", out("a"), "--rng-seed", "7").ok();
    bam!(
        "init",
        folder,
        "--out",
        out("b"),
        "--rng-seed",
        "7",
        "--threads",
        "3",
        "--memory",
        "2MiB"
    )
    .ok();
    bam!("init", folder, "--out", out("c")).ok();
    assert_same_folder(&out("a"), &out("b"));
    let (found, other, dense) = (
        read_folder(&out("a")),
        read_folder(&out("c")),
        read_folder(&folder),
    );
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        dense.keys().collect::<Vec<_>>()
    );
    let mut drawn = Vec::new();
    for (name, tensor) in &found {
        assert_eq!(
            (tensor.dtype, &tensor.shape),
            (dense[name].dtype, &dense[name].shape),
            "{name}"
        );
        let values = tensor.values();
        if name.contains("norm") {
            assert!(values.iter().all(|value| *value == 1.0), "{name}");
        } else if name.ends_with(".bias") {
            assert!(values.iter().all(|value| *value == 0.0), "{name}");
        } else {
            assert_ne!(
                tensor.bytes, other[name].bytes,
                "{name} must depend on the seed"
            );
            drawn.push(values);
        }
    }
    let all: Vec<f64> = drawn.concat();
    let n = all.len() as f64;
    let average = all.iter().sum::<f64>() / n;
    let std = (all.iter().map(|x| (x - average).powi(2)).sum::<f64>() / n).sqrt();
    assert!(
        average.abs() < 5.0 * 0.02 / n.sqrt() && (std / 0.02 - 1.0).abs() < 0.03,
        "{average} {std}"
    );
    for (i, a) in drawn.iter().enumerate() {
        assert!(
            drawn[i + 1..].iter().all(|b| a[..8] != b[..8]),
            "two tensors share their draws"
        );
    }
    assert!(contents(&out("a"))["tokenizer.json"] == contents(&folder)["tokenizer.json"]);
}

#[test]
fn init_from_a_config_alone() {
    let work = TempDir::new().unwrap();
    let config = work.path().join("tiny.json");
    std::fs::copy(fixture("qwen2/seed/config.json"), &config).unwrap();
    edit_json(&config, |config| config["initializer_range"] = json!(0.5));
    let out = work.path().join("out");
    bam!("init", config, "--out", out, "--dtype", "f16").ok();
    let found = read_folder(&out);
    assert!(found.values().all(|tensor| tensor.dtype == Dtype::F16));
    let values = found["model.embed_tokens.weight"].values();
    let std = (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt();
    assert!((std / 0.5 - 1.0).abs() < 0.03, "{std}");
    let written = read_json(out.join("config.json"));
    assert_eq!(
        (&written["torch_dtype"], &written["dtype"]),
        (&json!("float16"), &json!("float16"))
    );
    // And it is a seed.
    let expert = format!("x={}", out.display());
    bam!(
        "upcycle",
        "--method",
        "btx",
        "--seed",
        out,
        "--expert",
        expert,
        "--out",
        work.path().join("mixture")
    )
    .ok();
}

// ---------------------------------------------------------------- inspect and cost

#[test]
fn inspect_tells_a_program_what_is_there() {
    let json = bam!(
        "inspect",
        fixture("llama_sharded/seed"),
        "--tensors",
        "--json"
    )
    .ok()
    .json();
    let tensors = read_folder(&fixture("llama_sharded/seed"));
    let bytes: usize = tensors.values().map(|tensor| tensor.bytes.len()).sum();
    assert_eq!(json["bytes"], bytes);
    assert_eq!(json["parameters"], bytes / 2);
    assert_eq!(
        json["encodings"],
        json!({"BF16": {"tensors": tensors.len(), "bytes": bytes}})
    );
    assert_eq!(json["files"].as_array().unwrap().len(), 4);
    let listed = json["tensors"].as_array().unwrap();
    assert_eq!(listed.len(), tensors.len());
    for entry in listed {
        let tensor = &tensors[entry["name"].as_str().unwrap()];
        assert_eq!(
            (&entry["shape"], &entry["bytes"]),
            (&json!(tensor.shape), &json!(tensor.bytes.len())),
            "{entry}"
        );
    }
    let gguf = bam!("inspect", fixture("gguf/llama-k.gguf"), "--json")
        .ok()
        .json();
    let encodings: Vec<&String> = gguf["encodings"].as_object().unwrap().keys().collect();
    assert_eq!(encodings, ["F32", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]);
}

#[test]
fn inspect_knows_a_mixture() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let code = format!("code={}", fixture("cohere/code").display());
    bam!(
        "upcycle",
        "--method",
        "bam",
        "--kv",
        "shared",
        "--preset",
        "paper",
        "--seed",
        fixture("cohere/seed"),
        "--expert",
        code,
        "--out",
        out
    )
    .ok();
    let json = bam!("inspect", out, "--json").ok().json();
    assert_eq!(json["expert_names"], json!(["seed", "code"]));
    assert_eq!(json["method"], "bam");
    assert_eq!(json["architecture"]["mixture"]["attention_kv"], "shared");
    let (total, active) = (
        json["parameters"].as_u64().unwrap(),
        json["active_parameters"].as_u64().unwrap(),
    );
    // One of two feed-forward experts is idle: 3 matrices of 48 x 32 in each of 2 layers.
    assert_eq!(total - active, 2 * 3 * 48 * 32);
}

fn cost(config: &str, flags: &[&str]) -> Value {
    let folder = fixture("");
    run_in(&folder, &[&["cost", config, "--json"], flags].concat())
        .ok()
        .json()
}

/// Tables 7 and 9 of the paper, recomputed from its Table 8 (`paper.md` §5.5 and §5.6 of the design notes).
#[test]
fn cost_gives_the_papers_numbers() {
    let bam = ["--method=bam", "--experts=4", "--preset=paper"];
    let shared = [&bam[..], &["--kv", "shared"]].concat();
    let btx = |experts, top_k| ["--method", "btx", "--experts", experts, "--top-k", top_k];
    let rows: [(&[&str], u64, u64); 9] = [
        (&[], 587_209_728, 587_209_728),
        (&btx("4", "1"), 700_480_512, 587_234_304),
        (&btx("5", "1"), 738_235_392, 587_240_448),
        (&btx("6", "1"), 775_990_272, 587_246_592),
        (&btx("7", "1"), 813_745_152, 587_252_736),
        (&btx("8", "1"), 851_500_032, 587_258_880),
        (&btx("6", "3"), 775_990_272, 662_744_064),
        (&bam, 776_002_560, 662_756_352),
        (&shared, 738_253_824, 625_007_616),
    ];
    for (flags, total, active) in rows {
        let report = cost("paper_small.json", flags);
        assert_eq!(
            (&report["total_parameters"], &report["active_parameters"]),
            (&json!(total), &json!(active)),
            "{flags:?}"
        );
    }

    // Per layer: total and active of each component.
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, u64, u64)]);
    let components: [Case; 4] = [
        (
            &[],
            &[
                ("norms", 1024, 1024),
                ("output_projection", 1_048_576, 1_048_576),
                ("qkv_projection", 3_145_728, 3_145_728),
                ("ffn_in", 4_194_304, 4_194_304),
                ("ffn_out", 2_097_152, 2_097_152),
            ],
        ),
        (
            &bam,
            &[
                ("norms", 1024, 1024),
                ("output_projection", 4_194_304, 4_194_304),
                ("qkv_projection", 12_582_912, 12_582_912),
                ("ffn_in", 16_777_216, 4_194_304),
                ("ffn_out", 8_388_608, 2_097_152),
                ("ffn_router", 4096, 4096),
                ("attention_router", 4096, 4096),
            ],
        ),
        // The paper prints 4,194,304 for the projections here, which leaves K and V out.
        (
            &shared,
            &[
                ("qkv_projection", 6_291_456, 6_291_456),
                ("output_projection", 4_194_304, 4_194_304),
            ],
        ),
        (
            &btx("6", "3"),
            &[
                ("qkv_projection", 3_145_728, 3_145_728),
                ("ffn_in", 25_165_824, 12_582_912),
                ("ffn_out", 12_582_912, 6_291_456),
                ("ffn_router", 6144, 6144),
            ],
        ),
    ];
    for (flags, expected) in components {
        let report = cost("paper_small.json", flags);
        let layer = report["layer_kinds"][0]["parameters"].as_array().unwrap();
        for (name, total, active) in expected {
            let row = layer.iter().find(|row| row["component"] == *name).unwrap();
            assert_eq!(
                (&row["total"], &row["active"]),
                (&json!(total), &json!(active)),
                "{flags:?} {name}"
            );
        }
    }

    let flops: [(&[&str], u64, u64, u64); 3] = [
        (&bam, 35_651_584, 12_589_056, 48_257_024),
        (&btx("4", "1"), 8_912_896, 12_589_056, 21_510_144),
        (&btx("6", "3"), 8_912_896, 37_767_168, 46_692_352),
    ];
    for (flags, attention, ffn, total) in flops {
        let report = cost("paper_small.json", flags);
        let found = &report["layer_kinds"][0]["flops_per_token"];
        assert_eq!(
            (&found["attention"], &found["ffn"], &found["total"]),
            (&json!(attention), &json!(ffn), &json!(total)),
            "{flags:?}"
        );
    }

    for (config, expert, one) in [
        ("paper_small.json", 49_152, 12_288),
        ("paper_large.json", 110_592, 27_648),
    ] {
        assert_eq!(cost(config, &bam)["kv_cache_values_per_token"], expert);
        assert_eq!(cost(config, &shared)["kv_cache_values_per_token"], one);
    }
    assert_eq!(
        cost("paper_large.json", &[])["total_parameters"],
        1_991_289_600u64
    );
}

#[test]
fn cost_of_a_written_mixture_is_what_was_written() {
    let work = TempDir::new().unwrap();
    for family in ["llama", "qwen2", "qwen3", "cohere"] {
        for flags in [
            &["--method", "bam"][..],
            &["--method", "bam", "--kv", "shared"],
            &["--method", "btx", "--seed-copies", "1"],
        ] {
            let out = work.path().join(format!("{family}{}", flags.join("")));
            let code = format!("code={}", fixture(family).join("code").display());
            let out_text = out.to_str().unwrap();
            let folder = fixture(family);
            run_in(
                &folder,
                &[
                    &[
                        "upcycle", "--seed", "seed", "--expert", &code, "--out", out_text,
                    ],
                    flags,
                ]
                .concat(),
            )
            .ok();
            let counted: usize = read_folder(&out)
                .values()
                .map(|tensor| tensor.bytes.len() / 2)
                .sum();
            let report = bam!("cost", out, "--json").ok().json();
            assert_eq!(report["total_parameters"], counted, "{family} {flags:?}");
            assert_eq!(report["parameter_bytes"], 2 * counted);
            assert_eq!(
                bam!("inspect", out, "--json").ok().json()["active_parameters"],
                report["active_parameters"]
            );
        }
    }
}

// ---------------------------------------------------------------- to see before acting

#[test]
fn a_preview_writes_nothing_and_tells_the_truth() {
    let work = TempDir::new().unwrap();
    let (seed, code) = (fixture("qwen3/seed"), fixture("qwen3/code"));
    let (seed, code) = (seed.to_str().unwrap(), code.to_str().unwrap());
    let expert = format!("code={code}");
    let half = format!("{code}:0.5");
    let out = work.path().join("deep/out");
    let out = out.to_str().unwrap();
    let gguf = fixture("gguf/llama-q4_1.gguf");
    let commands: [&[&str]; 7] = [
        &[
            "upcycle", "--method", "bam", "--seed", seed, "--expert", &expert, "--out", out,
        ],
        &[
            "upcycle",
            "--method",
            "btx",
            "--seed",
            seed,
            "--expert",
            &expert,
            "--out",
            out,
            "--max-shard-size",
            "20KB",
        ],
        &["merge", "--model", seed, "--model", &half, "--out", out],
        &[
            "convert",
            seed,
            out,
            "--dtype",
            "f32",
            "--max-shard-size",
            "50KB",
        ],
        &["convert", gguf.to_str().unwrap(), out],
        &["init", seed, "--out", out],
        &[
            "upcycle",
            "--method",
            "bam",
            "--kv",
            "shared",
            "--seed",
            seed,
            "--expert",
            &expert,
            "--out",
            out,
            "--router-dtype",
            "f32",
        ],
    ];
    for command in commands {
        let preview = run_in(work.path(), &[command, &["--dry-run", "--json"]].concat())
            .ok()
            .json();
        let text = run_in(work.path(), &[command, &["--dry-run"]].concat())
            .ok()
            .stdout;
        assert!(
            listing(work.path()).is_empty(),
            "{command:?} --dry-run wrote something"
        );
        run_in(work.path(), command).ok();
        let folder = work.path().join("deep/out");
        let tensors = read_folder(&folder);
        let bytes: usize = tensors.values().map(|tensor| tensor.bytes.len()).sum();
        let elements: usize = tensors
            .values()
            .map(|tensor| tensor.shape.iter().product::<usize>())
            .sum();
        let files = contents(&folder)
            .keys()
            .filter(|name| name.ends_with(".safetensors"))
            .count();
        assert_eq!(preview["tensors"], tensors.len(), "{command:?}");
        assert_eq!(preview["bytes"], bytes, "{command:?}");
        assert_eq!(preview["parameters"], elements, "{command:?}");
        assert_eq!(preview["weight_files"], files, "{command:?}");
        let groups = preview["groups"].as_array().unwrap();
        assert_eq!(
            groups
                .iter()
                .map(|group| group["bytes"].as_u64().unwrap())
                .sum::<u64>(),
            bytes as u64
        );
        for group in groups {
            assert!(text.contains(group["name"].as_str().unwrap()), "{text}");
        }
        let inspected = bam!("inspect", folder, "--json").ok().json();
        if command[0] != "convert" {
            assert_eq!(
                preview["active_parameters"], inspected["active_parameters"],
                "{command:?}"
            );
        }
        std::fs::remove_dir_all(work.path().join("deep")).unwrap();
    }
    let branch = ["branch", seed, "--into", "a,b", "--out", out, "--dry-run"];
    run_in(work.path(), &branch).ok();
    assert!(listing(work.path()).is_empty());
}

/// Sizes of disks differ between machines.
fn settle() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"(disk free\s+)[\d.]+ \w+", "$1[size]");
    settings.bind_to_scope()
}

#[test]
fn what_a_preview_looks_like() {
    let _settled = settle();
    let folder = fixture("llama");
    let run = run_in(
        &folder,
        &[
            "upcycle",
            "--method",
            "bam",
            "--seed",
            "seed",
            "--expert",
            "code=code",
            "--out",
            "out",
            "--threads",
            "2",
            "--dry-run",
        ],
    );
    insta::assert_snapshot!("upcycle_dry_run", run.ok().stdout);
}

#[test]
fn what_cost_looks_like() {
    let folder = fixture("");
    let run = run_in(
        &folder,
        &[
            "cost",
            "paper_small.json",
            "--method",
            "bam",
            "--kv",
            "shared",
        ],
    );
    insta::assert_snapshot!("cost", run.ok().stdout);
}

#[test]
fn what_inspect_looks_like() {
    let folder = fixture("qwen2");
    insta::assert_snapshot!(
        "inspect",
        run_in(&folder, &["inspect", "seed", "--tensors"])
            .ok()
            .stdout
    );
}

#[test]
fn what_a_refusal_looks_like() {
    let work = TempDir::new().unwrap();
    copy_folder(&fixture("llama/seed"), &work.path().join("seed"));
    let code = copy_folder(&fixture("llama/code"), &work.path().join("code"));
    edit_json(&code.join("config.json"), |config| {
        config["rope_parameters"]["rope_theta"] = json!(10000.0)
    });
    let arguments = [
        "upcycle",
        "--method",
        "bam",
        "--seed",
        "seed",
        "--expert",
        "code=code",
        "--out",
        "out",
    ];
    insta::assert_snapshot!(
        "refusal",
        run_in(work.path(), &arguments).refused(2, &[]).stderr
    );
}

// ---------------------------------------------------------------- help, completions, manual pages, pipes

/// The commands that `--help` lists.
fn commands() -> Vec<String> {
    let help = bam!("--help").ok().stdout;
    let list = help
        .split("Commands:\n")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    let names = list
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '));
    let names: Vec<String> = names
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect();
    assert!(names.len() >= 9, "{names:?}");
    names
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in commands() {
        let help = bam!(command, "--help").ok().stdout;
        assert!(help.contains("Example"), "{command}:\n{help}");
        assert!(
            help.contains(&format!("bam-convert {command} ")),
            "{command}: the example must use it\n{help}"
        );
        assert!(
            help.lines().all(|line| line.chars().count() <= 110),
            "{command}:\n{help}"
        );
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let work = TempDir::new().unwrap();
    let pages = work.path().join("man1");
    bam!("man", "--out", pages).ok();
    for shell in ["bash", "zsh", "fish"] {
        let script = bam!("completions", shell).ok().stdout;
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
        }
        assert!(
            script.contains("max-shard-size") && script.contains("bam-convert"),
            "{shell}"
        );
    }
    for command in commands() {
        let page = std::fs::read_to_string(pages.join(format!("bam-convert-{command}.1"))).unwrap();
        for section in MAN_SECTIONS.iter().chain(&["EXAMPLES"]) {
            assert!(
                page.contains(&format!("\n.SH {section}\n"))
                    || page.contains(&format!("\n.SH \"{section}\"\n")),
                "{command}: {section}\n{page}"
            );
        }
    }
    let main = std::fs::read_to_string(pages.join("bam-convert.1")).unwrap();
    for part in MAN_SECTIONS {
        assert!(main.contains(part), "{part}\n{main}");
    }
}

/// The sections of every manual page, in their order.
const MAN_SECTIONS: [&str; 7] = [
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "EXIT STATUS",
    "ENVIRONMENT",
    "FILES",
    "SEE ALSO",
];

#[test]
fn manual_pages_are_what_readers_of_them_accept() {
    let work = TempDir::new().unwrap();
    bam!("man", "--out", work.path()).ok();
    let pages: Vec<_> = std::fs::read_dir(work.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let is_there = |program: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("command -v {program}")]);
        finish(command).code == Some(0)
    };
    if is_there("groff") {
        let mut command = Command::new("groff");
        command.args(["-k", "-man", "-Tutf8", "-ww", "-z"]);
        command.args(&pages);
        let run = finish(command).ok();
        assert_eq!(run.stderr, "", "{run}");
    } else {
        note("groff is not installed, so it does not check the manual pages");
    }
    if is_there("mandoc") {
        let mut command = Command::new("mandoc");
        // clap_mangen's own sections have warnings.
        command.args(["-T", "lint", "-W", "error"]).args(&pages);
        finish(command).ok();
    } else {
        note("mandoc is not installed, so it does not check the manual pages");
    }
    if is_there("groff") {
        let mut command = Command::new("groff");
        command.args(["-man", "-Tascii", "-P-cbou"]);
        command.arg(work.path().join("bam-convert-upcycle.1"));
        let text = finish(command).ok().stdout;
        for part in [
            "HF_TOKEN_PATH",
            "the file with the token [default: $HF_HOME/token]",
            "~/.cache/bam-convert/hashes",
            "bam-convert(1)",
            "wrong usage or input",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(
        bam!("--version").ok().stdout.trim(),
        format!("bam-convert {}", env!("CARGO_PKG_VERSION"))
    );
    let nothing = bam!();
    assert_eq!(nothing.code, Some(2), "{nothing}");
}

#[test]
fn the_verbose_version_says_which_build_it_is() {
    for [version, verbose] in [["--version", "--verbose"], ["-V", "-v"]] {
        let text = bam!(version, verbose).ok().stdout;
        let mut lines = text.lines();
        let version = format!("bam-convert {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(lines.next(), Some(version.as_str()));
        let names = lines.map(|line| line.split_once(':').unwrap().0);
        assert_eq!(
            names.collect::<Vec<_>>(),
            ["commit", "system", "features", "cpu"],
            "{text}"
        );
        assert!(text.contains("hub"), "{text}");
        // The kernels that this processor gets.
        #[cfg(target_arch = "x86_64")]
        assert_eq!(
            text.contains("avx2"),
            is_x86_feature_detected!("avx2"),
            "{text}"
        );
    }
}

/// A listing that no pipe can hold at once.
fn long_listing(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("many.safetensors");
    let tensor = Tensor::new(Dtype::F32, &[1], &[1.0]);
    let tensors: Tensors = (0..4000)
        .map(|i| {
            (
                format!("model.layers.{i}.self_attn.rather_long_name.weight"),
                tensor.clone(),
            )
        })
        .collect();
    write_file(&path, &tensors);
    path
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let work = TempDir::new().unwrap();
    let path = long_listing(work.path());
    for flag in ["--quiet", "--json"] {
        let mut command = Command::new("bash");
        let script = "\"$0\" inspect --tensors $2 \"$1\" | head -1; echo \"exit ${PIPESTATUS[0]}\"";
        command
            .args(["-c", script])
            .arg(crate::common::binary())
            .arg(&path)
            .arg(flag);
        let run = finish(command).ok();
        assert!(
            run.stdout.ends_with("exit 0\n") && run.stderr.is_empty(),
            "{run}"
        );
        assert_eq!(run.stdout.lines().count(), 2, "{run}");
    }
}

#[test]
fn a_result_that_cannot_be_printed_is_an_error() {
    for line in ["inspect \"$1\"", "--help", "train --help", "-V", "-V -v"] {
        let mut command = Command::new("bash");
        command
            .args(["-c", &format!("\"$0\" {line} > /dev/full")])
            .arg(crate::common::binary())
            .arg(fixture("llama/seed"));
        let run = finish(command);
        assert_eq!(run.code, Some(3), "{line}: {run}");
        assert!(run.stderr.contains("No space left"), "{line}: {run}");
    }
}

#[test]
fn results_go_to_stdout_and_notes_to_stderr() {
    let work = TempDir::new().unwrap();
    let run = bam!("convert", fixture("llama/seed"), work.path().join("a")).ok();
    assert!(
        run.stdout.is_empty() && run.stderr.contains("wrote"),
        "{run}"
    );
    let run = bam!(
        "--quiet",
        "convert",
        fixture("llama/seed"),
        work.path().join("b")
    )
    .ok();
    assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{run}");
    let run = bam!(
        "convert",
        fixture("llama/seed"),
        work.path().join("c"),
        "--json",
        "--quiet"
    )
    .ok();
    assert_eq!(run.json()["method"], "convert");
    assert!(run.stderr.is_empty(), "{run}");
}
