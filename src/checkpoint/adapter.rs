//! LoRA adapters of PEFT: which tensor of a checkpoint each of their tensors changes, and how.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) use super::adapter_config::ADAPTER_CONFIG;
use super::adapter_config::AdapterConfig;
use super::adapter_error::AdapterError;
use super::expression::AdapterStep;
use super::folder::Checkpoint;
use crate::error::nearest;
use crate::{Result, notice};

/// The weights of an adapter; the first that is there.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Names of the modules of input embeddings and of heads. A base has both, except where one matrix is both.
const ENDS: [&[&str]; 2] = [
    &[
        "embed_tokens",
        "embed_in",
        "tok_embeddings",
        "wte",
        "word_embeddings",
    ],
    &["lm_head", "embed_out", "output"],
];

/// What the names of an adapter's tensors begin with.
const PREFIX: &str = "base_model.model.";

/// Whether a folder holds an adapter and no model.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join(ADAPTER_CONFIG).is_file() && !folder.join("config.json").is_file()
}

/// The weight file of the adapter in `folder`.
pub(super) fn weights_of(folder: &Path) -> Result<PathBuf> {
    let mut paths = WEIGHTS.iter().map(|name| folder.join(name));
    let found = paths.find(|path| path.is_file());
    Ok(found.ok_or_else(|| AdapterError::NoWeights {
        path: folder.to_path_buf(),
        expected: WEIGHTS[0],
    })?)
}

/// The tensors of one module of an adapter.
#[derive(Default)]
struct Module<'a> {
    a: Option<&'a str>,
    b: Option<&'a str>,
    /// What is added to the bias.
    bias: Option<&'a str>,
    magnitude: Option<&'a str>,
    is_embedding: bool,
}

/// What a tensor of an adapter is, by the end of its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    A,
    B,
    Bias,
    Magnitude,
    EmbeddingA,
    EmbeddingB,
}

/// Ends of names; after the first word may come the name of the adapter, where nobody has removed it.
const PARTS: [(&str, &str, Part); 7] = [
    ("lora_A", "weight", Part::A),
    ("lora_B", "weight", Part::B),
    ("lora_B", "bias", Part::Bias),
    ("lora_magnitude_vector", "weight", Part::Magnitude),
    ("lora_magnitude_vector", "", Part::Magnitude),
    ("lora_embedding_A", "", Part::EmbeddingA),
    ("lora_embedding_B", "", Part::EmbeddingB),
];

/// An adapter, and the base that it is fitted to.
struct Fitting<'a> {
    base: &'a Checkpoint,
    adapter: &'a Checkpoint,
    config: AdapterConfig,
    /// Its name among the sources, after the base's.
    label: &'a str,
    steps: BTreeMap<String, Vec<AdapterStep>>,
    /// Tensors of the adapter without a place in the base, and the tensor that each would need.
    homeless: Vec<(String, String)>,
}

/// What the adapter `adapter`, called `label`, does to each stored tensor of `base`.
///
/// # Errors
/// Configurations that say what is not computed, and tensors that the base has no place for.
pub(super) fn steps(
    base: &Checkpoint,
    adapter: &Checkpoint,
    label: &str,
) -> Result<BTreeMap<String, Vec<AdapterStep>>> {
    let mut fitting = Fitting {
        base,
        adapter,
        config: AdapterConfig::read(&adapter.path)?,
        label,
        steps: BTreeMap::new(),
        homeless: Vec::new(),
    };
    let mut modules: BTreeMap<&str, Module> = BTreeMap::new();
    for name in adapter.tensors.keys() {
        let rest = name.strip_prefix(PREFIX).unwrap_or(name);
        match part_of(rest) {
            Some((module, part)) => {
                let twice = modules.entry(module).or_default().set(part, name);
                if twice {
                    let (path, tensor) = (fitting.file(name)?, name.clone());
                    return Err(AdapterError::Twice { path, tensor }.into());
                }
            }
            None if rest.contains("lora_") => {
                let (path, tensor) = (fitting.file(name)?, name.clone());
                return Err(AdapterError::UnknownTensor { path, tensor }.into());
            }
            // Before the factors of the same module, which were trained on it.
            None => fitting.replace(name, rest)?,
        }
    }
    for (module, found) in &modules {
        fitting.add(module, found)?;
    }
    fitting.refuse_homeless()?;
    fitting.note_untouched(&modules)?;
    Ok(fitting.steps)
}

/// The module and the part of a name without the prefix.
fn part_of(name: &str) -> Option<(&str, Part)> {
    PARTS.iter().find_map(|(word, end, part)| {
        let (module, after) = name.split_once(&format!(".{word}"))?;
        let after = match after.strip_prefix('.') {
            Some(after) => after,
            None if after.is_empty() => "",
            None => return None,
        };
        // `default.weight`: the name of the adapter.
        let last = after.rsplit_once('.').map_or(after, |(_, last)| last);
        let fits = if end.is_empty() {
            !after.contains('.')
        } else {
            last == *end
        };
        let module = module.strip_suffix(".base_layer").unwrap_or(module);
        fits.then_some((module, *part))
    })
}

impl<'a> Module<'a> {
    /// Adds a tensor; whether there was one already.
    fn set(&mut self, part: Part, name: &'a str) -> bool {
        self.is_embedding |= matches!(part, Part::EmbeddingA | Part::EmbeddingB);
        let place = match part {
            Part::A | Part::EmbeddingA => &mut self.a,
            Part::B | Part::EmbeddingB => &mut self.b,
            Part::Bias => &mut self.bias,
            Part::Magnitude => &mut self.magnitude,
        };
        place.replace(name).is_some()
    }
}

impl Fitting<'_> {
    /// The file of a tensor of the adapter.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let entry = self.adapter.tensor(name)?;
        Ok(self.adapter.files[entry.file].path().to_path_buf())
    }

    fn source(&self) -> String {
        self.label.to_owned()
    }

    /// The stored tensor of the base for a name of transformers' modules.
    fn place(&mut self, tensor: &str, name: &str) -> Option<String> {
        // Files of models with images have the two words in another order than modules.
        let swapped = [
            ("model.language_model.", "language_model.model."),
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("lm_head.", "language_model.lm_head."),
        ];
        let others = swapped
            .iter()
            .filter_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
        let mut names = std::iter::once(name.to_owned()).chain(others);
        let found = names.find(|name| self.base.tensors.contains_key(name));
        if found.is_none() {
            self.homeless.push((tensor.to_owned(), name.to_owned()));
        }
        found
    }

    /// A tensor that the adapter stores whole.
    fn replace(&mut self, tensor: &str, name: &str) -> Result<()> {
        let mut plain = name.replace(".base_layer.", ".");
        if let Some((module, end)) = name.split_once(".modules_to_save.") {
            let last = end.rsplit_once('.').map_or(end, |(_, last)| last);
            plain = format!("{module}.{last}");
        }
        if let Some(place) = self.place(tensor, &plain) {
            let module = plain.strip_suffix(".weight").unwrap_or(&plain);
            // PEFT copies that module, so the other end keeps the base's matrix.
            if self.config.is_saved(module) && self.is_both_ends(&place) {
                return Err(self.tied(tensor, module)?.into());
            }
            let step = AdapterStep::Replaced {
                source: self.source(),
                tensor: tensor.to_owned(),
            };
            self.steps.entry(place).or_default().push(step);
        }
        Ok(())
    }

    /// Whether a tensor of the base is the matrix of both the input embedding and the head.
    fn is_both_ends(&self, place: &str) -> bool {
        let is_of = |name: &str, end: &[&str]| {
            let module = name.strip_suffix(".weight");
            module.is_some_and(|module| {
                let last = module.rsplit_once('.').map_or(module, |(_, last)| last);
                end.contains(&last)
            })
        };
        let [first, last] = ENDS;
        let other = match (is_of(place, first), is_of(place, last)) {
            (true, _) => last,
            (_, true) => first,
            _ => return false,
        };
        !self.base.tensors.keys().any(|name| is_of(name, other))
    }

    fn tied(&self, tensor: &str, module: &str) -> Result<AdapterError> {
        Ok(AdapterError::Tied {
            path: self.file(tensor)?,
            tensor: tensor.to_owned(),
            module: module.to_owned(),
        })
    }

    /// Refuses factors with a magnitude where the configuration denies one, and the other way round.
    fn check_magnitude(&self, path: &Path, module: &str, found: &Module) -> Result<()> {
        let path = path.to_path_buf();
        match (self.config.uses_dora(), found.magnitude) {
            (true, None) => Err(AdapterError::Incomplete {
                path,
                module: module.to_owned(),
                missing: "lora_magnitude_vector",
            }
            .into()),
            (false, Some(tensor)) => Err(AdapterError::UnsaidMagnitude {
                path,
                tensor: tensor.to_owned(),
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// The factors of a module.
    fn add(&mut self, module: &str, found: &Module) -> Result<()> {
        let any = [found.a, found.b, found.bias, found.magnitude];
        let any = any.into_iter().flatten().next().unwrap_or_default();
        let path = self.file(any)?;
        let missing = |missing| AdapterError::Incomplete {
            path: path.clone(),
            module: module.to_owned(),
            missing,
        };
        let a = found.a.ok_or_else(|| missing("lora_A"))?;
        let b = found.b.ok_or_else(|| missing("lora_B"))?;
        if let Some(key) = self.config.left_out(module)? {
            let module = module.to_owned();
            return Err(AdapterError::NotTargeted { path, module, key }.into());
        }
        if let (true, Some(tensor)) = (found.is_embedding, found.magnitude) {
            let tensor = tensor.to_owned();
            return Err(AdapterError::EmbeddingMagnitude { path, tensor }.into());
        }
        self.check_magnitude(&path, module, found)?;
        let rank = self.adapter.tensor(a)?.shape.first().copied();
        let (rank, expected) = (rank.unwrap_or(0), self.config.rank(module)?);
        if rank != expected {
            return Err(AdapterError::Rank {
                path,
                tensor: a.to_owned(),
                found: rank,
                expected,
            }
            .into());
        }
        let scale = self.config.scale(module, rank)?;
        if let Some(place) = self.place(a, &format!("{module}.weight")) {
            if self.is_both_ends(&place) {
                notice::once(format!(
                    "{}: the factors of `{module}` change the input embedding and the head, which are one matrix, as PEFT's merge does",
                    path.display()
                ));
            }
            let step = AdapterStep::LowRank {
                source: self.source(),
                a: a.to_owned(),
                b: b.to_owned(),
                scale,
                magnitude: found.magnitude.map(str::to_owned),
                embedding: found.is_embedding,
            };
            self.steps.entry(place).or_default().push(step);
        }
        if let Some(bias) = found.bias
            && let Some(place) = self.place(bias, &format!("{module}.bias"))
        {
            let step = AdapterStep::Added {
                source: self.source(),
                tensor: bias.to_owned(),
                scale,
            };
            self.steps.entry(place).or_default().push(step);
        }
        Ok(())
    }

    fn refuse_homeless(&self) -> Result<()> {
        let Some((tensor, wanted)) = self.homeless.first() else {
            return Ok(());
        };
        let near = nearest(wanted, self.base.tensors.keys().map(String::as_str));
        Err(AdapterError::NoModule {
            path: self.file(tensor)?,
            tensor: tensor.clone(),
            wanted: wanted.clone(),
            nearest: near.map(str::to_owned),
            others: self.homeless.len() - 1,
            base: self.base.place(),
        }
        .into())
    }

    /// Says so where the configuration names modules that the adapter has no factors for: they keep the base's values.
    fn note_untouched(&self, modules: &BTreeMap<&str, Module>) -> Result<()> {
        let mut count = 0;
        let mut first = None;
        for (name, entry) in &self.base.tensors {
            let Some(module) = name.strip_suffix(".weight") else {
                continue;
            };
            if entry.shape.len() == 2
                && !modules.contains_key(module)
                && !self.steps.contains_key(name)
                && self.config.names(module)?
            {
                count += 1;
                first.get_or_insert(module);
            }
        }
        if let Some(first) = first {
            notice::once(format!(
                "{}: names {count} module(s) that the adapter has no factors for, such as `{first}`; they keep the base's values",
                self.config.path().display()
            ));
        }
        Ok(())
    }
}
