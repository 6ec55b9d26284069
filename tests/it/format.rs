//! Families are data: one more is a file, embedded in the program or brought by the user with `--format`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{bam, copy_folder, edit_json, edit_tensors, fixture, read_file, read_json};

/// Llama under other names, from the tensors to the keys of `config.json`: as many lines as it has names of its own.
const HOUSE: &str = "\
extends: llama
name: house
model_types: [house]
architectures: [HouseForCausalLM]

keys:
  num_layers: depth
  hidden_act: { names: [activation_function] }
  norm_eps: { names: [layer_norm_epsilon] }

tensors:
  embedding: transformer.wte.weight
  final_norm: transformer.ln_f.weight
  input_norm: transformer.h.{l}.ln_1.weight
  post_attention_norm: transformer.h.{l}.ln_2.weight
  q: transformer.h.{l}.attn.attention.q_proj.weight
  k: transformer.h.{l}.attn.attention.k_proj.weight
  v: transformer.h.{l}.attn.attention.v_proj.weight
  o: transformer.h.{l}.attn.attention.out_proj.weight
  gate: transformer.h.{l}.mlp.c_fc_0.weight
  up: transformer.h.{l}.mlp.c_fc_1.weight
  down: transformer.h.{l}.mlp.c_proj.weight
";

/// Names of a llama's tensors, and of the house's.
const RENAMED: [(&str, &str); 12] = [
    ("model.embed_tokens.", "transformer.wte."),
    ("model.norm.", "transformer.ln_f."),
    ("model.layers.", "transformer.h."),
    (".input_layernorm.", ".ln_1."),
    (".post_attention_layernorm.", ".ln_2."),
    (".self_attn.o_proj.", ".attn.attention.out_proj."),
    (".self_attn.", ".attn.attention."),
    (".mlp.gate_proj.", ".mlp.c_fc_0."),
    (".mlp.up_proj.", ".mlp.c_fc_1."),
    (".mlp.down_proj.", ".mlp.c_proj."),
    (".gate_proj.", ".c_fc_0."),
    (".up_proj.", ".c_fc_1."),
];

/// The format file of the house in `work`, with `more` at its end.
fn house(work: &Path, more: &str) -> PathBuf {
    let path = work.join("house.yaml");
    std::fs::write(&path, format!("{HOUSE}{more}")).unwrap();
    path
}

/// A copy of the llama in `fixtures/` as a checkpoint of the house.
fn renamed(work: &Path, name: &str) -> PathBuf {
    let folder = copy_folder(&fixture("llama").join(name), &work.join(name));
    edit_tensors(&folder, |tensors| {
        let all = std::mem::take(tensors);
        tensors.extend(all.into_iter().map(|(name, tensor)| {
            let name = RENAMED
                .iter()
                .fold(name, |name, (from, to)| name.replace(from, to));
            (name, tensor)
        }));
    });
    edit_json(&folder.join("config.json"), |config| {
        let config = config.as_object_mut().unwrap();
        config.insert("model_type".into(), "house".into());
        config.insert(
            "architectures".into(),
            serde_json::json!(["HouseForCausalLM"]),
        );
        for (from, to) in [
            ("num_hidden_layers", "depth"),
            ("hidden_act", "activation_function"),
            ("rms_norm_eps", "layer_norm_epsilon"),
        ] {
            let value: Value = config.remove(from).unwrap();
            config.insert(to.into(), value);
        }
    });
    folder
}

/// The logits of a checkpoint, with more arguments.
fn logits(folder: &Path, more: &[&std::ffi::OsStr]) -> Vec<f64> {
    let out = folder.with_extension("logits");
    let tokens = fixture("golden/tokens.json");
    let arguments = [
        "logits".as_ref(),
        folder.as_os_str(),
        "--tokens".as_ref(),
        tokens.as_os_str(),
        "--dump".as_ref(),
        out.as_os_str(),
    ];
    let arguments = arguments.into_iter().chain(more.iter().copied());
    crate::common::run(arguments.map(ToOwned::to_owned)).ok();
    read_file(&out)["logits"].values()
}

/// Seed-OSS is Qwen2 with keys for what Qwen2 always has: no layer slides, q, k and v have biases, o has none.
#[test]
fn a_family_is_a_file_of_fifteen_lines() {
    let work = TempDir::new().unwrap();
    let folders = ["seed", "code"].map(|name| {
        let folder = copy_folder(&fixture("qwen2").join(name), &work.path().join(name));
        edit_json(&folder.join("config.json"), |config| {
            let config = config.as_object_mut().unwrap();
            config.insert("model_type".into(), "seed_oss".into());
            config.insert(
                "architectures".into(),
                serde_json::json!(["SeedOssForCausalLM"]),
            );
            config.insert("head_dim".into(), 8.into());
            for key in [
                "layer_types",
                "max_window_layers",
                "sliding_window",
                "use_sliding_window",
            ] {
                config.remove(key);
            }
        });
        folder
    });
    let [seed, code] = &folders;
    let golden = read_file(&fixture("golden/qwen2.safetensors"))["logits"].values();
    let ours = logits(seed, &[]);
    let difference = ours.iter().zip(&golden).map(|(a, b)| (a - b).abs());
    assert!(difference.fold(0.0, f64::max) < 2e-4);

    let (bam, alone) = (work.path().join("bam"), work.path().join("alone"));
    let expert = format!("code={}", code.display());
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", bam
    )
    .ok();
    crate::common::against(&bam).ok();
    bam!("expert", "extract", bam, "code", "--out", alone).ok();
    assert_eq!(
        read_json(alone.join("config.json"))["model_type"],
        "seed_oss"
    );
    let refused = bam!("convert", bam, work.path().join("x.gguf"), "--to", "gguf");
    refused.refused(2, &["step35", "its attention has no biases"]);
}

#[test]
fn other_names_are_the_same_model_on_every_command() {
    let work = TempDir::new().unwrap();
    let format = house(work.path(), "");
    let with = ["--format".as_ref(), format.as_os_str()];
    let (seed, code) = (renamed(work.path(), "seed"), renamed(work.path(), "code"));
    let same = fixture("llama/seed");
    let to = |name: &str| work.path().join(name);
    let original = copy_folder(&same, &to("llama"));
    assert!(logits(&seed, &with) == logits(&original, &[]));
    bam!(
        "logits",
        seed,
        "--tokens",
        fixture("golden/tokens.json"),
        "--dump",
        to("x")
    )
    .refused(2, &["model_type", "house", "--format FILE"]);

    // A BAM of it is read as a BAM, with or without the file.
    let expert = format!("code={}", code.display());
    let bam = to("bam");
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", bam, "--format",
        format
    )
    .ok();
    assert!(logits(&bam, &with) == logits(&bam, &[]));
    let mixed = bam!(
        "logits",
        seed,
        bam,
        "--tokens",
        fixture("golden/tokens.json"),
        "--format",
        format
    );
    mixed.ok();

    // One of its experts alone is of the family again.
    bam!(
        "expert",
        "extract",
        bam,
        "code",
        "--out",
        to("alone"),
        "--format",
        format
    )
    .ok();
    assert_eq!(read_json(to("alone/config.json"))["depth"], 2);
    logits(&to("alone"), &with);

    // GGUF names come from the family that it extends, so the file reads back as a llama.
    bam!(
        "convert",
        seed,
        to("house.gguf"),
        "--to",
        "gguf",
        "--format",
        format
    )
    .ok();
    bam!("convert", to("house.gguf"), to("back")).ok();
    assert_eq!(read_json(to("back/config.json"))["model_type"], "llama");
    bam!("convert", original, to("llama.gguf"), "--to", "gguf").ok();
    assert_eq!(
        std::fs::read(to("house.gguf")).unwrap().len(),
        std::fs::read(to("llama.gguf")).unwrap().len()
    );
    bam!("convert", to("llama.gguf"), to("house"), "--format", format).ok();
    assert_eq!(read_json(to("house/config.json"))["model_type"], "house");
    assert!(logits(&to("house"), &with) == logits(&to("back"), &[]));

    bam!("inspect", seed, "--format", format).ok();
    bam!("validate", seed, "--format", format).ok();
    bam!("cost", seed, "--format", format).ok();
    bam!("diff", seed, seed, "--format", format).ok();
    bam!("init", seed, "--out", to("init"), "--format", format).ok();
    bam!(
        "convert",
        seed,
        to("f32"),
        "--dtype",
        "f32",
        "--format",
        format
    )
    .ok();
    bam!(
        "merge",
        "--model",
        seed,
        "--model",
        code,
        "--out",
        to("merged"),
        "--format",
        format
    )
    .ok();
    bam!(
        "branch",
        seed,
        "--into",
        "a",
        "--out",
        to("branches"),
        "--format",
        format
    )
    .ok();
    bam!(
        "generate",
        seed,
        "--prompt",
        "a",
        "--max-tokens",
        "2",
        "--format",
        format
    )
    .ok();
}

/// A GGUF architecture of a user's own, which rotates halves: the other names, and no row moves.
#[test]
fn gguf_names_are_data_in_both_directions() {
    let work = TempDir::new().unwrap();
    let to = |name: &str| work.path().join(name);
    let names = "\
gguf:
  architecture: house
  rope_interleaved: false
  keys:
    num_layers: depth
  tensors:
    post_attention_norm: blk.{l}.post_attention_norm.weight
";
    let format = house(work.path(), names);
    let seed = renamed(work.path(), "seed");
    bam!(
        "convert",
        seed,
        to("a.gguf"),
        "--to",
        "gguf",
        "--format",
        format
    )
    .ok();
    let shown = bam!("inspect", to("a.gguf"), "--tensors", "--format", format).ok();
    assert!(
        shown.stdout.contains("blk.0.post_attention_norm.weight"),
        "{shown:?}"
    );
    bam!("convert", to("a.gguf"), to("unread")).refused(2, &["general.architecture", "is `house`"]);

    bam!("convert", to("a.gguf"), to("back"), "--format", format).ok();
    let (before, after) = (seed.join("model.safetensors"), to("back/model.safetensors"));
    assert!(read_file(&before) == read_file(&after));
    let with = ["--format".as_ref(), format.as_os_str()];
    assert!(logits(&to("back"), &with) == logits(&seed, &with));
}

#[test]
fn format_files_that_cannot_be_are_refused() {
    let work = TempDir::new().unwrap();
    let seed = renamed(work.path(), "seed");
    let refused = |text: String, parts: &[&str]| {
        let path = work.path().join("wrong.yaml");
        std::fs::write(&path, text).unwrap();
        bam!("validate", seed, "--format", path).refused(2, parts);
    };
    let wrong = |from: &str, to: &str, parts: &[&str]| refused(HOUSE.replace(from, to), parts);
    wrong(
        "extends: llama",
        "extends: lama",
        &["`extends`", "found `lama`", "is `llama`"],
    );
    wrong("name: house\n", "", &["`name`", "required"]);
    wrong(
        "  norm_eps:",
        "  norm_epz:",
        &["wrong.yaml:9:", "norm_epz", "`norm_eps`"],
    );
    wrong("{ names: [layer", "{ nmaes: [layer", &["nmaes", "`names`"]);
    wrong(
        "num_layers: depth",
        "num_layers: ~",
        &["`keys.num_layers`", "required"],
    );
    wrong("{l}.ln_1", "0.ln_1", &["`tensors.input_norm`", "{l}"]);
    wrong(
        "  gate:",
        "  attention_adapter:",
        &["`tensors.attention_adapter`", "experts"],
    );
    refused(
        format!("{HOUSE}mixture: {{ num_experts: e }}\n"),
        &["`mixture.num_experts_per_tok`", "required"],
    );
    refused(
        format!("{HOUSE}gguf:\n  kyes:\n    num_layers: d\n"),
        &["wrong.yaml:", "kyes", "`keys`"],
    );
}

#[test]
fn a_format_file_brings_a_family() {
    let work = tempfile::TempDir::new().unwrap();
    let folders = ["seed", "code"]
        .map(|name| copy_folder(&fixture("llama").join(name), &work.path().join(name)));
    for folder in &folders {
        edit_json(&folder.join("config.json"), |config| {
            config["model_type"] = "mine".into();
            config["architectures"] = serde_json::json!(["MineForCausalLM"]);
        });
    }
    let llama = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/formats/llama.yaml"))
        .unwrap();
    let mine = llama
        .replace("name: llama", "name: mine")
        .replace("[llama]", "[mine]")
        .replace("LlamaFor", "MineFor");
    let format = work.path().join("mine.yaml");
    std::fs::write(&format, mine).unwrap();
    let (out, [seed, code]) = (work.path().join("out"), &folders);
    let expert = format!("code={}", code.display());
    let unknown = bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", out
    );
    unknown.refused(2, &["model_type", "mine", "--format FILE"]);
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", out, "--format",
        format
    )
    .ok();
    crate::common::against(&out).ok();
    bam!("validate", seed, "--format", format).ok();
    bam!(
        "merge",
        "--model",
        seed,
        "--model",
        code,
        "--out",
        work.path().join("merged"),
        "--format",
        format
    )
    .ok();
    bam!(
        "branch",
        seed,
        "--into",
        "a",
        "--out",
        work.path().join("branches"),
        "--format",
        format
    )
    .ok();
    assert!(
        bam!("cost", seed, "--format", format)
            .ok()
            .stdout
            .starts_with("mine: 2 layers")
    );
}

/// A stage reads its format file: it runs again after the file has changed.
#[test]
fn a_stage_of_a_recipe_has_a_format_file() {
    let work = TempDir::new().unwrap();
    let format = house(work.path(), "");
    renamed(work.path(), "seed");
    let recipe = work.path().join("recipe.yaml");
    let stage = "  - name: branches\n    branch: {seed: ../seed, into: [a], out: out, format: ../house.yaml}\n";
    std::fs::write(&recipe, format!("stages:\n{stage}")).unwrap();
    let ran = || {
        let run = bam!("run", recipe, "--work", work.path().join("work"), "--json").ok();
        run.json()["stages"][0]["ran"].clone()
    };
    let (first, second) = (ran(), ran());
    assert_eq!(first, "done");
    assert_ne!(second, "done");
    std::fs::write(&format, format!("{HOUSE}other_keys: [dropout]\n")).unwrap();
    assert_eq!(ran(), "done");
}
