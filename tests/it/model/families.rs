//! Families that differ from others by their description alone, against transformers (`fixtures/make_families.py`).

use std::path::{Path, PathBuf};

use bam_convert::model::{CausalLm, Forward};
use tempfile::TempDir;

use super::gradients::{check, trainable};
use super::naive::{Naive, Routing};
use super::{Kind, difference, fixture, golden_tokens, in_f64, rows, run, ways};
use crate::common::{Tensor, bam, copy_folder, edit_tensors};

/// The families with a fixture, by name.
pub fn described() -> Vec<String> {
    let folders = std::fs::read_dir(fixture("families")).unwrap();
    let mut names: Vec<String> = folders
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn golden(family: &str) -> Vec<Vec<f64>> {
    let path = fixture(&format!("golden/{family}.safetensors"));
    let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    rows(&tensors["logits"])
}

/// A folder with the family's checkpoint as `seed`, and two more with other weights as `code` and `law`.
pub fn models(family: &str) -> TempDir {
    let work = TempDir::new().unwrap();
    let seed = fixture("families").join(family);
    for (number, name) in ["seed", "code", "law"].into_iter().enumerate() {
        let folder = copy_folder(&seed, &work.path().join(name));
        if number > 0 {
            vary(&folder, number as f64);
        }
    }
    work
}

/// Changes every weight of a checkpoint a little, each in its own way.
pub fn vary(folder: &Path, by: f64) {
    edit_tensors(folder, |tensors| {
        for tensor in tensors.values_mut() {
            let values = tensor.values().into_iter().enumerate();
            let values: Vec<f64> = values
                .map(|(place, value)| value * (1.0 + 0.2 * (by * 1.7 + place as f64).sin()))
                .collect();
            *tensor = Tensor::new(tensor.dtype, &tensor.shape, &values);
        }
    });
}

fn mixture(kind: &Kind, models: &TempDir) -> PathBuf {
    let out = models.path().join(kind.name);
    kind.make_from(models.path(), &out);
    out
}

#[test]
fn logits_of_described_families_are_those_of_transformers() {
    let tokens = golden_tokens();
    for family in described() {
        let golden = golden(&family);
        for (way, options) in ways() {
            let model = CausalLm::load(&fixture("families").join(&family), &options).unwrap();
            let difference = difference(&run(&model, &tokens, &Forward::default()), &golden);
            println!("{family}, {way}: {difference:.1e}");
            assert!(difference < 1e-4, "{family}, {way}: {difference}");
        }
    }
}

/// A text within the original context of longrope has other frequencies than a longer one.
#[test]
fn short_texts_have_the_short_factors_of_longrope() {
    let tokens = golden_tokens();
    let (golden, long) = (golden("phi3_short"), golden("phi3"));
    assert!(difference(&golden, &long[..golden.len()]) > 1e-2);
    for (way, options) in ways() {
        let model = CausalLm::load(&fixture("families/phi3"), &options).unwrap();
        let logits = run(&model, &tokens[..golden.len()], &Forward::default());
        assert!(difference(&logits, &golden) < 1e-4, "{way}");
    }
}

/// What commands write of a dense model is still that model.
#[test]
fn written_checkpoints_of_described_families_compute_the_same() {
    for family in described() {
        let work = TempDir::new().unwrap();
        let source = fixture("families").join(&family);
        let [converted, merged] = ["converted", "merged"].map(|name| work.path().join(name));
        bam!("convert", source, converted, "--dtype", "f32").ok();
        bam!(
            "merge", "--model", source, "--model", source, "--out", merged
        )
        .ok();
        for folder in [converted, merged] {
            let model = CausalLm::load(&folder, &ways()[1].1).unwrap();
            let found = run(&model, &golden_tokens(), &Forward::default());
            let difference = difference(&found, &golden(&family));
            assert!(difference < 1e-4, "{}: {difference}", folder.display());
        }
    }
}

#[test]
fn gradients_of_described_families_are_right() {
    for family in described() {
        let model = CausalLm::load(&fixture("families").join(&family), &trainable()).unwrap();
        check(&model, &family);
    }
}

/// With normalised gates, copies of one model are that model.
#[test]
fn a_mixture_of_copies_computes_the_logits_of_its_seed() {
    let copies = Kind {
        name: "copies, top-2 normalised",
        top_k: bam_convert::family::TopK::Of(2),
        norm: true,
        copies: true,
        ..Kind::BAM
    };
    for family in described() {
        let models = models(&family);
        let folder = mixture(&copies, &models);
        for (way, options) in ways() {
            let model = CausalLm::load(&folder, &options).unwrap();
            let found = run(&model, &golden_tokens(), &Forward::default());
            let difference = difference(&found, &golden(&family));
            assert!(difference < 1e-4, "{family}, {way}: {difference}");
        }
    }
}

#[test]
fn mixtures_of_described_families_are_those_of_the_paper() {
    let kinds: Vec<Kind> = Kind::all().into_iter().take(4).collect();
    // The naive model has no YaRN and no longrope; the copies above are compared with transformers.
    let of_naive = |family: &String| {
        !["arcee", "iquestcoder", "ministral3", "phi3"].contains(&family.as_str())
    };
    for (number, family) in described()
        .iter()
        .filter(|family| of_naive(family))
        .enumerate()
    {
        let kind = &kinds[number % kinds.len()];
        let models = models(family);
        let folder = mixture(kind, &models);
        let model = CausalLm::load(&folder, &in_f64()).unwrap();
        let found = run(&model, &golden_tokens(), &Forward::default());
        let naive = Naive::open(&folder).logits(&golden_tokens(), &Routing::default());
        let difference = difference(&found, &naive);
        println!("{family}, {}: {difference:.1e}", kind.name);
        assert!(difference < 1e-5, "{family}, {}: {difference}", kind.name);
    }
}

#[test]
fn gradients_of_mixtures_of_described_families_are_right() {
    // Soft routing, so that every expert gets tokens. Differences across the kink of Arcee's squared ReLU are no gradients.
    let soft = Kind {
        name: "bam, soft",
        top_k: bam_convert::family::TopK::Soft,
        ..Kind::BAM
    };
    for family in [
        "olmo2",
        "exaone4",
        "cwm",
        "helium",
        "granite",
        "hyperclovax",
        "granitemoehybrid",
        "gemma2",
        "ministral3",
        "smollm3",
        "cohere2",
        "olmo3",
    ] {
        let models = models(family);
        let model = CausalLm::load(&mixture(&soft, &models), &trainable()).unwrap();
        check(&model, family);
    }
}
