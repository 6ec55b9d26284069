//! GGUF files against what gguf-py reads from them: `fixtures/gguf/`, written by `fixtures/make.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bam_convert::checkpoint::{Checkpoint, TensorEntry};
use bam_convert::family::{described, gguf};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::common::{Run, bam, binary, finish, read_json, run};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/gguf")
        .join(name)
}

/// Values of a tensor as `f32`, read in pieces that start and end inside blocks.
fn values(checkpoint: &Checkpoint, entry: &TensorEntry) -> Vec<f32> {
    let mut values = vec![0.0; usize::try_from(entry.elements()).unwrap()];
    let mut first = 0;
    for piece in values.chunks_mut(1000) {
        checkpoint
            .read_values(entry, first, piece, &mut Vec::new())
            .unwrap();
        first += piece.len() as u64;
    }
    values.into_iter().map(|value| value as f32).collect()
}

fn sha256(values: impl Iterator<Item = f32>) -> String {
    let mut hash = Sha256::new();
    values.for_each(|value| hash.update(value.to_le_bytes()));
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn every_quantisation_has_the_values_of_gguf_py() {
    let quants = Checkpoint::open(&fixture("quants.gguf")).unwrap();
    let expected = Checkpoint::open(&fixture("quants.safetensors")).unwrap();
    assert!(quants.tensors.keys().eq(expected.tensors.keys()) && quants.tensors.len() == 13);
    for (name, entry) in &quants.tensors {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(
            bits(values(&quants, entry)),
            bits(values(&expected, &expected.tensors[name])),
            "{name}"
        );
    }
}

#[test]
fn every_tensor_of_a_llama_is_that_of_transformers() {
    let golden: Value = serde_json::from_slice(&fs::read(fixture("golden.json")).unwrap()).unwrap();
    for (file, expected) in golden.as_object().unwrap() {
        let checkpoint = Checkpoint::open(&fixture(file)).unwrap();
        let model = described::model_of(&checkpoint).unwrap();
        let tensors = model.tensors().unwrap();
        assert_eq!(tensors.len(), expected.as_object().unwrap().len(), "{file}");
        for tensor in tensors {
            let values = values(&checkpoint, checkpoint.tensor(&tensor.source).unwrap());
            let (rows, width) = (tensor.shape[0], values.len() / tensor.shape[0] as usize);
            let values = (0..rows).flat_map(|row| {
                let row = tensor
                    .unpermute_heads
                    .map_or(row, |heads| gguf::source_row(row, rows, heads))
                    as usize;
                values[row * width..(row + 1) * width].iter().copied()
            });
            let golden = &expected[&tensor.source];
            assert_eq!(golden["hf_name"], tensor.name, "{file}");
            assert_eq!(
                golden["hf_f32_sha256"],
                sha256(values),
                "{file}: {}",
                tensor.name
            );
        }
    }
}

/// A copy of a fixture in `folder` in which the bytes after `mark` are changed.
fn patched(folder: &Path, name: &str, mark: &[u8], change: impl FnOnce(&mut [u8])) -> PathBuf {
    let mut bytes = fs::read(fixture(name)).unwrap();
    let at = bytes
        .windows(mark.len())
        .position(|window| window == mark)
        .unwrap();
    change(&mut bytes[at + mark.len()..]);
    let path = folder.join("patched.gguf");
    fs::write(&path, bytes).unwrap();
    path
}

/// Every command that could take a GGUF file for a checkpoint.
fn readers<'a>(path: &'a str, out: &'a str) -> [Vec<&'a str>; 5] {
    [
        vec!["convert", path, out],
        vec!["train", path, "--data", "a=.", "--steps", "1", "--out", out],
        vec!["generate", path, "--prompt", "a"],
        vec!["merge", "--model", path, "--out", out],
        vec![
            "upcycle", "--method", "bam", "--seed", path, "--expert", "a=random", "--out", out,
        ],
    ]
}

#[test]
fn a_file_of_another_architecture_is_shown_and_named() {
    let work = tempfile::TempDir::new().unwrap();
    // The value of the key: its type, its length, its text.
    let path = patched(
        work.path(),
        "llama-k.gguf",
        b"general.architecture",
        |rest| rest[12..17].copy_from_slice(b"bloom"),
    );
    let shown = bam!("inspect", path).ok().stdout;
    for part in [
        "unknown: ",
        "`general.architecture`: is `bloom`, which is not read",
        "llama.block_count",
        "_K",
        "tensor data",
        "tokenizer.ggml.tokens",
        "a list of",
    ] {
        assert!(shown.contains(part), "`{part}` is not in\n{shown}");
    }
    let json = bam!("inspect", path, "--tensors", "--json").ok().json();
    assert_eq!(json["metadata"]["general.architecture"], "\"bloom\"");
    assert!(json["tensors"].as_array().unwrap().len() > 10);

    let (path, out) = (
        path.to_str().unwrap().to_owned(),
        work.path().join("out").to_str().unwrap().to_owned(),
    );
    for arguments in readers(&path, &out) {
        run(arguments.iter().map(Into::into)).refused(
            2,
            &[
                "patched.gguf",
                "is `bloom`",
                "hint: ",
                "llama, mistral3, qwen2",
            ],
        );
        assert!(!Path::new(&out).exists());
    }
}

#[test]
fn elements_that_cannot_be_computed_are_shown_and_refused_by_name() {
    let work = tempfile::TempDir::new().unwrap();
    let name = "blk.0.ffn_up.weight";
    // Its rank, two extents, and its type: blocks of IQ4_NL are as large as blocks of Q4_0.
    let path = patched(work.path(), "llama-q4_0.gguf", name.as_bytes(), |rest| {
        assert_eq!(rest[20..24], 2_u32.to_le_bytes());
        rest[20..24].copy_from_slice(&20_u32.to_le_bytes());
    });
    let shown = bam!("inspect", path).ok().stdout;
    assert!(
        shown.contains("IQ4_NL") && shown.contains("1 tensor"),
        "{shown}"
    );
    bam!("convert", path, work.path().join("out")).refused(
        2,
        &["patched.gguf", name, "IQ4_NL", "Q4_0", "llama-quantize"],
    );
    assert!(!work.path().join("out").exists());
}

/// A cache of its own, so that a test sees what is kept.
struct World {
    work: tempfile::TempDir,
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn run(&self, words: &[&dyn AsRef<std::ffi::OsStr>]) -> Run {
        let mut command = Command::new(binary());
        command
            .args(words.iter().map(AsRef::as_ref))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1");
        finish(command)
    }

    /// Converted checkpoints in the cache.
    fn converted(&self) -> usize {
        let folder = self.path("cache/bam-convert/converted");
        fs::read_dir(folder).map_or(0, Iterator::count)
    }
}

#[test]
fn commands_that_compute_take_the_file_itself() {
    let world = World {
        work: tempfile::tempdir().unwrap(),
    };
    for (count, name) in ["llama-q4_0.gguf", "llama-f16.gguf"].iter().enumerate() {
        let (file, folder) = (fixture(name), world.path(&format!("folder-{count}")));
        world.run(&[&"convert", &file, &folder]).ok();
        assert_eq!(world.converted(), count, "convert keeps nothing");
        world
            .run(&[&"logits", &file, &folder, &"--tolerance", &"0"])
            .ok();
        assert_eq!(world.converted(), count + 1);
        let say = |checkpoint: &Path| {
            let words: [&dyn AsRef<std::ffi::OsStr>; 7] = [
                &"generate",
                &checkpoint,
                &"--prompt",
                &"the",
                &"--max-tokens",
                &"6",
                &"--json",
            ];
            world.run(&words).ok().json()["ids"].clone()
        };
        assert_eq!(say(&file), say(&folder));
        let texts = format!("a={}", fixture("../../LICENSE-MIT").display());
        let score = |checkpoint: &Path| {
            let words: [&dyn AsRef<std::ffi::OsStr>; 5] =
                [&"eval", &checkpoint, &"--data", &texts, &"--json"];
            world.run(&words).ok().json()["models"][0].clone()
        };
        let (of_file, of_folder) = (score(&file), score(&folder));
        assert_eq!(of_file["domains"], of_folder["domains"]);
        assert_eq!(of_file["path"], file.to_str().unwrap());
        assert_eq!(of_file["name"], *name);
        // Once is enough.
        let again = world.run(&[
            &"generate",
            &file,
            &"--prompt",
            &"the",
            &"--max-tokens",
            &"1",
        ]);
        assert!(!again.ok().stderr.contains("converted"));
        assert_eq!(world.converted(), count + 1);
    }
}

#[test]
fn training_records_the_file_as_its_source() {
    let world = World {
        work: tempfile::tempdir().unwrap(),
    };
    let file = world.path("llama.gguf");
    fs::copy(fixture("llama-q8_0.gguf"), &file).unwrap();
    let (folder, tokens) = (world.path("folder"), world.path("tokens"));
    world.run(&[&"convert", &file, &folder]).ok();
    let texts = fixture("../../LICENSE-APACHE");
    world
        .run(&[
            &"tokenize",
            &texts,
            &"--tokenizer",
            &folder,
            &"--validation",
            &"0",
            &"--out",
            &tokens,
        ])
        .ok();
    let data = format!("a={}", tokens.display());
    let train = |checkpoint: &Path, out: &Path, more: &[&str]| {
        let words: [&dyn AsRef<std::ffi::OsStr>; 16] = [
            &"train",
            &checkpoint,
            &"--data",
            &data,
            &"--steps",
            &"2",
            &"--seq",
            &"16",
            &"--batch",
            &"2",
            &"--train",
            &"norms",
            &"--validate-every",
            &"0",
            &"--out",
            &out,
        ];
        let more = more.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>);
        world.run(&words.into_iter().chain(more).collect::<Vec<_>>())
    };
    let out = world.path("out");
    let note = "will be converted once";
    let looked = train(&file, &out, &["--dry-run"]).ok();
    assert!(looked.stderr.contains(note), "{looked}");
    assert_eq!((world.converted(), out.exists()), (0, false));
    train(&file, &out, &[]).ok();
    let plain = world.path("plain");
    train(&folder, &plain, &[]).ok();
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(weights(&out), weights(&plain));

    let manifest = read_json(out.join("bam-manifest.json"));
    let sources = manifest["sources"].as_array().unwrap();
    assert_eq!(
        (sources.len(), &sources[0]["path"]),
        (1, &"../llama.gguf".into())
    );
    assert_eq!(sources[0]["files"][0]["path"], "llama.gguf");
    // What did not train follows from the file, bit for bit, also where the cache is gone.
    fs::remove_dir_all(world.path("cache")).unwrap();
    let run = world
        .run(&[&"validate", &out, &"--against", &"--json"])
        .ok();
    assert!(run.stdout.contains("replay"), "{run}");
    train(&file, &out, &["--resume"]).ok();
}
