//! A family that differs in names only is brought by the user, in a file.

use crate::common::{bam, copy_folder, edit_json, fixture};

#[test]
#[allow(clippy::unwrap_used)]
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
