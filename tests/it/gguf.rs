//! GGUF files against what gguf-py reads from them: `fixtures/gguf/`, written by `fixtures/make.py`.

use std::fs;
use std::path::{Path, PathBuf};

use bam_convert::checkpoint::{Checkpoint, TensorEntry};
use bam_convert::family::gguf;
use serde_json::Value;
use sha2::{Digest, Sha256};

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
        let tensors = gguf::tensors(checkpoint.gguf.as_ref().unwrap()).unwrap();
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
