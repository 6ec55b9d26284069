//! A BAM as a checkpoint of Qwen3-Next, which transformers computes and this program does not.
//!
//! `fixtures/make_golden_next.py` has loaded these very files in transformers. The BAM must have the same logits here.

use std::path::{Path, PathBuf};

use bam_convert::model::logits;
use candle_core::Device;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    Tensor, against, bam, copy_folder, edit_json, edit_tensors, fixture, read_file, read_folder,
    read_json, run, sha256,
};

/// A specialist of Qwen 3 whose norms of queries and keys are the seed's.
fn with_norms_of_seed(name: &str, work: &Path) -> PathBuf {
    let folder = copy_folder(&fixture("qwen3").join(name), &work.join(name));
    let seed = read_folder(&fixture("qwen3/seed"));
    edit_tensors(&folder, |tensors| {
        let norms = seed
            .iter()
            .filter(|(name, _)| name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight"));
        tensors.extend(norms.map(|(name, tensor)| (name.clone(), tensor.clone())));
    });
    folder
}

/// A mixture of so many experts of Qwen 3, the seed counted.
fn mixture(experts: usize, options: &[&str], work: &Path) -> PathBuf {
    let out = work.join("bam");
    let mut words: Vec<String> = ["upcycle", "--quiet", "--router", "normal:1", "--seed"]
        .map(str::to_owned)
        .to_vec();
    words.push(fixture("qwen3/seed").display().to_string());
    for name in &["code", "law"][..experts - 1] {
        let folder = with_norms_of_seed(name, work);
        words.extend([
            "--expert".to_owned(),
            format!("{name}={}", folder.display()),
        ]);
    }
    words.extend(options.iter().map(|word| (*word).to_owned()));
    words.extend(["--out".to_owned(), out.display().to_string()]);
    run(words.into_iter().map(Into::into)).ok();
    out
}

/// Makes the mixture of a golden file and its checkpoint, and compares both with the file.
fn golden(name: &str) {
    let path = fixture(format!("golden/qwen3_next-{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let facts = metadata.metadata().clone().unwrap();
    let work = TempDir::new().unwrap();
    let options: Vec<&str> = serde_json::from_str(&facts["options"]).unwrap();
    let folder = mixture(facts["experts"].parse().unwrap(), &options, work.path());
    edit_json(&folder.join("config.json"), |config| {
        let keys: Value = serde_json::from_str(&facts["config"]).unwrap();
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
    });
    let out = work.path().join("next");
    bam!(
        "convert",
        folder,
        out,
        "--to",
        "qwen3_next",
        "--dtype",
        "f32"
    )
    .ok();
    for (file, key) in [
        ("model.safetensors", "weights_sha256"),
        ("config.json", "config_sha256"),
    ] {
        let hash = sha256(&std::fs::read(out.join(file)).unwrap());
        assert_eq!(
            hash, facts[key],
            "{name}: {file} is another one than the golden file's"
        );
    }
    bam!("validate", out).ok();
    against(&out).ok();

    let golden = read_file(&path);
    let ids = golden["tokens"].values();
    let tokens: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    let ours = logits(&folder, &tokens, &Device::Cpu).unwrap();
    let ours: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
    let theirs = golden["logits"].values();
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(&theirs);
    let off = pairs
        .map(|(a, b)| (f64::from(*a) - b).abs())
        .fold(0.0, f64::max);
    assert!(off <= 1e-5, "{name}: {off}");
}

#[test]
fn softmax_gates_of_two_experts_fit() {
    golden("softmax");
    golden("softmax-shared");
}

#[test]
fn sigmoid_gates_of_any_number_of_experts_fit() {
    golden("sigmoid");
    golden("sigmoid-shared");
}

#[test]
fn attention_without_experts_and_layers_without_experts_fit() {
    golden("merged");
}

#[test]
fn what_the_class_lacks_is_named() {
    for (family, options, reasons) in [
        (
            "qwen3",
            &[][..],
            &[
                "a softmax over 3 attention experts",
                "--attention-gate sigmoid",
            ][..],
        ),
        (
            "qwen3",
            &["--attention-top-k", "1"],
            &["--attention-top-k soft"],
        ),
        (
            "qwen3",
            &["--attention-gate", "sigmoid", "--adapters"],
            &["it has no adapters"],
        ),
        (
            "qwen3",
            &["--attention-gate", "sigmoid", "--router-bias", "choice"],
            &["have no bias"],
        ),
        (
            "llama",
            &["--attention-gate", "sigmoid"],
            &["the model no norm of queries and keys"],
        ),
        (
            "qwen2",
            &["--attention-gate", "sigmoid"],
            &["biases of attention"],
        ),
        (
            "cohere",
            &["--attention-gate", "sigmoid"],
            &["its block is sequential", "does not scale logits"],
        ),
    ] {
        let work = TempDir::new().unwrap();
        let folder = work.path().join("bam");
        let mut words: Vec<std::ffi::OsString> =
            vec!["upcycle".into(), "--quiet".into(), "--seed".into()];
        words.push(fixture(family).join("seed").into());
        for name in ["code", "law"] {
            let expert = format!("{name}={}", fixture(family).join(name).display());
            words.extend(["--expert".into(), expert.into()]);
        }
        words.extend([
            "--method".into(),
            "bam".into(),
            "--out".into(),
            folder.clone().into(),
        ]);
        words.extend(options.iter().map(Into::into));
        run(words).ok();
        let out = work.path().join("next");
        let mut parts = vec!["qwen3_next cannot hold this mixture"];
        parts.extend(reasons);
        bam!("convert", folder, out, "--to", "qwen3_next").refused(2, &parts);
        assert!(!out.exists());
    }
}

#[test]
fn norms_that_differ_are_refused_with_the_remedy() {
    let work = TempDir::new().unwrap();
    let folder = work.path().join("bam");
    let expert = format!("code={}", fixture("qwen3/code").display());
    let seed = fixture("qwen3/seed");
    bam!(
        "upcycle", "--method", "bam", "--seed", seed, "--expert", expert, "--out", folder
    )
    .ok();
    let out = work.path().join("next");
    bam!("convert", folder, out, "--to", "qwen3_next").refused(
        2,
        &[
            "attention_experts.1.q_norm.weight`: differs from `",
            "in 2 of 2 layers",
            "--freeze q_norm,k_norm",
        ],
    );
    assert!(!out.exists());
    bam!("convert", seed, out, "--to", "qwen3_next").refused(2, &["dense"]);
    bam!(
        "convert",
        folder,
        out,
        "--to",
        "qwen3_next",
        "--layout",
        "fused"
    )
    .refused(2, &["leave --layout out"]);
}

/// Sets one weight of the last norm.
fn set_norm(folder: &Path, weight: f64) {
    edit_tensors(folder, |tensors| {
        let norm = tensors.get_mut("model.norm.weight").unwrap();
        let mut values = norm.values();
        values[3] = weight;
        *norm = Tensor::new(norm.dtype, &norm.shape, &values);
    });
}

#[test]
fn a_norm_that_loses_too_much_is_refused_and_rounded_weights_lose_their_scores() {
    let work = TempDir::new().unwrap();
    let folder = mixture(2, &["--method", "bam"], work.path());
    let card = "---\nlicense: mit\nmodel-index:\n- name: x\n  results: []\n---\n# A\n";
    std::fs::write(folder.join("README.md"), card).unwrap();
    let keeps_scores = |out: &Path| {
        let card = std::fs::read_to_string(out.join("README.md")).unwrap();
        assert_eq!(
            card.contains("model-index"),
            !card.contains("scores of that model are left out")
        );
        card.contains("model-index")
    };
    let (narrow, wide) = (work.path().join("narrow"), work.path().join("wide"));
    bam!("convert", folder, narrow, "--to", "qwen3_next").ok();
    assert!(!keeps_scores(&narrow));

    set_norm(&folder, 0.01);
    let out = work.path().join("out");
    bam!("convert", folder, out, "--to", "qwen3_next").refused(
        2,
        &[
            "tensor `model.norm.weight`: bf16 cannot hold it less one: a weight changes by 17 %",
            "pass --dtype f32",
        ],
    );
    assert!(!out.exists());
    let run = bam!(
        "convert",
        folder,
        wide,
        "--to",
        "qwen3_next",
        "--dtype",
        "f32"
    )
    .ok();
    assert!(!run.stderr.contains("rounded once more"), "{run}");
    assert!(keeps_scores(&wide));
}

#[test]
fn rounding_is_said_and_commands_say_what_they_can_do() {
    let work = TempDir::new().unwrap();
    let options = ["--method", "bam", "--attention-gate", "sigmoid"];
    let folder = mixture(3, &options, work.path());
    set_norm(&folder, 0.451_171_875);
    let out = work.path().join("next");
    let said = bam!("convert", folder, out, "--to", "qwen3_next")
        .ok()
        .stderr;
    assert!(
        said.contains("rounded once more: norms, which are stored less one (by 4.3e-3 of a weight"),
        "{said}"
    );
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    for part in [
        "AutoModelForCausalLM",
        "bam-convert validate .",
        "3 attention experts",
        "side by side",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    for part in ["bam-convert generate", "trust_remote_code", "vLLM"] {
        assert!(!card.contains(part), "{part}: {card}");
    }

    // Tensors can be read and converted; models of this class are not computed.
    bam!("inspect", out).ok();
    bam!("diff", out, out).ok();
    let wider = work.path().join("wider");
    bam!("convert", out, wider, "--dtype", "f32").ok();
    assert_eq!(
        read_json(wider.join("config.json"))["dtype"],
        json!("float32")
    );
    let reason = "a gate multiplies the output of their attention";
    let made = work.path().join("made");
    bam!("generate", out, "--prompt", "a").refused(2, &["qwen3_next", reason]);
    bam!("cost", out).refused(2, &["qwen3_next", reason]);
    bam!("expert", "remove", out, "law", "--out", made).refused(2, &["qwen3_next", reason]);
    bam!("convert", out, made, "--to", "bam").refused(2, &["qwen3_next", reason]);
    assert!(!made.exists());
}
