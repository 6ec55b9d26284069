//! Names, shapes and dtypes of the tensors against the configuration.

use std::collections::{BTreeMap, BTreeSet};

use super::error::VerifyError;
use super::report::{FindingPlace, Running, ValidationReport};
use super::subject::Subject;
use crate::Result;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::{Dtype, Encoding, FusedTensor, TensorEntry, dtype};
use crate::error::nearest;
use crate::family::{Architecture, Layers, Mixture, Role, TensorSpec};
use crate::table;

/// Adds the rows `tensors`, `dtypes` and `tied head`.
pub(super) fn check(report: &mut ValidationReport, subject: &Subject) -> Result<()> {
    let Some(checkpoint) = &subject.checkpoint else {
        for name in ["tensors", "dtypes", "tied head"] {
            report.skip(name, "the weights could not be opened");
        }
        return Ok(());
    };
    match &subject.architecture {
        _ if checkpoint.described.is_some() => report.skip(
            "tensors",
            "the names are of another format; `convert` checks them",
        ),
        None if !subject.is_folder() => report.skip(
            "tensors",
            "a single file has no config.json to compare with",
        ),
        None => report.skip(
            "tensors",
            "config.json describes no model that is known here",
        ),
        Some(_) if subject.has_other_layout => {
            report.skip("tensors", "their layout is not the family's")
        }
        Some(architecture) => names_and_shapes(report, checkpoint, architecture)?,
    }
    dtypes(report, checkpoint, subject);
    match &subject.architecture {
        Some(architecture) if checkpoint.described.is_none() => {
            tied_head(report, checkpoint, architecture)?
        }
        _ => report.skip(
            "tied head",
            "no configuration says whether the head is tied",
        ),
    }
    Ok(())
}

fn file_of(checkpoint: &Checkpoint, entry: &TensorEntry) -> Option<String> {
    let name = checkpoint.files.get(entry.file)?.path().file_name()?;
    Some(name.to_string_lossy().into_owned())
}

/// The place of a tensor with the file that holds it.
fn place(checkpoint: &Checkpoint, name: &str) -> FindingPlace {
    let file = checkpoint
        .tensors
        .get(name)
        .and_then(|entry| file_of(checkpoint, entry));
    FindingPlace {
        file,
        ..FindingPlace::tensor(name)
    }
}

/// Layers times experts that a configuration asks for. Its tensors are listed only if the files could hold them, so
/// that a small hostile config.json cannot make us list millions of names.
fn least_tensors(architecture: &Architecture) -> u64 {
    let layers = architecture.num_layers;
    let of = |list: &Layers, experts: u64| match list {
        Layers::All => layers.saturating_mul(experts),
        Layers::List(list) => (list.len() as u64).saturating_mul(experts),
    };
    let experts = architecture
        .mixture
        .as_ref()
        .map_or(0, |mixture| of(&mixture.moe_layers, mixture.num_experts));
    layers.saturating_add(experts)
}

fn names_and_shapes(
    report: &mut ValidationReport,
    checkpoint: &Checkpoint,
    architecture: &Architecture,
) -> Result<()> {
    let mut check = report.check("tensors");
    let held = checkpoint.tensors.len() as u64;
    let specs = match specs_of(checkpoint, architecture) {
        Ok(Some(specs)) => specs,
        Ok(None) => {
            let least = least_tensors(architecture);
            let problem =
                format!("describes a model of at least {least} tensors, but the files hold {held}");
            check.fault(FindingPlace::file("config.json"), problem);
            check.done("the numbers of tensors");
            return Ok(());
        }
        Err(error) => {
            check.fault_of(error)?;
            check.done("config.json");
            return Ok(());
        }
    };
    if let Some(error) = architecture.other_model(&specs, checkpoint) {
        check.fault_of(error)?;
        check.done(format!("{held} held"));
        return Ok(());
    }
    let fused = architecture.fused_projections(&specs)?;
    compare_names(&mut check, checkpoint, architecture, &specs, &fused);
    let values: u64 = checkpoint
        .tensors
        .values()
        .map(TensorEntry::elements)
        .fold(0, u64::saturating_add);
    check.done(format!(
        "{} expected, {held} held, {values} parameters, shapes",
        specs.len()
    ));
    Ok(())
}

/// Every tensor of the architecture must be there in its shape, and no other.
fn compare_names(
    check: &mut Running,
    checkpoint: &Checkpoint,
    architecture: &Architecture,
    specs: &[TensorSpec],
    fused: &[FusedTensor],
) {
    let expected: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let tied_head = architecture
        .tie_word_embeddings
        .then(|| head_name(architecture))
        .flatten();
    let is_unexpected = |name: &&str| {
        !expected.contains(name)
            && !architecture.ignores(name)
            && tied_head.as_deref() != Some(*name)
    };
    let held = checkpoint.tensors.keys().map(String::as_str);
    let unexpected: Vec<&str> = held.filter(is_unexpected).collect();

    let wholes = fused.iter().flat_map(|whole| {
        let parts = whole.parts.iter();
        parts.map(move |(part, _)| (part.as_str(), whole))
    });
    let wholes: BTreeMap<&str, &FusedTensor> = wholes.collect();
    let mut missing = BTreeSet::new();
    for spec in specs {
        match checkpoint.tensors.get(&spec.name) {
            None => {
                let whole = wholes.get(spec.name.as_str());
                let (name, shape) = whole.map_or((&spec.name, &spec.shape), |whole| {
                    (&whole.name, &whole.shape)
                });
                if !missing.insert(name) {
                    continue;
                }
                let near = nearest(name, unexpected.iter().copied());
                let near = near.map_or(String::new(), |near| {
                    format!("; the nearest unexpected name is `{near}`")
                });
                check.fault(
                    FindingPlace::tensor(name),
                    format!("is missing: expected {shape:?}{near}"),
                );
            }
            Some(entry) if entry.shape != spec.shape => {
                let problem = format!(
                    "has shape {:?}, but config.json makes it {:?}",
                    entry.shape, spec.shape
                );
                check.fault(place(checkpoint, &spec.name), problem);
            }
            Some(_) => {}
        }
    }
    for name in &unexpected {
        let problem = format!(
            "is no tensor of the {} model that config.json describes",
            architecture.family
        );
        check.fault(place(checkpoint, name), problem);
    }
}

/// How many tensors have which encoding, and what the configuration says of it.
fn dtypes(report: &mut ValidationReport, checkpoint: &Checkpoint, subject: &Subject) {
    let mut check = report.check("dtypes");
    let mut mix: BTreeMap<String, (u64, u64, Option<Dtype>)> = BTreeMap::new();
    for entry in checkpoint.tensors.values() {
        let (count, length, _) =
            mix.entry(entry.encoding.to_string())
                .or_insert((0, 0, entry.encoding.plain()));
        *count += 1;
        *length += entry.length;
    }
    let mut mix: Vec<_> = mix.into_iter().collect();
    mix.sort_by_key(|(_, (_, length, _))| std::cmp::Reverse(*length));
    let said = subject
        .architecture
        .as_ref()
        .and_then(|architecture| architecture.dtype);
    if let (Some(said), Some((_, (_, _, Some(stored))))) = (said, mix.first())
        && said != *stored
        && dtype::is_float(*stored)
        && stored.bitsize() >= 16
    {
        let problem = format!(
            "is {}, but most weights are stored as {stored}",
            dtype::name(said)
        );
        check.warn(FindingPlace::key("config.json", "dtype"), problem);
    }
    let rows = mix.iter().map(|(name, (count, length, _))| {
        format!(
            "{name}: {}, {}",
            table::counted(*count, "tensor"),
            table::bytes(*length)
        )
    });
    check.done(rows.collect::<Vec<_>>().join("; "));
}

fn head_name(architecture: &Architecture) -> Option<String> {
    architecture
        .names()
        .ok()
        .map(|names| names.head().to_owned())
}

/// A stored output embedding of a tied model must be the input embedding.
fn tied_head(
    report: &mut ValidationReport,
    checkpoint: &Checkpoint,
    architecture: &Architecture,
) -> Result<()> {
    if !architecture.tie_word_embeddings {
        report.skip("tied head", "config.json says the head has its own weights");
        return Ok(());
    }
    let mut check = report.check("tied head");
    let names = architecture.names()?;
    let (head, embedding) = (names.head(), names.embedding());
    match (
        checkpoint.tensors.get(head),
        checkpoint.tensors.get(embedding),
    ) {
        (Some(stored), Some(input)) => {
            if checkpoint.same_values(stored, input)? {
                check.warn(
                    place(checkpoint, head),
                    format!("is a second copy of {embedding}: readers ignore it"),
                );
            } else {
                check.fault_of(VerifyError::UntiedHead {
                    path: checkpoint.files[stored.file].path().to_path_buf(),
                    tensor: head.to_owned(),
                    embedding: embedding.to_owned(),
                })?;
            }
            check.done(format!("{head} against {embedding}"));
        }
        _ => check.done(format!("{embedding} is the head, no other is stored")),
    }
    Ok(())
}

/// The tensors of an architecture, unless its configuration asks for far more than the files hold.
pub(super) fn specs_of(
    checkpoint: &Checkpoint,
    architecture: &Architecture,
) -> Result<Option<Vec<TensorSpec>>> {
    let most = 16 * checkpoint.tensors.len() as u64 + 4096;
    if least_tensors(architecture) > most {
        Ok(None)
    } else {
        architecture.tensors().map(Some)
    }
}

/// The routers that a checkpoint holds with the shape that its configuration asks for.
pub(super) fn routers(
    checkpoint: &Checkpoint,
    architecture: &Architecture,
) -> Result<Vec<TensorSpec>> {
    if architecture.mixture.is_none() {
        return Ok(Vec::new());
    }
    let mut specs = specs_of(checkpoint, architecture)?.unwrap_or_default();
    specs.retain(|spec| {
        spec.role.is_router()
            && !spec.bias
            && checkpoint.tensors.get(&spec.name).is_some_and(|entry| {
                entry.shape == spec.shape && matches!(entry.encoding, Encoding::Plain(_))
            })
    });
    Ok(specs)
}

/// The matrices of zeros that a shared expert has where its family insists on one and the mixture has none: its down
/// projection, and its gate where it has one. One of the two alone is no shared expert of zeros.
pub(super) fn neutral_shared_experts(
    checkpoint: &Checkpoint,
    architecture: &Architecture,
    zero: &BTreeSet<&str>,
) -> Result<Vec<TensorSpec>> {
    let mut specs = specs_of(checkpoint, architecture)?.unwrap_or_default();
    specs.retain(|spec| {
        matches!(spec.role, Role::SharedDown | Role::SharedExpertGate)
            && !spec.bias
            && zero.contains(spec.name.as_str())
    });
    let mut parts: BTreeMap<Option<u64>, usize> = BTreeMap::new();
    for spec in &specs {
        *parts.entry(spec.layer).or_default() += 1;
    }
    let is_gated = |mixture: &Mixture| mixture.shared_expert_gate;
    let all = 1 + usize::from(architecture.mixture.as_ref().is_some_and(is_gated));
    specs.retain(|spec| parts.get(&spec.layer) == Some(&all));
    Ok(specs)
}
