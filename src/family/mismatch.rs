//! Why the tensors of a checkpoint are not those that its configuration describes: the one reason behind many missing names.

use super::architecture::Architecture;
use super::quantised::Quantised;
use super::role::Role;
use super::tensors::TensorSpec;
use crate::Error;
use crate::checkpoint::{Checkpoint, TensorEntry};

/// Beginnings of names that a wrapper adds, and how to save the model without it.
const WRAPPERS: [(&str, &str); 6] = [
    (
        "module.",
        "DataParallel wraps the model so: save `model.module` instead",
    ),
    (
        "_orig_mod.",
        "torch.compile wraps the model so: save `model._orig_mod` instead",
    ),
    (
        "_fsdp_wrapped_module.",
        "FSDP wraps the model so: gather its full state dict before saving",
    ),
    (
        "base_model.model.",
        "PEFT wraps the model so: save what `merge_and_unload()` returns instead",
    ),
    (
        "language_model.",
        "this is the language part of a multimodal model: save it alone, with a config.json of its own",
    ),
    (
        "model.language_model.",
        "this is the language part of a multimodal model: save it alone, with a config.json of its own",
    ),
];

/// How the names of heads begin that are no language model's, and whose they are.
const HEADS: [(&str, &str); 8] = [
    ("score.", "a sequence classifier or reward model"),
    ("classifier.", "a classifier"),
    ("qa_outputs.", "a model for question answering"),
    ("v_head.", "a model with a value head"),
    ("value_head.", "a model with a value head"),
    ("reward_head.", "a reward model"),
    ("regression_head.", "a reward model"),
    ("rm_head.", "a reward model"),
];

/// Parts of other modalities, anywhere in a tensor's name.
const OTHER_INPUTS: [&str; 6] = [
    "vision_tower.",
    "vision_model.",
    "visual.",
    "multi_modal_projector.",
    "audio_tower.",
    "mm_projector.",
];

impl Architecture {
    /// What the checkpoint is instead, where its names show it: quantised, part of a model with other inputs, with the head of a
    /// classifier, saved inside another module, or without its head. One reason for many tensors that do not match.
    pub(crate) fn other_model(
        &self,
        specs: &[TensorSpec],
        checkpoint: &Checkpoint,
    ) -> Option<Error> {
        Quantised::of(checkpoint)
            .map(|quantised| quantised.refusal(checkpoint))
            .or_else(|| other_input(specs, checkpoint))
            .or_else(|| other_head(specs, checkpoint))
            .or_else(|| other_prefix(specs, checkpoint))
            .or_else(|| self.no_head(specs, checkpoint))
    }

    /// A model that lacks nothing but its output embedding.
    fn no_head(&self, specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<Error> {
        let head = specs.iter().find(|spec| spec.role == Role::Head)?;
        let held = |spec: &&TensorSpec| checkpoint.tensors.contains_key(&spec.name);
        if held(&head) || specs.iter().filter(held).count() + 1 < specs.len() {
            return None;
        }
        let problem =
            "is missing: the model was saved without a language head, as embedding models are";
        Some(Error::tensor(&checkpoint.path, &head.name, problem).with_hint(
            "take the causal language model; if its head is the input embedding, set tie_word_embeddings to true in config.json",
        ))
    }
}

fn file<'a>(checkpoint: &'a Checkpoint, entry: &TensorEntry) -> &'a std::path::Path {
    checkpoint.files[entry.file].path()
}

/// A tensor that the architecture does not have, and whose name is as wanted.
fn unexpected<'a>(
    specs: &[TensorSpec],
    checkpoint: &'a Checkpoint,
    wanted: impl Fn(&str) -> bool,
) -> Option<(&'a String, &'a TensorEntry)> {
    checkpoint
        .tensors
        .iter()
        .filter(|(name, _)| wanted(name))
        .find(|(name, _)| !specs.iter().any(|spec| spec.name == **name))
}

/// A vision or audio tower.
fn other_input(specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<Error> {
    let is_other = |name: &str| {
        OTHER_INPUTS.iter().any(|part| {
            name.find(part)
                .is_some_and(|at| at == 0 || name.as_bytes()[at - 1] == b'.')
        })
    };
    let (name, entry) = unexpected(specs, checkpoint, is_other)?;
    let problem = "belongs to a multimodal model, expected a language model alone";
    Some(Error::tensor(file(checkpoint, entry), name, problem).with_hint(
        "save its language model alone, with a config.json of its own: in transformers, `model.language_model`",
    ))
}

/// The head of a classifier, reward model or other task.
fn other_head(specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<Error> {
    HEADS.iter().find_map(|(start, kind)| {
        let (name, entry) = unexpected(specs, checkpoint, |name| name.starts_with(start))?;
        let problem = format!("is the head of {kind}, expected the weights of a language model");
        Some(Error::tensor(file(checkpoint, entry), name, problem).with_hint(
            "use the language model that it was made from; its architectures name a class `…ForCausalLM`",
        ))
    })
}

/// Names that begin otherwise than the family's.
fn other_prefix(specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<Error> {
    let anchor = specs.iter().find(|spec| spec.role == Role::Embedding)?;
    if checkpoint.tensors.contains_key(&anchor.name) {
        return None;
    }
    let (found, ours, theirs) = checkpoint
        .tensors
        .keys()
        .filter_map(|found| {
            let end = common_end(&anchor.name, found)?;
            let ours = &anchor.name[..anchor.name.len() - end.len()];
            let theirs = &found[..found.len() - end.len()];
            let renamed = |spec: &&TensorSpec| {
                spec.name
                    .strip_prefix(ours)
                    .is_some_and(|rest| checkpoint.tensors.contains_key(&format!("{theirs}{rest}")))
            };
            let explained = specs.iter().filter(renamed).count();
            (2 * explained > specs.len()).then_some((explained, (found, ours, theirs)))
        })
        .max_by_key(|(explained, _)| *explained)?
        .1;
    let entry = &checkpoint.tensors[found];
    let expected = &anchor.name;
    let (problem, hint) = if theirs.is_empty() {
        (
            format!("expected the name `{expected}`, found it without `{ours}`"),
            "it was saved from a class without a head (`…Model`): load it as `…ForCausalLM` and save that, \
             unless transformers reports a new lm_head"
                .to_owned(),
        )
    } else {
        let known = WRAPPERS.iter().find(|(prefix, _)| *prefix == theirs);
        let advice = known.map_or_else(
            || format!("its names have `{theirs}` in the place of `{ours}`: save the language model alone, or describe its names in a file for --format"),
            |(_, advice)| (*advice).to_owned(),
        );
        let problem = if ours.is_empty() {
            format!("expected the name `{expected}`, found `{theirs}` before it")
        } else {
            format!("expected the name `{expected}`, found `{theirs}` in the place of `{ours}`")
        };
        (problem, advice)
    };
    Some(Error::tensor(file(checkpoint, entry), found, problem).with_hint(hint))
}

/// The longest end of whole parts that two names share, of two parts at least.
fn common_end<'a>(a: &'a str, b: &str) -> Option<&'a str> {
    let shared = a
        .rsplit('.')
        .zip(b.rsplit('.'))
        .take_while(|(x, y)| x == y)
        .map(|(part, _)| part.len() + 1)
        .collect::<Vec<_>>();
    let length = shared.iter().sum::<usize>().saturating_sub(1);
    (shared.len() >= 2).then(|| &a[a.len() - length..])
}
