//! Mixtures in the formats of other programs: read as transformers reads them, written exactly or refused with the reason.

use std::path::{Path, PathBuf};

use crate::common::{
    Tensor, bam, copy_folder, edit_json, edit_tensors, fixture, read_file, read_folder, read_json,
    run, stock_mixtures,
};
use bam_convert::model::{CausalLm, Forward, LoadOptions, logits};
use candle_core::{Device, Tensor as Candle};
use serde_json::json;
use tempfile::TempDir;

fn mixture(family: &str) -> PathBuf {
    fixture("mixtures").join(family)
}

fn aux_weight(folder: &Path) -> f64 {
    let config = read_json(folder.join("config.json"));
    config["router_aux_loss_coef"].as_f64().unwrap()
}

fn tokens() -> Vec<u32> {
    serde_json::from_slice(&std::fs::read(fixture("golden/tokens.json")).unwrap()).unwrap()
}

/// Largest distance of the logits of `folder`, computed in two ways, from the golden ones of `family`.
fn assert_golden(folder: &Path, family: &str) {
    let expected = read_file(&fixture(format!("golden/{family}.safetensors")))["logits"].values();
    let tokens = tokens();
    let infer = logits(folder, &tokens, &Device::Cpu).unwrap();
    let train = CausalLm::load(folder, &LoadOptions::train(Device::Cpu)).unwrap();
    let row = Candle::new(&tokens[..], &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let train = train
        .forward(&row, None, &Forward::default())
        .unwrap()
        .logits;
    for (way, found) in [("inference", infer), ("training", train)] {
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len());
        let worst = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (f64::from(*a) - b).abs())
            .fold(0.0, f64::max);
        assert!(worst <= 1e-4, "{family}, {way}: logits differ by {worst}");
    }
}

/// The mixture whose weights a file holds in the fused layout.
fn fused(family: &str, work: &TempDir) -> PathBuf {
    let folder = copy_folder(
        &mixture(family),
        &work.path().join(format!("{family}-fused")),
    );
    let weights = fixture("mixtures").join(format!("{family}.fused.safetensors"));
    std::fs::copy(weights, folder.join("model.safetensors")).unwrap();
    folder
}

fn upcycle(family: &str, target: &str, options: &[&str], out: &Path) -> crate::common::Run {
    let folder = |name: &str| fixture(family).join(name);
    let expert = |name: &str| format!("{name}={}", folder(name).display());
    let mut arguments: Vec<std::ffi::OsString> =
        vec!["upcycle".into(), "--target".into(), target.into()];
    arguments.extend([
        "--seed".into(),
        folder("seed").into(),
        "--out".into(),
        out.into(),
    ]);
    arguments.extend([
        "--expert".into(),
        expert("code").into(),
        "--expert".into(),
        expert("law").into(),
    ]);
    arguments.extend(options.iter().map(Into::into));
    run(arguments)
}

#[test]
fn stock_mixtures_have_the_logits_of_transformers() {
    for family in stock_mixtures() {
        assert_golden(&mixture(family), family);
        let report = bam!("validate", mixture(family), "--json").ok().json();
        let routing = if family == "granitemoeshared" {
            "top 3 of 4"
        } else {
            "top 2 of 4"
        };
        assert!(report.to_string().contains(routing), "{report}");
    }
}

#[test]
fn every_command_knows_a_stock_mixture() {
    let facts = bam!("inspect", mixture("qwen2_moe"), "--json").ok().json();
    assert_eq!(facts["architecture"]["mixture"]["moe_layers"], json!([1]));
    assert_eq!(
        facts["architecture"]["mixture"]["shared_expert_intermediate_size"],
        40
    );
    assert_eq!(facts["fused_experts"], false);
    let facts = bam!("inspect", mixture("qwen3_moe"), "--json").ok().json();
    assert_eq!(
        facts["architecture"]["mixture"]["moe_layers"],
        json!([1]),
        "each second layer is sparse"
    );
    let cost = bam!("cost", mixture("mixtral"), "--json").ok().json();
    assert!(cost["active_parameters"].as_u64() < cost["total_parameters"].as_u64());
    bam!(
        "generate",
        mixture("olmoe"),
        "--prompt",
        "def mean",
        "--max-tokens",
        "4"
    )
    .ok();
    bam!("diff", mixture("olmoe"), mixture("olmoe")).ok();
}

#[test]
fn the_fused_layout_is_the_same_model() {
    let work = TempDir::new().unwrap();
    for family in ["mixtral", "qwen2_moe", "granitemoeshared", "ernie4_5_moe"] {
        let folder = fused(family, &work);
        let expected = logits(&mixture(family), &tokens(), &Device::Cpu).unwrap();
        let found = logits(&folder, &tokens(), &Device::Cpu).unwrap();
        assert_eq!(
            found.to_vec2::<f32>().unwrap(),
            expected.to_vec2::<f32>().unwrap()
        );
        bam!("diff", &folder, mixture(family)).ok();
        assert!(bam!("inspect", &folder).ok().stdout.contains("fused"));
        let report = bam!("validate", &folder).ok().stdout;
        assert!(
            report.contains("layout") && report.contains("convert --layout classic"),
            "{report}"
        );
        bam!(
            "merge",
            "--model",
            &folder,
            "--out",
            work.path().join("merged")
        )
        .refused(
            2,
            &["all experts of a layer in one tensor", "--layout classic"],
        );
    }
}

#[test]
fn experts_are_copies_under_the_target_s_names() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle("llama", "mixtral", &["--method", "btx"], &out).ok();
    let (found, code) = (read_folder(&out), read_folder(&fixture("llama/code")));
    for (classic, dense) in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")] {
        let name = format!("model.layers.1.block_sparse_moe.experts.1.{classic}.weight");
        assert_eq!(
            found[&name].bytes,
            code[&format!("model.layers.1.mlp.{dense}.weight")].bytes
        );
    }
    let config = read_json(out.join("config.json"));
    let expected = json!({
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 3, "num_experts": 3,
        "num_experts_per_tok": 2, "dtype": "bfloat16", "torch_dtype": "bfloat16", "rope_theta": 500_000.0, "head_dim": 8,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&config[key], value, "{key}");
    }
    assert_eq!(config["rope_parameters"]["rope_theta"], 500_000.0);
    assert!(config.get("auto_map").is_none() && !out.join("modeling_bam.py").exists());
    for file in ["tokenizer.json", "generation_config.json"] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert_eq!(read(&out), read(&fixture("llama/seed")));
    }
    crate::common::against(&out).ok();
}

#[test]
fn what_qwen2_moe_insists_on_is_neutral() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle("llama", "qwen2_moe", &["--method", "btx"], &out).ok();
    let found = read_folder(&out);
    for name in [
        "self_attn.q_proj.bias",
        "self_attn.v_proj.bias",
        "mlp.shared_expert.down_proj.weight",
    ] {
        let values = found[&format!("model.layers.0.{name}")].values();
        assert!(values.iter().all(|value| *value == 0.0), "{name}");
    }
    assert!(
        found["model.layers.0.mlp.shared_expert.up_proj.weight"]
            .values()
            .iter()
            .any(|value| *value != 0.0)
    );
    let run = crate::common::against(&out).ok();
    assert!(!run.stdout.contains("is all zeros"), "{run}");
    assert!(
        run.stdout
            .contains("a shared expert of zeros, which adds nothing, in 2 layers"),
        "{run}"
    );

    // A gate that is not zero is no part of it: the zeros beside it are worth a warning.
    edit_tensors(&out, |tensors| {
        let gate = tensors
            .get_mut("model.layers.0.mlp.shared_expert_gate.weight")
            .unwrap();
        gate.bytes.fill(0x3f);
    });
    let run = bam!("validate", &out);
    let zeros = "model.layers.0.mlp.shared_expert.down_proj.weight";
    assert!(
        run.stdout.contains(zeros) && run.stdout.contains("is all zeros"),
        "{run}"
    );
    assert!(run.stdout.contains("in 1 layer"), "{run}");
}

/// Mixtral always divides gates by their sum: with one expert a token that is a valid model, and nothing to train.
#[test]
fn a_mixtral_with_one_expert_a_token_is_valid() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&mixture("mixtral"), &work.path().join("top-1"));
    edit_json(&folder.join("config.json"), |config| {
        config["num_experts_per_tok"] = json!(1);
    });
    let run = bam!("validate", folder).ok();
    assert!(
        run.stdout.contains("num_experts_per_tok") && run.stdout.contains("no gradient"),
        "{run}"
    );
}

#[test]
fn copies_of_one_model_are_that_model() {
    let work = TempDir::new().unwrap();
    for (family, target) in [
        ("llama", "mixtral"),
        ("llama", "qwen2_moe"),
        ("qwen3", "qwen3_moe"),
    ] {
        let out = work.path().join(target);
        let seed = fixture(family).join("seed");
        bam!(
            "upcycle",
            "--method",
            "btx",
            "--target",
            target,
            "--seed",
            &seed,
            "--seed-copies",
            "3",
            "--out",
            &out
        )
        .ok();
        let dense = logits(&seed, &tokens(), &Device::Cpu)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        let found = logits(&out, &tokens(), &Device::Cpu)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        let worst = dense
            .iter()
            .zip(&found)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-4, "{target}: {worst}");
    }
}

/// A dense fixture without the biases whose names contain `part`.
fn without_biases(family: &str, part: &str, keys: &[&str], work: &TempDir) -> PathBuf {
    let folder = copy_folder(&fixture("families").join(family), &work.path().join(family));
    edit_tensors(&folder, |tensors| {
        tensors.retain(|name, _| !name.ends_with(".bias") || !name.contains(part));
    });
    edit_json(&folder.join("config.json"), |config| {
        keys.iter().for_each(|key| config[*key] = json!(false));
    });
    folder
}

/// The largest distance between the logits of two checkpoints.
pub fn distance(a: &Path, b: &Path) -> f64 {
    let tokens = fixture("golden/tokens.json");
    let compared = bam!("logits", a, b, "--tokens", tokens, "--json").ok();
    compared.json()["max"].as_f64().unwrap()
}

#[test]
fn mixtures_of_every_kind_of_seed_are_exact_in_their_targets() {
    let work = TempDir::new().unwrap();
    let families = |family: &str| fixture("families").join(family);
    let seeds = [
        (families("olmo2"), "flex_olmo"),
        (families("granitemoehybrid"), "granitemoe"),
        (
            without_biases("granite", ".mlp.", &["mlp_bias"], &work),
            "granitemoeshared",
        ),
        (fixture("llama/seed"), "granitemoe"),
        (fixture("qwen2/seed"), "granitemoeshared"),
        (
            without_biases("ernie4_5", "", &["use_bias"], &work),
            "ernie4_5_moe",
        ),
        (
            without_biases("helium", "", &["attention_bias", "mlp_bias"], &work),
            "ernie4_5_moe",
        ),
        (families("cohere2"), "cohere2_moe"),
        (fixture("cohere/seed"), "cohere2_moe"),
        (families("hunyuan_v1_dense"), "hunyuan_v1_moe"),
    ];
    for (number, (seed, target)) in seeds.iter().enumerate() {
        let at = |name: &str| work.path().join(format!("{number}-{name}"));
        let (varied, own, stock) = (at("varied"), at("bam"), at("stock"));
        crate::model::families::vary(&copy_folder(seed, &varied), 1.0);
        let expert = format!("x={}", varied.display());
        let common = [
            "upcycle",
            "--method",
            "btx",
            "--seed-copies",
            "1",
            "--rng-seed",
            "3",
            "--seed",
        ];
        let mixture = |more: &[&str], out: &Path| {
            let mut line: Vec<std::ffi::OsString> = common.iter().map(Into::into).collect();
            line.extend([seed.into(), "--expert".into(), expert.clone().into()]);
            line.extend(more.iter().map(Into::into));
            line.extend(["--out".into(), out.into()]);
            run(line).ok();
            crate::common::against(out).ok();
        };
        mixture(&[], &own);
        mixture(&["--target", target], &stock);
        bam!("validate", stock).ok();
        bam!("convert", own, at("converted"), "--to", target).ok();
        let found = distance(&own, &at("converted"));
        assert!(found < 1e-5, "{} to {target}: {found}", seed.display());

        let copies = at("copies");
        bam!(
            "upcycle",
            "--method",
            "btx",
            "--target",
            target,
            "--seed",
            seed,
            "--seed-copies",
            "3",
            "--out",
            copies
        )
        .ok();
        let found = distance(seed, &copies);
        assert!(found < 1e-4, "{} in {target}: {found}", seed.display());
        bam!("convert", copies, at("back"), "--to", "bam").ok();
        let found = distance(&copies, &at("back"));
        assert!(found < 1e-5, "{target} to bam: {found}");
    }
}

/// What the later targets insist on, and what they cannot say.
#[test]
fn later_targets_are_exact_or_refused() {
    let work = TempDir::new().unwrap();
    let at = |name: &str| work.path().join(name);
    let upcycled = |seed: &Path, target: &str, more: &[&str]| {
        let mut line: Vec<std::ffi::OsString> = vec![
            "upcycle".into(),
            "--method".into(),
            "btx".into(),
            "--force".into(),
        ];
        line.extend([
            "--seed".into(),
            seed.into(),
            "--seed-copies".into(),
            "3".into(),
        ]);
        line.extend(["--target".into(), target.into()]);
        line.extend(more.iter().map(Into::into));
        line.extend(["--out".into(), at("out").into()]);
        run(line)
    };
    let ernie = without_biases("ernie4_5", "", &["use_bias"], &work);
    upcycled(
        &ernie,
        "ernie4_5_moe",
        &["--router-bias", "choice", "--layers", "1"],
    )
    .ok();
    let config = read_json(at("out/config.json"));
    assert_eq!(
        (
            &config["moe_layer_start_index"],
            &config["moe_layer_end_index"]
        ),
        (&json!(1), &json!(1))
    );
    assert!(distance(&ernie, &at("out")) < 1e-4);
    let bias = &read_folder(&at("out"))["model.layers.1.mlp.moe_statics.e_score_correction_bias"];
    assert_eq!(
        (bias.shape.clone(), bias.values()),
        (vec![1, 4], vec![0.0; 4])
    );

    let shared = ["--shared-expert", "seed"];
    for (seed, target) in [
        (fixture("llama/seed"), "granitemoeshared"),
        (ernie.clone(), "ernie4_5_moe"),
        (fixture("cohere/seed"), "cohere2_moe"),
        (fixture("families/hunyuan_v1_dense"), "hunyuan_v1_moe"),
    ] {
        upcycled(&seed, "bam", &shared).ok();
        bam!("convert", at("out"), at("stock"), "--to", target, "--force").ok();
        bam!("convert", at("stock"), at("back"), "--to", "bam", "--force").ok();
        assert!(distance(&at("out"), &at("stock")) < 1e-5, "{target}");
        assert!(distance(&at("out"), &at("back")) < 1e-5, "{target}");
        let gated = ["--shared-expert", "seed:gated"];
        upcycled(&seed, target, &gated).refused(2, &["does not weight its shared expert"]);
    }
    upcycled(&fixture("llama/seed"), "granitemoe", &shared).refused(2, &["no shared expert"]);
    upcycled(&ernie, "bam", &shared).ok();
    edit_json(&at("out/config.json"), |config| {
        config["moe_output_multiplier"] = json!(0.25);
    });
    bam!("convert", at("out"), at("x"), "--to", "ernie4_5_moe")
        .refused(2, &["it adds up the outputs of experts"]);
    upcycled(&fixture("llama/seed"), "ernie4_5_moe", &[]).refused(2, &["neighbour"]);
    upcycled(&fixture("families/ernie4_5"), "ernie4_5_moe", &[])
        .refused(2, &["no place for biases of q, k and v"]);
    upcycled(&fixture("families/olmo3"), "flex_olmo", &[]).refused(2, &["no sliding window"]);
    upcycled(&fixture("qwen3/seed"), "granitemoe", &[]).refused(2, &["heads fill the hidden size"]);
    upcycled(&ernie, "ernie4_5_moe", &["--router-bias", "logits"])
        .refused(2, &["count in the choice alone"]);
    upcycled(&fixture("families/gemma2"), "granitemoe", &[])
        .refused(2, &["cap attention scores", "cap logits"]);
}

/// A dense model with OLMoE's norms, which no family of transformers is: brought with a format file.
const DENSE_OLMOE: &str = include_str!("dense_olmoe.yaml");

#[test]
fn olmoe_out_of_dense_models_has_the_logits_of_transformers() {
    let work = TempDir::new().unwrap();
    let format = work.path().join("format.yaml");
    std::fs::write(&format, DENSE_OLMOE).unwrap();
    let mixture = mixture("olmoe");
    let stored = read_folder(&mixture);
    let mut dense = Vec::new();
    for expert in 0..4 {
        let folder = copy_folder(&mixture, &work.path().join(format!("dense-{expert}")));
        edit_json(&folder.join("config.json"), |config| {
            config["model_type"] = "dense_olmoe".into()
        });
        edit_tensors(&folder, |tensors| {
            tensors.retain(|name, _| !name.contains(".mlp."));
            for (name, tensor) in &stored {
                if let Some((before, after)) = name.split_once(&format!(".mlp.experts.{expert}.")) {
                    tensors.insert(format!("{before}.mlp.{after}"), tensor.clone());
                }
            }
        });
        dense.push(folder);
    }
    let routers: crate::common::Tensors = stored
        .into_iter()
        .filter(|(name, _)| name.ends_with(".mlp.gate.weight"))
        .collect::<_>();
    let rows = work.path().join("routers.safetensors");
    crate::common::write_file(&rows, &routers);
    let out = work.path().join("out");
    let mut arguments: Vec<std::ffi::OsString> =
        vec!["upcycle".into(), "--method".into(), "btx".into()];
    arguments.extend([
        "--target".into(),
        "olmoe".into(),
        "--norm-topk-prob".into(),
        "false".into(),
    ]);
    arguments.extend([
        "--format".into(),
        format.into(),
        "--seed".into(),
        dense[0].clone().into(),
    ]);
    for (number, folder) in dense.iter().enumerate().skip(1) {
        arguments.extend([
            "--expert".into(),
            format!("e{number}={}", folder.display()).into(),
        ]);
    }
    arguments.extend([
        "--router".into(),
        format!("file:{}", rows.display()).into(),
        "--out".into(),
        out.clone().into(),
    ]);
    run(arguments).ok();
    assert_golden(&out, "olmoe");
    crate::common::assert_same_tensor(
        "weights",
        &all(&read_folder(&out)),
        &all(&read_folder(&mixture)),
    );
}

/// Every byte of a checkpoint as one tensor.
fn all(tensors: &crate::common::Tensors) -> Tensor {
    let bytes: Vec<u8> = tensors
        .values()
        .flat_map(|tensor| tensor.bytes.clone())
        .collect();
    Tensor {
        dtype: ::safetensors::Dtype::BF16,
        shape: vec![bytes.len() / 2],
        bytes,
    }
}

#[test]
fn what_a_target_cannot_hold_is_refused_with_the_reason() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let refused = |family: &str, target: &str, options: &[&str], reasons: &[&str]| {
        upcycle(family, target, options, &out).refused(2, reasons);
        assert!(!out.exists());
    };
    let btx = ["--method", "btx"];
    refused(
        "llama",
        "mixtral",
        &["--method", "bam"],
        &["no attention experts"],
    );
    refused("qwen2", "mixtral", &btx, &["biases of q, k and v"]);
    refused(
        "llama",
        "qwen3_moe",
        &btx,
        &["a norm of each head's queries and keys"],
    );
    refused("llama", "olmoe", &btx, &["a norm over all heads' queries"]);
    refused(
        "cohere",
        "mixtral",
        &btx,
        &[
            "block is sequential, the model's parallel",
            "norm is rms",
            "scale logits",
        ],
    );
    refused(
        "llama",
        "mixtral",
        &["--method", "btx", "--top-k", "1"],
        &["always renormalises", "no gradient"],
    );
    refused(
        "llama",
        "mixtral",
        &["--method", "btx", "--norm-topk-prob", "false"],
        &["always renormalises"],
    );
    refused(
        "llama",
        "mixtral",
        &["--method", "btx", "--adapters"],
        &["no adapters"],
    );
    refused(
        "llama",
        "mixtral",
        &["--method", "btx", "--router-bias", "logits"],
        &["routers have no bias"],
    );
    refused("llama", "mixtrall", &btx, &["mixtral"]);
    bam!(
        "upcycle",
        "--method",
        "btx",
        "--target",
        "mixtral",
        "--seed",
        fixture("llama_bias/seed"),
        "--expert",
        "a=random",
        "--out",
        &out
    )
    .refused(
        2,
        &[
            "bias of the output projection",
            "biases of the feed-forward",
        ],
    );
}

#[test]
fn windows_of_qwen2_moe_are_refused() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&mixture("qwen2_moe"), &work.path().join("window"));
    edit_json(&folder.join("config.json"), |config| {
        config["use_sliding_window"] = true.into()
    });
    bam!("generate", &folder, "--prompt", "a").refused(2, &["use_sliding_window", "disagree"]);
}

#[test]
fn experts_are_put_together_and_taken_apart_again() {
    let work = TempDir::new().unwrap();
    for family in stock_mixtures() {
        let (fused, classic) = (
            work.path().join(format!("{family}-f")),
            work.path().join(format!("{family}-c")),
        );
        bam!("convert", mixture(family), &fused, "--layout", "fused").ok();
        crate::common::against(&fused).ok();
        let stored = fixture("mixtures").join(format!("{family}.fused.safetensors"));
        if stored.exists() {
            let (found, expected) = (read_folder(&fused), read_file(&stored));
            assert_eq!(
                found.keys().collect::<Vec<_>>(),
                expected.keys().collect::<Vec<_>>()
            );
            found.iter().for_each(|(name, tensor)| {
                crate::common::assert_same_tensor(name, tensor, &expected[name])
            });
        }
        bam!("convert", &fused, &classic, "--layout", "classic").ok();
        crate::common::against(&classic).ok();
        bam!("diff", &classic, mixture(family)).ok();
        assert_golden(&classic, family);
        let narrow = work.path().join(format!("{family}-f32"));
        bam!(
            "convert", &fused, &narrow, "--layout", "classic", "--dtype", "f32"
        )
        .ok();
        crate::common::against(&narrow).ok();
        assert_golden(&narrow, family);
    }
    bam!(
        "convert",
        fixture("llama/seed"),
        work.path().join("x"),
        "--layout",
        "fused"
    )
    .refused(2, &["dense"]);
}

#[test]
fn a_mixture_goes_to_another_family_and_back() {
    let work = TempDir::new().unwrap();
    for family in stock_mixtures() {
        let (there, back) = (
            work.path().join(format!("{family}-bam")),
            work.path().join(family),
        );
        bam!("convert", mixture(family), &there, "--to", "bam").ok();
        crate::common::against(&there).ok();
        assert_golden(&there, family);
        assert!(there.join("modeling_bam.py").exists());
        bam!("convert", &there, &back, "--to", family).ok();
        bam!("diff", &back, mixture(family)).ok();
        assert_golden(&back, family);
        // transformers weights one loss of all layers, a BAM the loss of each.
        let routers = match family {
            "qwen2_moe" | "qwen3_moe" => 1.0,
            "cohere2_moe" => 3.0,
            _ => 2.0,
        };
        let weight = read_json(mixture(family).join("config.json"))["router_aux_loss_coef"]
            .as_f64()
            .unwrap_or(0.001);
        assert!((aux_weight(&there) * routers - weight).abs() < 1e-9 * weight);
        assert_eq!(aux_weight(&back), weight);
    }
    let (bam, direct, through) = (
        work.path().join("b"),
        work.path().join("d"),
        work.path().join("t"),
    );
    let gates = [
        "--method",
        "btx",
        "--top-k",
        "2",
        "--norm-topk-prob",
        "true",
    ];
    upcycle("llama", "bam", &gates, &bam).ok();
    upcycle("llama", "mixtral", &["--method", "btx"], &direct).ok();
    bam!("convert", &bam, &through, "--to", "mixtral").ok();
    for (folder, weight) in [(&bam, 0.01), (&direct, 0.02), (&through, 0.02)] {
        assert_eq!(aux_weight(folder), weight);
    }
    for weight in [0.0, 0.1, 0.3, 0.007, 1.0 / 3.0, 2.5e-7] {
        edit_json(&bam.join("config.json"), |config| {
            config["router_aux_loss_coef"] = weight.into()
        });
        let (stock, again) = (work.path().join("stock"), work.path().join("again"));
        bam!("convert", &bam, &stock, "--to", "mixtral", "--force").ok();
        bam!("convert", &stock, &again, "--to", "bam", "--force").ok();
        assert_eq!(aux_weight(&again), weight);
    }
    let differing: Vec<String> = read_folder(&direct)
        .into_iter()
        .filter(|(name, tensor)| read_folder(&through)[name].bytes != tensor.bytes)
        .map(|(name, _)| name)
        .collect();
    assert!(
        differing.iter().all(|name| name.ends_with("gate.weight")),
        "routers are drawn by name: {differing:?}"
    );
    bam!("convert", &bam, work.path().join("x"), "--to", "qwen3_moe")
        .refused(2, &["qwen3_moe cannot hold"]);
    bam!(
        "convert",
        mixture("qwen2_moe"),
        work.path().join("x"),
        "--to",
        "mixtral"
    )
    .refused(
        2,
        &[
            "biases of q, k and v",
            "experts in every layer",
            "no shared expert",
        ],
    );
    bam!("convert", &bam, work.path().join("x"), "--layout", "fused")
        .refused(2, &["no fused layout"]);
}

#[test]
fn a_gguf_file_taken_back_is_the_model_in_its_dtype() {
    let work = TempDir::new().unwrap();
    let at = |name: String| work.path().join(name);
    for (number, source) in [
        fixture("llama/seed"),
        fixture("mistral/seed"),
        mixture("mixtral"),
    ]
    .iter()
    .enumerate()
    {
        let (file, back, narrow) = (
            at(format!("{number}.gguf")),
            at(format!("{number}b")),
            at(format!("{number}n")),
        );
        bam!("convert", source, &file, "--to", "gguf", "--dtype", "f16").ok();
        bam!("convert", &file, &back).ok();
        crate::common::against(&back).ok();
        bam!("convert", source, &narrow, "--dtype", "f16").ok();
        bam!("diff", &back, &narrow).ok();
        let vocabulary = |folder: &Path| read_json(folder.join("tokenizer.json"))["model"].clone();
        assert_eq!(vocabulary(&back), vocabulary(source));
        let again = at(format!("{number}.again.gguf"));
        bam!(
            "convert",
            source,
            &again,
            "--to",
            "gguf",
            "--dtype",
            "f16",
            "--threads",
            "1"
        )
        .ok();
        assert_eq!(
            std::fs::read(&file).unwrap(),
            std::fs::read(&again).unwrap()
        );
        let same = bam!("convert", source, &file, "--to", "gguf");
        same.refused(2, &["exists already"]);
        bam!("convert", source, &file, "--to", "gguf", "--force").ok();
        bam!("convert", &file, at(format!("{number}s"))).ok();
        bam!("diff", at(format!("{number}s")), source).ok();
    }
    let plan = bam!(
        "convert",
        mixture("mixtral"),
        at("x.gguf".into()),
        "--to",
        "gguf",
        "--dry-run",
        "--json"
    )
    .ok()
    .json();
    assert!(
        plan["groups"]
            .to_string()
            .contains("blk.{l}.ffn_gate_exps.weight"),
        "{plan}"
    );
}

#[test]
fn eight_bits_are_as_near_as_they_can_be() {
    let work = TempDir::new().unwrap();
    let file = work.path().join("q8_0.gguf");
    bam!(
        "convert",
        fixture("llama/seed"),
        &file,
        "--to",
        "gguf",
        "--quantize",
        "q8_0"
    )
    .ok();
    let checkpoint = bam_convert::checkpoint::Checkpoint::open(&file).unwrap();
    let seed = read_folder(&fixture("llama/seed"));
    let (entry, expected) = (
        &checkpoint.tensors["blk.0.ffn_up.weight"],
        &seed["model.layers.0.mlp.up_proj.weight"],
    );
    assert_eq!(entry.encoding.to_string(), "Q8_0");
    let mut found = vec![0.0; entry.elements() as usize];
    checkpoint
        .read_values(entry, 0, &mut found, &mut Vec::new())
        .unwrap();
    for (found, expected) in found.chunks(32).zip(expected.values().chunks(32)) {
        let largest = expected
            .iter()
            .fold(0f64, |largest, value| largest.max(value.abs()));
        let worst = found
            .iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(worst <= largest / 127.0 * 0.57, "{worst} of {largest}");
    }
    assert_eq!(
        checkpoint.tensors["blk.0.attn_norm.weight"]
            .encoding
            .to_string(),
        "F32"
    );
    bam!(
        "convert",
        fixture("llama/seed"),
        work.path().join("x"),
        "--quantize",
        "q8_0"
    )
    .refused(2, &["--to gguf"]);
}

/// Tokens that a tokenizer puts around a text go along in both directions; others have no place in a GGUF file.
#[test]
fn a_gguf_file_says_which_tokens_stand_around_a_text() {
    let work = TempDir::new().unwrap();
    let source = copy_folder(&fixture("llama/seed"), &work.path().join("source"));
    let template = |parts: serde_json::Value| json!({"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": {}});
    let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let (bos, eos) = ("<|endoftext|>", "<|im_end|>");
    for (parts, expected) in [
        (json!([text]), Some((false, false))),
        (json!([token(bos), text]), Some((true, false))),
        (json!([text, token(eos)]), Some((false, true))),
        (json!([token(bos), text, token(eos)]), Some((true, true))),
        (json!([token(bos), token(bos), text]), None),
        (json!([token(eos), text]), None),
    ] {
        edit_json(&source.join("tokenizer.json"), |json| {
            json["post_processor"] = template(parts.clone());
        });
        let (file, back) = (work.path().join("x.gguf"), work.path().join("back"));
        let run = bam!("convert", &source, &file, "--to", "gguf", "--force");
        let Some((adds_bos, adds_eos)) = expected else {
            run.refused(2, &["tokenizer.json", "post_processor"]);
            continue;
        };
        run.ok();
        bam!("convert", &file, &back, "--force").ok();
        let settings = read_json(back.join("tokenizer_config.json"));
        assert_eq!(settings["add_bos_token"], adds_bos, "{parts}");
        assert_eq!(settings["add_eos_token"], adds_eos, "{parts}");
        let processor = read_json(back.join("tokenizer.json"))["post_processor"].to_string();
        assert_eq!(processor.contains(bos), adds_bos, "{processor}");
        assert_eq!(processor.contains(eos), adds_eos, "{processor}");
    }
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("x.gguf");
    let refused = |source: &Path, reasons: &[&str]| {
        bam!("convert", source, &out, "--to", "gguf").refused(2, reasons);
        assert!(!out.exists());
    };
    refused(
        &fixture("families/helium"),
        &[
            "helium models are not written",
            "llama, mistral, ministral3, qwen2, qwen3, cohere",
        ],
    );
    refused(
        &fixture("mixtures/flex_olmo"),
        &["flex_olmo models are not written"],
    );
    let window = copy_folder(&fixture("mistral/seed"), &work.path().join("window"));
    edit_json(&window.join("config.json"), |config| {
        config["sliding_window"] = 16.into()
    });
    refused(&window, &["no sliding window"]);
    let words = copy_folder(&fixture("llama/seed"), &work.path().join("words"));
    edit_json(&words.join("tokenizer.json"), |json| {
        json["pre_tokenizer"] = json!({"type": "Whitespace"})
    });
    refused(&words, &["pre_tokenizer", "no name for"]);
    let rope = copy_folder(&fixture("llama/seed"), &work.path().join("rope"));
    let yarn = json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16});
    let with = |object: &serde_json::Value, key: &str, value: f64| {
        let mut object = object.clone();
        object[key] = value.into();
        object
    };
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 16});
    let plain = json!({"rope_type": "default", "rope_theta": 500000.0});
    for (key, value, reason) in [
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        (
            "rope_parameters",
            with(&plain, "partial_rotary_factor", 0.5),
            "partial_rotary_factor",
        ),
        (
            "rope_scaling",
            with(&yarn, "partial_rotary_factor", 0.5),
            "partial_rotary_factor",
        ),
        (
            "rope_scaling",
            with(&llama3, "partial_rotary_factor", 0.5),
            "partial_rotary_factor",
        ),
        (
            "rope_scaling",
            with(&yarn, "attention_factor", 0.5),
            "attention_factor",
        ),
        ("rope_scaling", with(&yarn, "beta_fast", 16.0), "beta_fast"),
        ("rope_scaling", with(&yarn, "beta_slow", 2.0), "beta_slow"),
    ] {
        edit_json(&rope.join("config.json"), |config| {
            for key in ["rope_parameters", "rope_scaling", "partial_rotary_factor"] {
                config.as_object_mut().unwrap().remove(key);
            }
            config[key] = value.clone();
        });
        refused(&rope, &[reason, "hint: "]);
    }
    // The values that llama.cpp computes with.
    edit_json(&rope.join("config.json"), |config| {
        config["rope_scaling"] = with(&with(&yarn, "beta_fast", 32.0), "beta_slow", 1.0);
        config["partial_rotary_factor"] = 1.0.into();
    });
    bam!(
        "convert",
        &rope,
        work.path().join("yarn.gguf"),
        "--to",
        "gguf"
    )
    .ok();
    let inside = fixture("llama/seed").join("x.gguf");
    bam!("convert", fixture("llama/seed"), &inside, "--to", "gguf")
        .refused(2, &["inside the source"]);
}
