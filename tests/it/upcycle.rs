//! `upcycle`: every tensor of the output recomputed from the sources, with names as `docs/reference/checkpoint.md` lists them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::{
    Noise, Run, Tensor, Tensors, assert_same_tensor, bam, contents, copy_folder, decode, edit_json,
    edit_tensors, fixture, identity, mean, read_file, read_folder, read_json, sha256, write_file,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "cohere"];
const LAYERS: usize = 2;

/// What makes a family's checkpoints different from another's.
struct Traits {
    qkv_bias: bool,
    qk_norm: bool,
    two_norms: bool,
    tied: bool,
}

fn traits(family: &str) -> Traits {
    Traits {
        qkv_bias: family == "qwen2",
        qk_norm: family == "qwen3",
        two_norms: family != "cohere",
        tied: !["mistral", "qwen3"].contains(&family),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Expert,
    Shared,
    Btx,
}

/// What a tensor of the output must be.
#[derive(Debug)]
enum Is {
    /// The bytes of this tensor of this model.
    Copy(usize, String),
    /// The average over the dense models.
    Mean(String),
    Router,
}

/// Every tensor that a mixture of `experts` (model numbers) must have.
fn expected(
    family: &str,
    kind: Kind,
    attention: &[usize],
    experts: &[usize],
) -> BTreeMap<String, Is> {
    let Traits {
        qkv_bias,
        qk_norm,
        two_norms,
        tied,
    } = traits(family);
    let mut all = BTreeMap::new();
    let mut same = |name: &str| all.insert(name.to_owned(), Is::Mean(name.to_owned()));
    same("model.embed_tokens.weight");
    same("model.norm.weight");
    if !tied {
        same("lm_head.weight");
    }
    for l in 0..LAYERS {
        let layer = format!("model.layers.{l}");
        let mut averaged = vec!["input_layernorm.weight".to_owned()];
        if two_norms {
            averaged.push("post_attention_layernorm.weight".to_owned());
        }
        // What belongs to each projection.
        let parts = |projection: char| {
            let mut parts = vec![format!("{projection}_proj.weight")];
            if qkv_bias && projection != 'o' {
                parts.push(format!("{projection}_proj.bias"));
            }
            if qk_norm && (projection == 'q' || projection == 'k') {
                parts.push(format!("{projection}_norm.weight"));
            }
            parts
        };
        let (copied, shared): (&[char], &[char]) = match kind {
            Kind::Expert => (&['q', 'k', 'v', 'o'], &[]),
            Kind::Shared => (&['q', 'o'], &['k', 'v']),
            Kind::Btx => (&[], &['q', 'k', 'v', 'o']),
        };
        for part in shared.iter().flat_map(|projection| parts(*projection)) {
            averaged.push(format!("self_attn.{part}"));
        }
        for name in averaged {
            all.insert(
                format!("{layer}.{name}"),
                Is::Mean(format!("{layer}.{name}")),
            );
        }
        for (e, model) in attention.iter().enumerate() {
            for part in copied.iter().flat_map(|projection| parts(*projection)) {
                let from = format!("{layer}.self_attn.{part}");
                all.insert(
                    format!("{layer}.self_attn.attention_experts.{e}.{part}"),
                    Is::Copy(*model, from),
                );
            }
        }
        for (e, model) in experts.iter().enumerate() {
            for part in ["gate_proj.weight", "up_proj.weight", "down_proj.weight"] {
                all.insert(
                    format!("{layer}.mlp.experts.{e}.{part}"),
                    Is::Copy(*model, format!("{layer}.mlp.{part}")),
                );
            }
        }
        all.insert(format!("{layer}.mlp.router.weight"), Is::Router);
        if kind != Kind::Btx {
            all.insert(format!("{layer}.self_attn.router.weight"), Is::Router);
        }
    }
    all
}

/// Compares an output with what it must be; `averaged` are the models in the averages.
#[track_caller]
fn check(out: &Tensors, expected: &BTreeMap<String, Is>, models: &[&Tensors], averaged: &[usize]) {
    let names = |keys: Vec<&String>| keys.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(out.keys().collect()),
        names(expected.keys().collect())
    );
    for (name, is) in expected {
        match is {
            Is::Copy(model, from) => assert_same_tensor(name, &out[name], &models[*model][from]),
            Is::Mean(from) => {
                let parts: Vec<&Tensor> =
                    averaged.iter().map(|model| &models[*model][from]).collect();
                assert_same_tensor(name, &out[name], &mean(&parts));
            }
            Is::Router => {}
        }
    }
}

fn seed_and_experts(family: &str) -> [PathBuf; 3] {
    ["seed", "code", "law"].map(|name| fixture(family).join(name))
}

fn upcycle(family: &str, out: &Path, flags: &[&str]) -> Run {
    let [seed, code, law] = seed_and_experts(family);
    let mut arguments: Vec<std::ffi::OsString> =
        vec!["upcycle".into(), "--seed".into(), seed.into()];
    for (name, path) in [("code", code), ("law", law)] {
        arguments.extend([
            "--expert".into(),
            format!("{name}={}", path.display()).into(),
        ]);
    }
    arguments.extend(["--out".into(), out.into()]);
    arguments.extend(flags.iter().map(Into::into));
    crate::common::run(arguments)
}

const BAM: [&str; 2] = ["--method", "bam"];
const SHARED: [&str; 4] = ["--method", "bam", "--kv", "shared"];
const BTX: [&str; 2] = ["--method", "btx"];

fn with<'a>(base: &[&'a str], flags: &[&'a str]) -> Vec<&'a str> {
    [base, flags].concat()
}

// ---------------------------------------------------------------- tensors

#[test]
fn every_tensor_of_every_family_and_kind() {
    for family in FAMILIES {
        let models = seed_and_experts(family).map(|folder| read_folder(&folder));
        let models: Vec<&Tensors> = models.iter().collect();
        for (kind, flags) in [
            (Kind::Expert, &BAM[..]),
            (Kind::Shared, &SHARED),
            (Kind::Btx, &BTX),
        ] {
            let work = TempDir::new().unwrap();
            let out = work.path().join("out");
            upcycle(family, &out, flags).ok();
            let found = read_folder(&out);
            check(
                &found,
                &expected(family, kind, &[0, 1, 2], &[0, 1, 2]),
                &models,
                &[0, 1, 2],
            );
            let routers = found
                .iter()
                .filter(|(name, _)| name.ends_with("router.weight"));
            for (name, router) in routers {
                assert_eq!(
                    (router.dtype, &router.shape[..]),
                    (Dtype::BF16, &[3, 32][..]),
                    "{family} {kind:?} {name}"
                );
            }
        }
    }
}

#[test]
fn biases_go_where_their_weights_go() {
    // One folder as all three models: identical copies, and every projection has a bias.
    let seed = fixture("llama_bias/seed");
    let work = TempDir::new().unwrap();
    let dense = read_folder(&seed);
    for (kind, flags) in [("expert", &BAM[..]), ("shared", &SHARED)] {
        let out = work.path().join(kind);
        let expert = format!("copy={}", seed.display());
        let mut arguments: Vec<std::ffi::OsString> = vec![
            "upcycle".into(),
            "--seed".into(),
            seed.clone().into(),
            "--expert".into(),
            expert.into(),
            "--out".into(),
            out.clone().into(),
        ];
        arguments.extend(flags.iter().map(Into::into));
        crate::common::run(arguments).ok();
        let found = read_folder(&out);
        for e in 0..2 {
            for part in [
                "q_proj.bias",
                "o_proj.bias",
                "q_proj.weight",
                "o_proj.weight",
            ] {
                let name = format!("model.layers.1.self_attn.attention_experts.{e}.{part}");
                assert_same_tensor(
                    &name,
                    &found[&name],
                    &dense[&format!("model.layers.1.self_attn.{part}")],
                );
            }
            for part in ["gate_proj.bias", "up_proj.bias", "down_proj.bias"] {
                let name = format!("model.layers.0.mlp.experts.{e}.{part}");
                assert_same_tensor(
                    &name,
                    &found[&name],
                    &dense[&format!("model.layers.0.mlp.{part}")],
                );
            }
        }
        let place = if kind == "shared" {
            ""
        } else {
            "attention_experts.1."
        };
        for part in ["k_proj.bias", "v_proj.bias"] {
            let name = format!("model.layers.0.self_attn.{place}{part}");
            assert_same_tensor(
                &name,
                &found[&name],
                &dense[&format!("model.layers.0.self_attn.{part}")],
            );
        }
        assert_eq!(found["model.layers.0.mlp.router.weight"].dtype, Dtype::F32);
    }
}

#[test]
fn averages_of_identical_copies_are_the_seed_bit_for_bit() {
    for family in FAMILIES {
        let seed = fixture(family).join("seed");
        let dense = read_folder(&seed);
        let work = TempDir::new().unwrap();
        let out = work.path().join("out");
        // Three copies: 1/3 is inexact, (x + x + x) / 3 is not.
        let (a, b) = (
            format!("a={}", seed.display()),
            format!("b={}", seed.display()),
        );
        bam!(
            "upcycle", "--method", "btx", "--seed", seed, "--expert", a, "--expert", b, "--out",
            out
        )
        .ok();
        let found = read_folder(&out);
        let mut compared = 0;
        for (name, tensor) in found.iter().filter(|(name, _)| !name.contains(".mlp.")) {
            assert_same_tensor(name, tensor, &dense[name]);
            compared += 1;
        }
        assert!(compared >= 11, "{family}: {compared}");
    }
}

#[test]
fn a_sharded_seed_gives_what_the_same_seed_in_one_file_gives() {
    let work = TempDir::new().unwrap();
    let (one, many) = (work.path().join("one"), work.path().join("many"));
    let expert = format!("code={}", fixture("llama/code").display());
    bam!(
        "upcycle",
        "--method",
        "bam",
        "--seed",
        fixture("llama/seed"),
        "--expert",
        expert,
        "--out",
        one
    )
    .ok();
    bam!(
        "upcycle",
        "--method",
        "bam",
        "--seed",
        fixture("llama_sharded/seed"),
        "--expert",
        expert,
        "--out",
        many
    )
    .ok();
    assert!(
        read_file(&one.join("model.safetensors")) == read_file(&many.join("model.safetensors"))
    );
    let manifest = read_json(many.join("bam-manifest.json"));
    let files: Vec<&str> = manifest["sources"][0]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert!(
        files.contains(&"model-00004-of-00004.safetensors")
            && files.contains(&"model.safetensors.index.json"),
        "{files:?}"
    );
}

#[test]
fn shared_keys_and_values_of_the_seed() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle("qwen3", &out, &with(&SHARED, &["--shared-kv", "seed"])).ok();
    let (found, seed) = (read_folder(&out), read_folder(&fixture("qwen3/seed")));
    let models = seed_and_experts("qwen3").map(|folder| read_folder(&folder));
    for part in ["k_proj.weight", "v_proj.weight", "k_norm.weight"] {
        let name = format!("model.layers.1.self_attn.{part}");
        assert_same_tensor(&name, &found[&name], &seed[&name]);
    }
    let average = |name: &str| mean(&[&models[0][name], &models[1][name], &models[2][name]]);
    let name = "model.layers.1.input_layernorm.weight";
    assert_same_tensor(name, &found[name], &average(name));
    // What is said of keys and values holds against what is said of the rest.
    let other = work.path().join("other");
    upcycle(
        "qwen3",
        &other,
        &with(&SHARED, &["--shared-kv", "mean", "--rest", "seed"]),
    )
    .ok();
    let found = read_folder(&other);
    assert_same_tensor(name, &found[name], &seed[name]);
    for part in ["k_proj.weight", "v_proj.weight", "k_norm.weight"] {
        let name = format!("model.layers.1.self_attn.{part}");
        assert_same_tensor(&name, &found[&name], &average(&name));
    }
}

#[test]
fn without_the_seed_experts_and_averages_are_the_others() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle("mistral", &out, &with(&SHARED, &["--no-seed-expert"])).ok();
    let models = seed_and_experts("mistral").map(|folder| read_folder(&folder));
    let models: Vec<&Tensors> = models.iter().collect();
    check(
        &read_folder(&out),
        &expected("mistral", Kind::Shared, &[1, 2], &[1, 2]),
        &models,
        &[1, 2],
    );
    let config = read_json(out.join("config.json"));
    assert_eq!(
        (&config["num_experts"], &config["num_attention_experts"]),
        (&json!(2), &json!(2))
    );
}

#[test]
fn copies_of_the_seed_add_feed_forward_experts_only() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle("cohere", &out, &with(&BAM, &["--seed-copies", "2"])).ok();
    let models = seed_and_experts("cohere").map(|folder| read_folder(&folder));
    let models: Vec<&Tensors> = models.iter().collect();
    let found = read_folder(&out);
    check(
        &found,
        &expected("cohere", Kind::Expert, &[0, 1, 2], &[0, 1, 2, 0, 0]),
        &models,
        &[0, 1, 2],
    );
    assert_eq!(found["model.layers.0.mlp.router.weight"].shape, [5, 32]);
    assert_eq!(
        found["model.layers.0.self_attn.router.weight"].shape,
        [3, 32]
    );
    let config = read_json(out.join("config.json"));
    assert_eq!(
        (&config["num_experts"], &config["num_attention_experts"]),
        (&json!(5), &json!(3))
    );
}

#[test]
fn a_random_expert_is_fresh_and_leaves_the_averages_alone() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let seed = fixture("qwen2/seed");
    let code = format!("code={}", fixture("qwen2/code").display());
    bam!(
        "upcycle",
        "--method",
        "bam",
        "--seed",
        seed,
        "--expert",
        code,
        "--expert",
        "noise=random",
        "--out",
        out
    )
    .ok();
    let (found, seed, code) = (
        read_folder(&out),
        read_folder(&seed),
        read_folder(&fixture("qwen2/code")),
    );
    let mut all = Vec::new();
    for part in ["gate_proj", "up_proj", "down_proj"] {
        let fresh = &found[&format!("model.layers.0.mlp.experts.2.{part}.weight")];
        assert_eq!(fresh.dtype, Dtype::BF16);
        assert_eq!(
            fresh.shape,
            seed[&format!("model.layers.0.mlp.{part}.weight")].shape
        );
        all.extend(fresh.values());
    }
    let std = (all.iter().map(|x| x * x).sum::<f64>() / all.len() as f64).sqrt();
    assert!(
        (std - 0.02).abs() < 0.001,
        "{std} instead of the config's initializer_range"
    );
    let bias = &found["model.layers.1.self_attn.attention_experts.2.q_proj.bias"];
    assert!(bias.values().iter().all(|value| *value == 0.0));
    let name = "model.embed_tokens.weight";
    assert_same_tensor(name, &found[name], &mean(&[&seed[name], &code[name]]));
}

#[test]
fn experts_keep_their_dtype_and_averages_take_the_seeds() {
    let work = TempDir::new().unwrap();
    let (wide, out) = (work.path().join("wide"), work.path().join("out"));
    bam!("convert", fixture("llama/code"), wide, "--dtype", "f32").ok();
    edit_tensors(&wide, |tensors| {
        // Values that bf16 does not have, so that a rounding before the sum would show.
        let mut noise = Noise(7);
        for tensor in tensors.values_mut() {
            let values: Vec<f64> = tensor
                .values()
                .iter()
                .map(|x| x * (1.0 + noise.value() / 100.0))
                .collect();
            *tensor = Tensor::new(Dtype::F32, &tensor.shape, &values);
        }
    });
    let expert = format!("code={}", wide.display());
    let run = bam!(
        "upcycle",
        "--method",
        "bam",
        "--seed",
        fixture("llama/seed"),
        "--expert",
        expert,
        "--out",
        out
    )
    .ok();
    assert!(run.stderr.contains("F32"), "{run}");
    let (found, seed, code) = (
        read_folder(&out),
        read_folder(&fixture("llama/seed")),
        read_folder(&wide),
    );
    let name = "model.layers.1.mlp.experts.1.up_proj.weight";
    assert_same_tensor(
        name,
        &found[name],
        &code["model.layers.1.mlp.up_proj.weight"],
    );
    let name = "model.embed_tokens.weight";
    assert_same_tensor(name, &found[name], &mean(&[&seed[name], &code[name]]));
}

// ---------------------------------------------------------------- routers

/// ChaCha20 (RFC 8439's rounds, with a 64-bit counter): the 16 words of one block.
fn chacha20(key: &[u8; 32], counter: u64) -> [u32; 16] {
    let mut start = [
        0x6170_7865,
        0x3320_646e,
        0x7962_2d32,
        0x6b20_6574,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        counter as u32,
        (counter >> 32) as u32,
        0,
        0,
    ];
    for (word, bytes) in start[4..12].iter_mut().zip(key.chunks(4)) {
        *word = u32::from_le_bytes(bytes.try_into().unwrap());
    }
    let mut state: [u32; 16] = start;
    for round in 0..20 {
        let shift = if round % 2 == 0 { 0 } else { 1 };
        for column in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|row| 4 * row + (column + shift * row) % 4);
            for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
                state[x] = state[x].wrapping_add(state[y]);
                state[z] = (state[z] ^ state[x]).rotate_left(turn);
            }
        }
    }
    std::array::from_fn(|word| state[word].wrapping_add(start[word]))
}

/// Two numbers in units of 2^-53 for each element of the tensor called `name`.
fn draws(name: &str, seed: u64, elements: usize) -> Vec<[u64; 2]> {
    use sha2::{Digest, Sha256};
    let key = Sha256::new()
        .chain_update(b"bam-convert rng v1\0")
        .chain_update(seed.to_le_bytes())
        .chain_update(name);
    let key: [u8; 32] = key.finalize().into();
    let words: Vec<u32> = (0..elements.div_ceil(4) as u64)
        .flat_map(|block| chacha20(&key, block))
        .collect();
    let wide = |pair: &[u32]| (u64::from(pair[1]) << 32 | u64::from(pair[0])) >> 11;
    words
        .chunks(4)
        .take(elements)
        .map(|four| [wide(&four[..2]), wide(&four[2..])])
        .collect()
}

fn normal(name: &str, seed: u64, elements: usize) -> Vec<f64> {
    let unit = 2f64.powi(-53);
    let one = |[radius, angle]: [u64; 2]| {
        (-2.0 * ((radius + 1) as f64 * unit).ln()).sqrt()
            * (2.0 * std::f64::consts::PI * (angle as f64 * unit)).cos()
    };
    draws(name, seed, elements).into_iter().map(one).collect()
}

fn routers(out: &Path) -> Tensors {
    let mut tensors = read_folder(out);
    tensors.retain(|name, _| name.contains("router"));
    assert_eq!(tensors.len(), 2 * LAYERS);
    tensors
}

#[test]
fn normal_routers_are_the_documented_draws() {
    let work = TempDir::new().unwrap();
    let (usual, other) = (work.path().join("usual"), work.path().join("other"));
    upcycle("llama", &usual, &BAM).ok();
    upcycle(
        "llama",
        &other,
        &with(&BAM, &["--rng-seed", "41", "--router", "normal:0.5"]),
    )
    .ok();
    for (out, seed, std) in [(&usual, 0, 0.02), (&other, 41, 0.5)] {
        for (name, router) in routers(out) {
            let values: Vec<f64> = normal(&name, seed, 96)
                .iter()
                .map(|value| value * std)
                .collect();
            assert_same_tensor(&name, &router, &Tensor::new(Dtype::BF16, &[3, 32], &values));
        }
        assert_eq!(
            read_json(out.join("bam-manifest.json"))["settings"]["rng_seed"],
            seed
        );
    }
}

#[test]
fn uniform_routers_have_the_given_deviation() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle("llama", &out, &with(&BAM, &["--router", "uniform:0.1"])).ok();
    let reach = 0.1 * 3f64.sqrt();
    for (name, router) in routers(&out) {
        let values: Vec<f64> = draws(&name, 0, 96)
            .iter()
            .map(|[word, _]| (2.0 * (*word as f64 * 2f64.powi(-53)) - 1.0) * reach)
            .collect();
        assert_same_tensor(&name, &router, &Tensor::new(Dtype::BF16, &[3, 32], &values));
    }
}

#[test]
fn orthogonal_routers_have_orthonormal_rows() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle(
        "llama",
        &out,
        &with(&BAM, &["--router", "orthogonal:2", "--router-dtype", "f32"]),
    )
    .ok();
    for (name, router) in routers(&out) {
        assert_eq!(router.dtype, Dtype::F32);
        let values = router.values();
        let rows: Vec<&[f64]> = values.chunks(32).collect();
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate() {
                let dot: f64 = a.iter().zip(*b).map(|(x, y)| x * y).sum();
                let expected = if i == j { 4.0 } else { 0.0 };
                assert!(
                    (dot - expected).abs() < 1e-6,
                    "{name} rows {i} and {j}: {dot}"
                );
            }
        }
    }
    let [first, second] =
        [0, 1].map(|l| routers(&out)[&format!("model.layers.{l}.mlp.router.weight")].clone());
    assert_ne!(first, second, "layers must not share their draws");
}

#[test]
fn zero_routers_where_they_do_no_harm() {
    let work = TempDir::new().unwrap();
    let (soft, attention) = (work.path().join("soft"), work.path().join("attention"));
    upcycle(
        "llama",
        &soft,
        &with(&BAM, &["--router", "zeros", "--top-k", "soft"]),
    )
    .ok();
    assert!(
        routers(&soft)
            .values()
            .all(|router| router.bytes.iter().all(|byte| *byte == 0))
    );
    assert_eq!(
        read_json(soft.join("config.json"))["num_experts_per_tok"],
        3
    );
    upcycle(
        "llama",
        &attention,
        &with(&BAM, &["--attention-router", "zeros"]),
    )
    .ok();
    for (name, router) in routers(&attention) {
        assert_eq!(
            router.bytes.iter().all(|byte| *byte == 0),
            name.contains("self_attn"),
            "{name}"
        );
    }
}

#[test]
fn router_rows_from_a_file() {
    let work = TempDir::new().unwrap();
    let mut noise = Noise(3);
    let mut rows = || {
        Tensor::new(
            Dtype::F32,
            &[3, 32],
            &(0..96).map(|_| noise.value()).collect::<Vec<_>>(),
        )
    };
    let mut file = Tensors::new();
    file.insert("router".to_owned(), rows());
    file.insert("model.layers.1.mlp.router.weight".to_owned(), rows());
    let (path, out) = (
        work.path().join("rows.safetensors"),
        work.path().join("out"),
    );
    write_file(&path, &file);
    let kind = format!("file:{}", path.display());
    upcycle("llama", &out, &with(&BAM, &["--router", &kind])).ok();
    for (name, router) in routers(&out) {
        let rows = file.get(&name).unwrap_or(&file["router"]);
        assert_same_tensor(
            &name,
            &router,
            &Tensor::new(Dtype::BF16, &[3, 32], &rows.values()),
        );
    }
    let kept = work.path().join("kept");
    upcycle(
        "llama",
        &kept,
        &with(&BAM, &["--router", &kind, "--router-dtype", "f32"]),
    )
    .ok();
    assert_same_tensor(
        "router",
        &routers(&kept)["model.layers.0.self_attn.router.weight"],
        &file["router"],
    );
    let manifest = read_json(kept.join("bam-manifest.json"));
    let source = manifest["sources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|source| source["path"] == "../rows.safetensors")
        .unwrap();
    assert_eq!(
        source["files"][0]["sha256"],
        sha256(&std::fs::read(&path).unwrap())
    );

    file.insert(
        "router".to_owned(),
        Tensor::new(Dtype::F32, &[2, 32], &[0.5; 64]),
    );
    write_file(&path, &file);
    let refused = work.path().join("refused");
    upcycle("llama", &refused, &with(&BAM, &["--router", &kind]))
        .refused(2, &["rows.safetensors", "`router`", "[2, 32]", "[3, 32]"]);
}

#[test]
fn the_dtype_of_routers() {
    let work = TempDir::new().unwrap();
    for (flag, dtype) in [
        ("f32", Dtype::F32),
        ("f16", Dtype::F16),
        ("bfloat16", Dtype::BF16),
    ] {
        let out = work.path().join(flag);
        upcycle("mistral", &out, &with(&BTX, &["--router-dtype", flag])).ok();
        let found = read_folder(&out);
        let name = "model.layers.1.mlp.router.weight";
        let values: Vec<f64> = normal(name, 0, 96)
            .iter()
            .map(|value| value * 0.02)
            .collect();
        if dtype == Dtype::F32 {
            // The last bit of an f32 may differ between logarithms.
            let near = found[name]
                .values()
                .iter()
                .zip(&values)
                .all(|(a, b)| (a - b).abs() <= 1.3e-7 * b.abs());
            assert!(near && found[name].dtype == dtype);
        } else {
            assert_same_tensor(name, &found[name], &Tensor::new(dtype, &[3, 32], &values));
        }
    }
}

// ---------------------------------------------------------------- the folder

/// The keys that `config.json` of a mixture must have, and the values that follow from the command.
fn expected_config(family: &str, kind: Kind) -> Value {
    let (norm, block, interleaved) = match family {
        "cohere" => ("layer", "parallel", true),
        _ => ("rms", "sequential", false),
    };
    let (attention, kv) = match kind {
        Kind::Expert => (3, "expert"),
        Kind::Shared => (3, "shared"),
        Kind::Btx => (1, "merged"),
    };
    json!({
        "bam_version": 1, "model_type": "bam", "architectures": ["BamForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_bam.BamConfig",
            "AutoModel": "modeling_bam.BamModel",
            "AutoModelForCausalLM": "modeling_bam.BamForCausalLM",
        },
        "block": block, "norm_type": norm, "norm_position": "pre", "mlp_type": "gated", "rope_interleaved": interleaved,
        "num_experts": 3, "num_attention_experts": attention, "moe_intermediate_size": 48, "moe_layers": "all",
        "attention_moe_layers": "all", "attention_kv": kv, "num_experts_per_tok": 2, "num_attention_experts_per_tok": attention,
        "norm_topk_prob": true, "norm_topk_prob_attention": false, "router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.001,
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 384, "tie_word_embeddings": traits(family).tied, "hidden_act": "silu",
        "dtype": "bfloat16", "torch_dtype": "bfloat16",
        "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 512,
    })
}

#[test]
fn the_configuration_says_it_all_in_both_spellings() {
    let theta = BTreeMap::from([
        ("llama", 500000.0),
        ("mistral", 1000000.0),
        ("qwen2", 200000.0),
        ("qwen3", 300000.0),
        ("cohere", 50000.0),
    ]);
    for family in FAMILIES {
        for (kind, flags) in [
            (Kind::Expert, &BAM[..]),
            (Kind::Shared, &SHARED),
            (Kind::Btx, &BTX),
        ] {
            let work = TempDir::new().unwrap();
            let out = work.path().join("out");
            upcycle(family, &out, flags).ok();
            let config = read_json(out.join("config.json"));
            for (key, value) in expected_config(family, kind).as_object().unwrap() {
                assert_eq!(&config[key], value, "{family} {kind:?}: {key}");
            }
            assert_eq!(
                config["rope_theta"].as_f64(),
                Some(theta[family]),
                "{family}"
            );
            assert_eq!(
                config["rope_parameters"]["rope_theta"].as_f64(),
                Some(theta[family]),
                "{family}"
            );
            let kind_of_rope = if family == "llama" {
                "llama3"
            } else {
                "default"
            };
            assert_eq!(
                config["rope_parameters"]["rope_type"], kind_of_rope,
                "{family}"
            );
            if family == "llama" {
                assert_eq!(config["rope_parameters"]["factor"], 8.0);
                assert!(
                    config.get("rope_scaling").is_none(),
                    "transformers 5 could not read the tokenizer"
                );
                assert_eq!(
                    config["rope_parameters"]["original_max_position_embeddings"],
                    64
                );
            }
            let eps = if family == "cohere" {
                "layer_norm_eps"
            } else {
                "rms_norm_eps"
            };
            assert_eq!(
                config[eps],
                read_json(fixture(family).join("seed/config.json"))[eps]
            );
            if family == "cohere" {
                assert_eq!(config["logit_scale"], 0.0625);
            }
            // Every key of the seed that the mixture does not define is there unchanged.
            for (key, value) in read_json(fixture(family).join("seed/config.json"))
                .as_object()
                .unwrap()
            {
                if !["model_type", "architectures", "rope_scaling"].contains(&key.as_str()) {
                    assert_eq!(&config[key], value, "{family}: {key}");
                }
            }
        }
    }
}

#[test]
fn unknown_keys_of_the_seed_are_left_out_and_routing_settings_reach_the_configuration() {
    let work = TempDir::new().unwrap();
    let seed = copy_folder(&fixture("qwen3/seed"), &work.path().join("seed"));
    edit_json(&seed.join("config.json"), |config| {
        config["house_key"] = json!({"a": [1, 2.5, null]})
    });
    let out = work.path().join("out");
    let expert = format!("code={}", fixture("qwen3/code").display());
    let flags = [
        "--top-k",
        "2",
        "--norm-topk-prob",
        "true",
        "--attention-top-k",
        "1",
    ];
    let run = bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--expert", "x=random",
        "--out", out, flags[0], flags[1], flags[2], flags[3], flags[4], flags[5]
    )
    .ok();
    let config = read_json(out.join("config.json"));
    assert!(config.get("house_key").is_none());
    let note = "left out: house_key";
    assert!(run.stderr.contains(note), "{run}");
    assert_eq!(config["num_experts_per_tok"], 2);
    assert_eq!(config["norm_topk_prob"], true);
    assert_eq!(config["num_attention_experts_per_tok"], 1);
    assert_eq!(config["norm_topk_prob_attention"], false);
}

#[test]
fn the_folder_is_complete_and_checkable() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let [seed, code, law] = ["seed", "code", "law"]
        .map(|name| copy_folder(&fixture("qwen2").join(name), &work.path().join(name)));
    let (a, b) = (
        format!("code={}", code.display()),
        format!("law={}", law.display()),
    );
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", a, "--expert", b, "--out", out
    )
    .ok();
    let (found, of_seed) = (contents(&out), contents(&seed));
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let expected = [
        "README.md",
        "bam-manifest.json",
        "chat_template.jinja",
        "config.json",
        "configuration_bam.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_bam.py",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ] {
        assert!(
            found[name] == of_seed[name],
            "{name} must be copied byte for byte"
        );
    }

    let manifest = read_json(out.join("bam-manifest.json"));
    assert_eq!(manifest["method"], "bam");
    let listed = manifest["files"].as_array().unwrap();
    for file in listed {
        let bytes = &found[file["path"].as_str().unwrap()];
        assert_eq!(
            (&file["sha256"], &file["size"]),
            (&json!(sha256(bytes)), &json!(bytes.len())),
            "{file}"
        );
    }
    let hashed: Vec<&str> = listed
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    let unhashed = manifest["unhashed_files"].as_array().unwrap();
    assert_eq!(unhashed[..], [json!("README.md")]);
    assert_eq!(
        hashed.len() + unhashed.len() + 1,
        found.len(),
        "every file but the manifest itself is listed"
    );
    let sources = manifest["sources"].as_array().unwrap();
    for (source, (name, folder)) in
        sources
            .iter()
            .zip([("seed", &seed), ("code", &code), ("law", &law)])
    {
        assert_eq!(
            (&source["name"], &source["path"]),
            (&json!(name), &json!(format!("../{name}")))
        );
        for file in source["files"].as_array().unwrap() {
            let bytes = std::fs::read(folder.join(file["path"].as_str().unwrap())).unwrap();
            assert_eq!(file["sha256"], sha256(&bytes), "{name} {file}");
        }
        assert!(
            source["files"]
                .as_array()
                .unwrap()
                .iter()
                .any(|file| file["path"] == "model.safetensors")
        );
    }
    let tensors = read_folder(&out);
    let recorded = manifest["tensors"].as_object().unwrap();
    assert_eq!(recorded.len(), tensors.len());
    for (name, tensor) in &tensors {
        assert_eq!(recorded[name]["dtype"], tensor.dtype.to_string(), "{name}");
        assert_eq!(recorded[name]["shape"], json!(tensor.shape), "{name}");
        assert!(recorded[name]["expression"]["op"].is_string(), "{name}");
    }
    let text = String::from_utf8(found["bam-manifest.json"].clone()).unwrap();
    let absolute = work.path().to_str().unwrap();
    assert!(
        !text.contains(absolute) && !text.contains("\"/"),
        "absolute paths in the manifest"
    );
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(
        !text.contains(host.trim()) || host.trim().len() < 4,
        "host name in the manifest"
    );

    let card = String::from_utf8(found["README.md"].clone()).unwrap();
    assert!(card.starts_with("---\n"), "{card}");
    for name in ["seed", "code", "law"] {
        assert!(card.contains(&format!("| {name} | {name} |")), "{card}");
    }
    assert!(card.contains("bam") && card.contains("rng_seed"), "{card}");
    assert!(!card.contains(absolute), "{card}");
}

#[test]
fn a_hub_cache_folder_is_recorded_by_repository_and_commit() {
    let work = TempDir::new().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = |name: &str, from: &str| {
        let cache = work.path().join(format!("models--org--{name}"));
        let (blobs, folder) = (
            copy_folder(&fixture(from), &cache.join("blobs")),
            cache.join("snapshots").join(commit),
        );
        std::fs::create_dir_all(&folder).unwrap();
        for file in contents(&blobs).keys() {
            std::os::unix::fs::symlink(format!("../../blobs/{file}"), folder.join(file)).unwrap();
        }
        folder
    };
    let (seed, code) = (
        snapshot("seed-model", "mistral/seed"),
        snapshot("code-model", "mistral/code"),
    );
    let out = work.path().join("out");
    let expert = format!("code={}", code.display());
    bam!(
        "upcycle", "--method", "btx", "--seed", seed, "--expert", expert, "--out", out
    )
    .ok();
    let manifest = read_json(out.join("bam-manifest.json"));
    assert_eq!(manifest["sources"][1]["repository"], "org/code-model");
    assert_eq!(manifest["sources"][1]["commit"], commit);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(
        card.contains("- org/seed-model\n") && card.contains("- org/code-model\n"),
        "{card}"
    );
    assert!(
        contents(&out)["tokenizer.json"] == contents(&fixture("mistral/seed"))["tokenizer.json"]
    );
    assert!(!out.join("tokenizer.json").is_symlink());
}

#[test]
fn files_have_the_users_ordinary_permissions() {
    let work = TempDir::new().unwrap();
    // Python's safetensors writes 0600, Hub caches may be read-only: neither is the output's business.
    let [seed, code] = ["seed", "code"]
        .map(|name| copy_folder(&fixture("llama").join(name), &work.path().join(name)));
    for (folder, mode) in [(&seed, 0o600), (&code, 0o444)] {
        for name in contents(folder).keys() {
            std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(mode))
                .unwrap();
        }
    }
    for (umask, file, folder) in [("022", 0o644, 0o755), ("027", 0o640, 0o750)] {
        let out = work.path().join(umask);
        let mut command = std::process::Command::new("bash");
        command
            .args(["-c", "umask $0; exec \"$@\"", umask])
            .arg(crate::common::binary());
        command
            .args([
                "upcycle",
                "--method",
                "bam",
                "--max-shard-size",
                "30KB",
                "--seed",
            ])
            .arg(&seed);
        command
            .arg("--expert")
            .arg(format!("code={}", code.display()))
            .arg("--out")
            .arg(&out);
        crate::common::finish(command).ok();
        assert_eq!(identity(&out).0, folder, "{umask}");
        for name in contents(&out).keys() {
            assert_eq!(identity(&out.join(name)).0, file, "umask {umask}: {name}");
        }
    }
}

#[test]
fn the_result_as_json_names_what_was_written() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let run = upcycle("llama", &out, &with(&BTX, &["--json"])).ok();
    let result = run.json();
    let tensors = read_folder(&out);
    assert_eq!(result["tensors"], tensors.len());
    assert_eq!(
        result["bytes"],
        tensors
            .values()
            .map(|tensor| tensor.bytes.len())
            .sum::<usize>()
    );
    let file = std::fs::read(out.join("model.safetensors")).unwrap();
    let entry = result["files"]
        .as_array()
        .unwrap()
        .iter()
        .find(|file| file["path"] == "model.safetensors")
        .unwrap();
    assert_eq!(entry["sha256"], sha256(&file));
}

#[test]
fn the_arithmetic_of_these_tests_knows_its_ties() {
    // 1 + 2^-8 is halfway between two bf16 numbers, and rounds down to even. A little more rounds up.
    assert_eq!(
        crate::common::round(Dtype::BF16, 1.0 + 2f64.powi(-8)),
        0x3f80u16.to_le_bytes()
    );
    assert_eq!(
        crate::common::round(Dtype::BF16, 1.0 + 2f64.powi(-8) + 2f64.powi(-40)),
        0x3f81u16.to_le_bytes()
    );
    assert_eq!(crate::common::round(Dtype::F8_E4M3, 464.0), [0x7e]);
    assert_eq!(crate::common::round(Dtype::F8_E4M3, 465.0), [0x7f]);
    assert_eq!(
        crate::common::round(Dtype::F16, 65520.0),
        0x7c00u16.to_le_bytes()
    );
    for value in [1e-45f32, 1.5, -0.0, f32::MAX, f32::MIN_POSITIVE, 3.3e-41] {
        assert_eq!(
            crate::common::round(Dtype::F32, f64::from(value)),
            value.to_le_bytes()
        );
        assert_eq!(
            decode(Dtype::F32, &value.to_le_bytes())[0].to_bits(),
            f64::from(value).to_bits()
        );
    }
}

#[test]
fn adapters_start_as_the_identity_and_biases_of_routers_at_zero() {
    let (work, family) = (TempDir::new().unwrap(), fixture("qwen2"));
    let upcycle = |name: &str, options: &[&str]| {
        let out = work.path().join(name);
        let expert = format!("code={}", family.join("code").display());
        let mut arguments: Vec<std::ffi::OsString> =
            vec!["upcycle".into(), "--method".into(), "bam".into()];
        arguments.extend([
            "--seed".into(),
            family.join("seed").into(),
            "--expert".into(),
            expert.into(),
        ]);
        arguments.extend(["--out".into(), out.clone().into()]);
        arguments.extend(options.iter().map(Into::into));
        crate::common::run(arguments).ok();
        crate::common::against(&out).ok();
        out
    };
    let plain = upcycle("plain", &[]);
    let rich = upcycle("rich", &["--adapters", "--router-bias", "logits"]);
    let config = read_json(rich.join("config.json"));
    assert_eq!(
        (&config["expert_adapters"], &config["router_bias"]),
        (&json!(true), &json!(true))
    );
    assert!(
        read_json(plain.join("config.json"))
            .get("expert_adapters")
            .is_none()
    );
    let (without, with) = (read_folder(&plain), read_folder(&rich));
    let mut new = 0;
    for (name, tensor) in &with {
        if let Some(same) = without.get(name) {
            assert_same_tensor(name, tensor, same);
            continue;
        }
        new += 1;
        let values = tensor.values();
        if name.ends_with("router.bias") {
            assert_eq!(values, [0.0, 0.0], "{name}");
        } else {
            assert!(name.ends_with("adapter.weight"), "{name}");
            let d = tensor.shape[0];
            assert!(
                values
                    .iter()
                    .enumerate()
                    .all(|(i, value)| *value == f64::from(u8::from(i / d == i % d))),
                "{name}"
            );
        }
    }
    assert_eq!(
        new,
        LAYERS * (2 + 2 * 2),
        "two routers and two adapters of each kind a layer"
    );
    // Neutral: the same logits.
    let tokens = fixture("golden/tokens.json");
    let compared = bam!("logits", plain, rich, "--tokens", tokens, "--json")
        .ok()
        .json();
    assert!(
        compared["max"].as_f64().is_some_and(|most| most < 1e-5),
        "{compared}"
    );

    let choice = upcycle("choice", &["--router-bias", "choice"]);
    let names: Vec<String> = read_folder(&choice)
        .into_keys()
        .filter(|name| name.ends_with("router.bias"))
        .collect();
    assert_eq!(
        names,
        [
            "model.layers.0.mlp.router.bias",
            "model.layers.1.mlp.router.bias"
        ]
    );
}
