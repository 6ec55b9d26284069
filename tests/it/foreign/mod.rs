//! What people hand over in place of a checkpoint: every command that opens one says what it is, and what to do.

use std::ffi::OsString;
use std::path::Path;
use std::sync::OnceLock;

use crate::common::{Run, bam, copy_folder, fixture, listing, run};
use tempfile::TempDir;

mod tensors;

/// What a command must say of an input.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    /// It cannot begin: exit code 2.
    Refuses,
    /// It shows or copies what is there: exit code 0.
    Shows,
}

/// A token folder that the fixtures' models can be trained on, made once.
fn tokens() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("tokens");
        let text = fixture("hostile/text-good.txt");
        bam!(
            "tokenize",
            "--tokenizer",
            fixture("llama/seed"),
            "--validation",
            "0",
            "--out",
            out,
            text
        )
        .ok();
        folder
    });
    folder.path()
}

/// Every command that opens the checkpoint at `input`.
fn commands(input: &Path, out: &Path) -> Vec<Vec<OsString>> {
    let good = fixture("llama/seed");
    let line = |parts: &[&dyn AsRef<std::ffi::OsStr>]| -> Vec<OsString> {
        parts.iter().map(|part| part.as_ref().to_owned()).collect()
    };
    let named = format!("x={}", input.display());
    let text = format!("x={}", fixture("llama/seed/chat_template.jinja").display());
    let data = format!("x={}", tokens().join("tokens").display());
    let ids = out.with_file_name("ids.json");
    std::fs::write(&ids, "[1, 2, 3]").unwrap();
    vec![
        line(&[&"inspect", &input]),
        line(&[&"cost", &input]),
        line(&[&"convert", &input, &out]),
        line(&[&"diff", &input, &good]),
        line(&[&"convert", &input, &out, &"--to", &"gguf"]),
        line(&[&"branch", &input, &"--into", &"a", &"--out", &out]),
        line(&[
            &"upcycle",
            &"--method",
            &"bam",
            &"--seed",
            &input,
            &"--expert",
            &"a=random",
            &"--out",
            &out,
        ]),
        line(&[
            &"upcycle",
            &"--method",
            &"btx",
            &"--seed",
            &good,
            &"--expert",
            &named,
            &"--out",
            &out,
        ]),
        line(&[
            &"merge", &"--model", &good, &"--model", &input, &"--out", &out,
        ]),
        line(&[&"expert", &"extract", &input, &"0", &"--out", &out]),
        line(&[
            &"train", &input, &"--data", &data, &"--steps", &"1", &"--seq", &"4", &"--batch", &"1",
            &"--out", &out,
        ]),
        line(&[&"eval", &input, &"--data", &text]),
        line(&[&"generate", &input, &"--prompt", &"a"]),
        line(&[&"logits", &input, &"--tokens", &ids, &"--dump", &out]),
    ]
}

/// Commands that look at files or at a configuration alone come first in [`commands`].
const LOOKING: [&str; 4] = ["inspect", "cost", "convert", "diff"];

/// Runs every command on `input`; those named in `shown` must accept it, all others say every one of `parts`.
#[track_caller]
fn each_command(input: &Path, shown: &[&str], parts: &[&str]) {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    for (number, arguments) in commands(input, &out).into_iter().enumerate() {
        let name = arguments[0].to_str().unwrap().to_owned();
        let answer = if number < LOOKING.len() && shown.contains(&name.as_str()) {
            Answer::Shows
        } else {
            Answer::Refuses
        };
        let found = run(arguments);
        match answer {
            Answer::Shows => assert!([Some(0), Some(1)].contains(&found.code), "{found}"),
            Answer::Refuses => {
                said(found.refused(2, &["hint: "]), parts);
                let left: Vec<_> = listing(work.path())
                    .into_keys()
                    .filter(|name| name != "ids.json")
                    .collect();
                assert!(left.is_empty(), "{name} left {left:?}");
            }
        }
        let _ = std::fs::remove_dir_all(&out);
        let _ = std::fs::remove_file(&out);
    }
    let checked = bam!("validate", input);
    assert!([Some(1), Some(2)].contains(&checked.code), "{checked}");
    said(checked, parts);
}

#[track_caller]
fn said(run: Run, parts: &[&str]) {
    let all = format!("{}{}", run.stdout, run.stderr);
    for part in parts {
        assert!(all.contains(part), "`{part}` is not said\n{run}");
    }
    assert!(!run.stderr.contains("panicked"), "{run}");
}

/// A folder of these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    folder
}

const POINTER: &[u8] =
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5000000000\n";
const PAGE: &[u8] =
    b"\n<!DOCTYPE html>\n<html class=\"\">\n<head><meta charset=\"utf-8\"/></head></html>";

// ---------------------------------------------------------------- folders without weights that are read

#[test]
fn folders_of_other_programs() {
    let cases: [(&[(&str, &[u8])], &[&str]); 12] = [
        (
            &[
                ("adapter_config.json", b"{\"r\": 8}"),
                ("adapter_model.safetensors", b""),
            ],
            &["LoRA adapter", "BASE+ADAPTER"],
        ),
        (
            &[(".metadata", b"\x80\x02"), ("__0_0.distcp", b"PK")],
            &["distributed checkpoint (DCP)", "dcp_to_torch"],
        ),
        (
            &[("model.onnx", b"\x08"), ("tokenizer.json", b"{}")],
            &["ONNX", "exported from"],
        ),
        (
            &[("weights.00.npz", b"PK"), ("tokenizer.model", b"")],
            &["MLX", "mlx_lm.convert"],
        ),
        (
            &[("model.pt", b"PK")],
            &["PyTorch weights", "`model.pt`", "convert FILE DIR"],
        ),
        (
            &[("tf_model.h5", b"\x89HDF")],
            &["TensorFlow weights", "from_tf=True"],
        ),
        (
            &[("flax_model.msgpack", b"")],
            &["Flax weights", "from_flax=True"],
        ),
        (
            &[("config.keras", b"PK"), ("model.weights.h5", b"")],
            &["Keras model", "export_to_transformers"],
        ),
        (
            &[
                ("zero_to_fp32.py", b""),
                ("latest", b"global_step1"),
                ("global_step1/mp_rank_00.pt", b""),
            ],
            &["DeepSpeed", "zero_to_fp32.py"],
        ),
        (
            &[("header.json", b"{}"), ("train-00000.bin", b"")],
            &["tokens of texts", "--data"],
        ),
        (
            &[("tokenizer.json", b"{}"), ("tokenizer_config.json", b"{}")],
            &["a tokenizer alone"],
        ),
        (
            &[("notes.txt", b"hello")],
            &["has no weights", "found notes.txt", "config.json"],
        ),
    ];
    for (files, parts) in cases {
        let input = folder(files);
        if files[0].0 == "notes.txt" {
            // Nothing says what to do about it but what is expected.
            said(bam!("inspect", input.path()).refused(2, &[]), parts);
            continue;
        }
        each_command(input.path(), &[], parts);
    }
}

#[test]
fn an_empty_folder_and_a_folder_around_a_checkpoint() {
    let empty = TempDir::new().unwrap();
    each_command(empty.path(), &[], &["is empty", "expected config.json"]);
    let around = TempDir::new().unwrap();
    copy_folder(
        &fixture("llama/seed"),
        &around.path().join("checkpoint-500"),
    );
    each_command(
        around.path(),
        &[],
        &["name the folder in it", "checkpoint-500"],
    );
}

#[test]
fn folders_of_a_hub_cache_above_the_commit() {
    let cache = TempDir::new().unwrap();
    let repository = cache.path().join("models--org--name");
    copy_folder(
        &fixture("llama/seed"),
        &repository.join("snapshots/0123abcd"),
    );
    std::fs::create_dir(repository.join("refs")).unwrap();
    each_command(&repository, &[], &["Hub cache", "snapshots/0123abcd"]);
    each_command(
        cache.path(),
        &[],
        &["a cache of Hub repositories", "hf://org/name"],
    );
    std::fs::remove_dir_all(repository.join("snapshots/0123abcd")).unwrap();
    said(
        bam!("inspect", repository).refused(2, &[]),
        &["hf://org/name"],
    );
}

#[test]
fn a_configuration_whose_weights_are_of_another_kind() {
    for (name, part) in [
        ("model.pth", "PyTorch weights"),
        ("tf_model.h5", "TensorFlow weights"),
        ("model.onnx", "ONNX"),
        ("adapter_model.safetensors", "LoRA adapter"),
    ] {
        let work = TempDir::new().unwrap();
        let input = copy_folder(&fixture("llama/seed"), work.path());
        std::fs::rename(input.join("model.safetensors"), input.join(name)).unwrap();
        each_command(&input, &["cost"], &[part, name]);
    }
    let work = TempDir::new().unwrap();
    let input = copy_folder(&fixture("llama/seed"), work.path());
    std::fs::remove_file(input.join("model.safetensors")).unwrap();
    each_command(
        &input,
        &["cost"],
        &["has no weights", "the weights beside config.json"],
    );
}

#[test]
fn gguf_files_in_parts_and_to_choose_from() {
    let gguf = std::fs::read(fixture("hostile/gguf-good.gguf")).unwrap();
    let parts = folder(&[
        ("m-00001-of-00002.gguf", &gguf),
        ("m-00002-of-00002.gguf", &gguf),
    ]);
    each_command(
        parts.path(),
        &[],
        &[
            "GGUF file in 2 parts",
            "llama-gguf-split --merge m-00001-of-00002.gguf",
        ],
    );
    let choice = folder(&[("m.Q4_K_M.gguf", &gguf), ("m.Q8_0.gguf", &gguf)]);
    each_command(choice.path(), &[], &["2 GGUF files", "m.Q4_K_M.gguf"]);
}

#[test]
fn shards_whose_index_is_missing() {
    let work = TempDir::new().unwrap();
    let input = copy_folder(&fixture("llama_sharded/seed"), work.path());
    std::fs::remove_file(input.join("model.safetensors.index.json")).unwrap();
    // All of them are there: the index adds nothing.
    bam!("inspect", &input).ok();
    std::fs::remove_file(input.join("model-00002-of-00004.safetensors")).unwrap();
    each_command(&input, &["cost"], &["shard 2 of 4 is missing"]);
}

// ---------------------------------------------------------------- files that are something else

#[test]
fn weights_that_are_something_else() {
    let sparse = vec![0; 4096];
    let cases: [(&[u8], &[&str]); 8] = [
        (
            POINTER,
            &["model.safetensors", "Git LFS pointer", "git lfs pull"],
        ),
        (b"", &["model.safetensors", "empty (0 bytes)"]),
        (PAGE, &["model.safetensors", "web page", "/resolve/"]),
        (
            b"Invalid username or password.",
            &["model.safetensors", "\"Invalid username or password.\""],
        ),
        (
            b"PK\x03\x04\x00\x00\x08\x08archive/file.txt",
            &["model.safetensors", "zip archive"],
        ),
        (
            b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}.",
            &["model.safetensors", "pickle"],
        ),
        (b"\x89HDF\r\n\x1a\n\x00\x00", &["model.safetensors", "HDF5"]),
        (&sparse, &["model.safetensors", "zeros", "interrupted"]),
    ];
    for (bytes, parts) in cases {
        let work = TempDir::new().unwrap();
        let input = copy_folder(&fixture("llama/seed"), work.path());
        std::fs::write(input.join("model.safetensors"), bytes).unwrap();
        each_command(&input, &["cost"], parts);
    }
}

#[test]
fn a_configuration_that_is_something_else() {
    for (bytes, part) in [
        (POINTER, "Git LFS pointer"),
        (PAGE, "web page"),
        (b"", "empty (0 bytes)"),
    ] {
        let work = TempDir::new().unwrap();
        let input = copy_folder(&fixture("llama/seed"), work.path());
        std::fs::write(input.join("config.json"), bytes).unwrap();
        each_command(&input, &["diff"], &["config.json", part]);
    }
    // What is beside it comes from the same repository.
    let work = TempDir::new().unwrap();
    let input = copy_folder(&fixture("llama/seed"), work.path());
    std::fs::write(input.join("tokenizer.json"), POINTER).unwrap();
    for arguments in [
        vec![
            "generate".into(),
            input.clone().into(),
            "--prompt".into(),
            "a".into(),
        ],
        vec![
            "tokenize".into(),
            "--tokenizer".into(),
            input.clone().into(),
            "--out".into(),
            input.with_extension("t").into(),
            fixture("hostile/text-good.txt").into(),
        ],
    ] {
        said(
            run(arguments).refused(2, &[]),
            &["tokenizer.json", "Git LFS pointer"],
        );
    }
}

#[test]
fn a_file_in_place_of_a_folder_and_the_other_way() {
    let seed = fixture("llama/seed");
    let weights = seed.join("model.safetensors");
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    for arguments in commands(&weights, &out) {
        // Headers and copies need no folder.
        if LOOKING.contains(&arguments[0].to_str().unwrap())
            && arguments[0] != "cost"
            && arguments.len() < 4
        {
            run(arguments).ok();
            let _ = std::fs::remove_dir_all(&out);
            continue;
        }
        said(
            run(arguments).refused(2, &["hint: "]),
            &["model.safetensors", "folder"],
        );
    }
    for (arguments, part) in [
        (
            vec!["run".into(), seed.clone().into()],
            "expected a regular file",
        ),
        (
            vec![
                "logits".into(),
                seed.clone().into(),
                "--tokens".into(),
                seed.clone().into(),
                "--dump".into(),
                out.into(),
            ],
            "expected a regular file",
        ),
        (
            vec![
                "cost".into(),
                seed.clone().into(),
                "--format".into(),
                seed.into(),
            ],
            "expected a regular file",
        ),
    ] {
        run(arguments).refused(2, &[part]);
    }
}

#[test]
fn a_repository_without_its_scheme() {
    bam!("inspect", "org/name").refused(2, &["No such file", "hint: ", "hf://org/name"]);
}
