//! What people hand over in place of a checkpoint: recognised by the files of its folder, or by the first bytes of a file.
//!
//! Readers ask here after something has failed, so that the error says what the input is instead of what it lacks. Nothing here decides
//! whether an input is readable.

use std::fs::Metadata;
use std::path::{Path, PathBuf};

use super::foreign_error::ForeignError;
use super::format;
use super::reference::Reference;
use super::source_file::SourceFile;
use super::weight_names::wanted_weights;
use crate::{Error, Result};

/// A kind of folder that is no checkpoint.
struct Kind {
    /// Names that give it away; one `*` matches any text.
    names: &'static [&'static str],
    /// Completes "holds …".
    what: &'static str,
    hint: &'static str,
}

/// Advice for weights of PyTorch whose names say nothing of the model's layout.
const PYTORCH: &str =
    "name the file itself: `bam-convert convert FILE DIR` makes safetensors of one";

/// The more specific kind first: a DeepSpeed folder holds PyTorch files too.
const KINDS: [Kind; 16] = [
    Kind {
        names: &["adapter_config.json", "adapter_model.*"],
        what: "a LoRA adapter",
        hint: "name it after the model that it was trained on: BASE+ADAPTER",
    },
    Kind {
        names: &["header.json"],
        what: "the tokens of texts",
        hint: "token folders are for `--data NAME=DIR`",
    },
    Kind {
        names: &["metrics.jsonl"],
        what: "a training run",
        hint: "name the run's output, or one of the folders in its `checkpoints`",
    },
    Kind {
        names: &["*.distcp", ".metadata", "pytorch_model_fsdp_*"],
        what: "a PyTorch distributed checkpoint (DCP)",
        hint: "run `python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR model.pt`, \
               load model.pt in transformers, then save it with save_pretrained",
    },
    Kind {
        names: &["zero_to_fp32.py", "global_step*", "mp_rank_*"],
        what: "a DeepSpeed checkpoint",
        hint: "run `python zero_to_fp32.py . OUT --safe_serialization` in that folder, and copy config.json and the tokenizer beside its output",
    },
    Kind {
        names: &["latest_checkpointed_iteration.txt", "iter_*"],
        what: "a Megatron checkpoint",
        hint: "export it to the Hugging Face layout first, with Megatron-Bridge",
    },
    Kind {
        names: &["model_index.json"],
        what: "a diffusion pipeline",
        hint: "name the folder of a decoder language model",
    },
    Kind {
        names: &[
            "tf_model*.h5",
            "tf_model.h5.index.json",
            "saved_model.pb",
            "*.ckpt.index",
        ],
        what: "TensorFlow weights",
        hint: "save them as safetensors first; in Python, with transformers 4: \
               AutoModelForCausalLM.from_pretrained(DIR, from_tf=True).save_pretrained(OUT)",
    },
    Kind {
        names: &["flax_model*.msgpack", "flax_model.msgpack.index.json"],
        what: "Flax weights",
        hint: "save them as safetensors first; in Python, with transformers 4: \
               AutoModelForCausalLM.from_pretrained(DIR, from_flax=True).save_pretrained(OUT)",
    },
    Kind {
        names: &["*.keras", "*.h5"],
        what: "a Keras model",
        hint: "export it to the Hugging Face layout first; in Python, with keras_hub: model.export_to_transformers(DIR)",
    },
    Kind {
        names: &["*.onnx", "*.onnx_data", "onnx"],
        what: "an ONNX model, which is a graph for inference",
        hint: "take the checkpoint that it was exported from",
    },
    Kind {
        names: &[
            "openvino_model.*",
            "*.engine",
            "*.mlmodelc",
            "*.mlpackage",
            "*.tflite",
            "*.nemo",
            "*.llamafile",
        ],
        what: "a model that was exported for another program",
        hint: "take the checkpoint that it was exported from, in the Hugging Face layout",
    },
    Kind {
        names: &["weights*.npz"],
        what: "MLX weights in numpy archives",
        hint: "save them in the Hugging Face layout first, with a current mlx_lm: `mlx_lm.convert --hf-path DIR --mlx-path OUT`",
    },
    Kind {
        names: &["*.npz", "*.npy"],
        what: "numpy arrays",
        hint: "name the archive itself: `bam-convert convert FILE.npz DIR` makes safetensors of one",
    },
    Kind {
        names: &[
            "consolidated*.pth",
            "model*.bin",
            "model*.pt",
            "model*.pth",
            "*.ckpt",
        ],
        what: "PyTorch weights under another name than pytorch_model.bin",
        hint: PYTORCH,
    },
    Kind {
        names: &["*.pt", "*.pth"],
        what: "PyTorch files under other names than pytorch_model.bin",
        hint: PYTORCH,
    },
];

/// Files of a tokenizer.
const TOKENIZER: [&str; 4] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// How many names of a folder's files an error lists.
const LISTED: usize = 5;

/// Advice for a file that is not what its name says.
const AGAIN: &str = "copy or download it again";

/// What is at `path`. Where nothing is, and the path looks like the name of a repository, the error says how one is named.
///
/// # Errors
/// Where nothing is there, or it cannot be looked at.
pub fn stat(path: &Path) -> Result<Metadata> {
    std::fs::metadata(path).map_err(|source| {
        let missing = source.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io("open", path, source);
        match path.to_str().map(Reference::parse) {
            Some(Ok(reference)) if missing && reference.repository.contains('/') => {
                error.with_hint(format!("write {reference} for the repository on the Hub"))
            }
            _ => error,
        }
    })
}

/// Refuses a file where a checkpoint folder is meant, and says what the file is.
///
/// # Errors
/// As [`stat`], and for everything that is no folder.
pub fn expect_folder(path: &Path) -> Result<()> {
    if stat(path)?.is_dir() {
        return Ok(());
    }
    let head = head_of(path);
    if let Some(format) = format::recognised(&head) {
        return Err(ForeignError::WeightFile {
            path: path.to_path_buf(),
            kind: format::a(format.name()),
            expected: "a checkpoint folder with config.json",
        }
        .into());
    }
    let folder = path
        .parent()
        .filter(|folder| folder.join("config.json").is_file());
    Err(content(path, &head).unwrap_or_else(|| {
        ForeignError::File {
            path: path.to_path_buf(),
            folder: folder.map(Path::to_path_buf),
        }
        .into()
    }))
}

/// The first bytes of a regular file, as far as it can be read.
fn head_of(path: &Path) -> Vec<u8> {
    SourceFile::open(path)
        .and_then(|file| format::head(&file))
        .unwrap_or_default()
}

/// What a folder is, where it has no weights that we read, or no `config.json`: an error that says so. `None` for a folder with weights.
pub(crate) fn folder(path: &Path) -> Option<Error> {
    let names = names_in(path)?;
    let held: Vec<&str> = names.iter().map(String::as_str).collect();
    let weights = wanted_weights(&held);
    if weights
        .iter()
        .any(|name| !name.starts_with("adapter_model"))
    {
        return several_gguf(path, &weights);
    }
    if let Some(error) = hub_cache(path, &held) {
        return Some(error);
    }
    for kind in &KINDS {
        let found = kind
            .names
            .iter()
            .find_map(|pattern| held.iter().find(|name| fits(pattern, name)));
        if let Some(name) = found {
            let error = ForeignError::Folder {
                path: path.to_path_buf(),
                kind: kind.what,
                name: (*name).to_owned(),
                advice: kind.hint,
            };
            return Some(error.into());
        }
    }
    // A tokenizer beside a config.json is a model whose weights are missing.
    let tokenizer = TOKENIZER.into_iter().find(|name| held.contains(name));
    if let Some(name) = tokenizer.filter(|_| !held.contains(&"config.json")) {
        let path = path.to_path_buf();
        return Some(ForeignError::TokenizerAlone { path, name }.into());
    }
    Some(nothing_known(path, &held))
}

/// A folder in which no file says what it is.
fn nothing_known(path: &Path, held: &[&str]) -> Error {
    if held.is_empty() {
        let path = path.to_path_buf();
        return ForeignError::Empty { path }.into();
    }
    let inner = held
        .iter()
        .map(|name| path.join(name))
        .rfind(|inner| is_checkpoint(inner));
    let mut listed = held[..held.len().min(LISTED)].join(", ");
    if held.len() > LISTED {
        listed += &format!(" and {} more", held.len() - LISTED);
    }
    ForeignError::NoWeights {
        path: path.to_path_buf(),
        listed,
        inner,
        has_config: held.contains(&"config.json"),
    }
    .into()
}

/// Whether a folder holds a configuration and weights.
fn is_checkpoint(path: &Path) -> bool {
    path.join("config.json").is_file()
        && names_in(path).is_some_and(|names| {
            !wanted_weights(&names.iter().map(String::as_str).collect::<Vec<_>>()).is_empty()
        })
}

/// Several GGUF files, which are parts of one model or models to choose from.
fn several_gguf(path: &Path, weights: &[&str]) -> Option<Error> {
    let first = weights.first()?;
    if !weights.iter().all(|name| name.ends_with(".gguf")) {
        return None;
    }
    if let Some((_, count)) = first
        .strip_suffix(".gguf")
        .and_then(|stem| stem.rsplit_once("-of-"))
    {
        let error = ForeignError::GgufParts {
            path: path.to_path_buf(),
            count: count.trim_start_matches('0').to_owned(),
            first: (*first).to_owned(),
        };
        return Some(error.into());
    }
    let path = path.to_path_buf();
    let error = if weights.len() > 1 {
        let names = weights.iter().map(|name| (*name).to_owned()).collect();
        ForeignError::SeveralGguf { path, names }
    } else {
        let name = (*first).to_owned();
        ForeignError::OneGguf { path, name }
    };
    Some(error.into())
}

/// A folder of the Hub's cache, above the folder of a commit.
fn hub_cache(path: &Path, held: &[&str]) -> Option<Error> {
    let repository = |name: &str| {
        name.strip_prefix("models--")
            .map(|rest| rest.replacen("--", "/", 1))
    };
    if held.contains(&"snapshots") && (held.contains(&"refs") || held.contains(&"blobs")) {
        let own = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(repository);
        let snapshots = path.join("snapshots");
        let commit = names_in(&snapshots).unwrap_or_default().pop();
        let error = ForeignError::CachedRepository {
            path: path.to_path_buf(),
            commit: commit.map(|commit| snapshots.join(commit)),
            repository: own,
        };
        return Some(error.into());
    }
    let repository = held.iter().find_map(|name| repository(name))?;
    let path = path.to_path_buf();
    Some(ForeignError::Cache { path, repository }.into())
}

/// The names in a folder, sorted; none where it cannot be listed.
fn names_in(path: &Path) -> Option<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Some(names)
}

/// Whether `name` is `pattern`, in which one `*` matches any text.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
    }
}

/// What a file is that begins with `head`, where it is neither JSON nor weights that we read. `head` is the whole file if that is short.
pub(crate) fn content(path: &Path, head: &[u8]) -> Option<Error> {
    let is = |kind: &'static str, advice: &'static str| {
        let path = path.to_path_buf();
        Some(Error::from(ForeignError::Content { path, kind, advice }))
    };
    let text = head.trim_ascii_start();
    let begins = |start: &[u8]| {
        text.get(..start.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(start))
    };
    let pickle = "save the model as safetensors first; in Python: \
                  AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)";
    if head.is_empty() {
        is("empty (0 bytes)", AGAIN)
    } else if begins(b"version https://git-lfs") {
        is(
            "a Git LFS pointer in place of a file that has not been downloaded",
            "run `git lfs pull` in its repository, or get the model with `bam-convert pull`",
        )
    } else if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") || begins(b"<head") {
        is(
            "a web page (HTML), not the file itself",
            "download it from an address with /resolve/ in place of /blob/, or with `bam-convert pull`",
        )
    } else if head.starts_with(b"PK\x03\x04") {
        is(
            "a zip archive of other things than tensors, expected weights",
            pickle,
        )
    } else if matches!(head, [0x80, 2..=5, ..]) {
        is(
            "a pickle that torch.save has not written; expected weights",
            pickle,
        )
    } else if head.starts_with(b"\x89HDF\r\n") {
        is(
            "an HDF5 file, as Keras and TensorFlow write; expected safetensors or GGUF",
            "save the model as safetensors first",
        )
    } else if head.starts_with(b"\x1f\x8b") || head.starts_with(b"\x28\xb5\x2f\xfd") {
        is("compressed, expected the file itself", "unpack it first")
    } else if head.len() >= 64 && head.iter().all(|byte| *byte == 0) {
        is(
            "zeros at its beginning, as a download that was interrupted leaves",
            AGAIN,
        )
    } else {
        None
    }
}

/// As [`content`], for what should be JSON: weights are named too.
pub(crate) fn not_json(path: &Path, bytes: &[u8]) -> Option<Error> {
    if let Some(format) = format::recognised(&bytes[..bytes.len().min(format::HEAD)]) {
        let error = ForeignError::WeightFile {
            path: path.to_path_buf(),
            kind: format::a(format.name()),
            expected: "JSON",
        };
        return Some(error.into());
    }
    if bytes.get(8) == Some(&b'{') && bytes.get(4..8) == Some(&[0; 4]) {
        let path = path.to_path_buf();
        return Some(ForeignError::SafetensorsAsJson { path }.into());
    }
    content(path, &bytes[..bytes.len().min(format::HEAD)])
}

/// As [`content`], for what should be weights: text is quoted.
pub(super) fn not_weights(path: &Path, head: &[u8]) -> Option<Error> {
    content(path, head).or_else(|| {
        let text = std::str::from_utf8(&head[..head.len().min(60)]).ok()?;
        let plain = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
        if text.len() < 8 || !text.chars().all(plain) {
            return None;
        }
        let begin = text.trim().lines().next().unwrap_or_default().to_owned();
        let path = path.to_path_buf();
        Some(ForeignError::Text { path, begin }.into())
    })
}

/// The path of a folder's `config.json`, or the file itself.
///
/// # Errors
/// As [`stat`]; where a folder has no `config.json`, the error says what it holds instead.
pub(crate) fn config_of(path: &Path) -> Result<PathBuf> {
    if !stat(path)?.is_dir() {
        return Ok(path.to_path_buf());
    }
    let config = path.join("config.json");
    if config.exists() {
        return Ok(config);
    }
    Err(folder(path).unwrap_or_else(|| ForeignError::NoConfig { path: config }.into()))
}
