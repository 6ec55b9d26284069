//! `mergekit-yaml` files with `merge_method: linear`: a weighted average.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::Spanned;

use super::Translation;
use super::error::MergekitError;
use super::model::{Fetch, float, folder};
use super::names::{LINEAR, OTHER_METHODS};
use crate::checkpoint::dtype;
use crate::checkpoint::yaml::{self, place};
use crate::error::{InputError, Location};
use crate::{Error, Result};

/// A configuration of `mergekit-yaml`.
#[derive(Debug)]
pub struct LinearFile {
    path: PathBuf,
    keys: Keys,
}

/// The keys at the top of a file, the one that every file has first.
pub(super) const KEYS: [&str; 11] = [
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
];

/// The keys of the format; keys of type [`IgnoredAny`] are known and refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    merge_method: Spanned<String>,
    models: Option<Spanned<Vec<Model>>>,
    slices: Option<Spanned<IgnoredAny>>,
    modules: Option<Spanned<IgnoredAny>>,
    base_model: Option<Spanned<String>>,
    parameters: Option<Parameters>,
    dtype: Option<Spanned<String>>,
    out_dtype: Option<Spanned<String>>,
    tokenizer_source: Option<Spanned<String>>,
    tokenizer: Option<Spanned<IgnoredAny>>,
    chat_template: Option<Spanned<IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    model: Spanned<String>,
    parameters: Option<Parameters>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    weight: Option<Spanned<Weight>>,
    normalize: Option<Spanned<bool>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Weight {
    Same(f64),
    Other(IgnoredAny),
}

/// The method of a file, whatever other keys it has.
#[derive(Debug, Deserialize)]
struct AnyMethod {
    merge_method: Spanned<String>,
}

/// Refuses every method but [`LINEAR`].
fn refuse_other_method(path: &Path, method: &Spanned<String>) -> Result<()> {
    let name = method.value.as_str();
    if name == LINEAR {
        return Ok(());
    }
    let (at, found) = (place(path, method.referenced), name.to_owned());
    let error = if OTHER_METHODS.contains(&name) {
        MergekitError::OtherMethod { at, found }
    } else {
        MergekitError::UnknownMethod { at, found }
    };
    Err(error.into())
}

impl LinearFile {
    /// Whether a file with these keys at its top is a configuration of `mergekit-yaml`.
    pub fn has_keys<'a>(mut keys: impl Iterator<Item = &'a str>) -> bool {
        keys.any(|key| key == KEYS[0])
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Other methods, by their names; unknown keys, with the nearest known one and the line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = yaml::read_text(path)?;
        // Other methods have keys of their own, which would be unknown below.
        let method: AnyMethod = yaml::parse(path, &text)?;
        refuse_other_method(path, &method.merge_method)?;
        Ok(Self {
            path: path.to_path_buf(),
            keys: yaml::parse(path, &text)?,
        })
    }

    fn at(&self, location: serde_saphyr::Location) -> Location {
        place(&self.path, location)
    }

    /// The same average in settings of `merge`.
    ///
    /// # Errors
    /// Parts of models, weights that differ by layer or tensor, other tokenizers; each with its line.
    pub fn translate(&self, fetch: Fetch) -> Result<Translation> {
        let keys = &self.keys;
        self.refuse_unsupported()?;
        let Some(models) = &keys.models else {
            return Err(InputError::MissingKey {
                at: self.at(keys.merge_method.referenced),
                key: "models".into(),
                expected: "a list of models".into(),
            }
            .into());
        };
        if models.value.is_empty() {
            return Err(MergekitError::EmptyList {
                at: self.at(models.referenced),
                key: "models",
                item: "model",
            }
            .into());
        }

        let mut to = Translation::new();
        self.models(models, &mut to, fetch)?;
        if let Some(normalize) = keys
            .parameters
            .as_ref()
            .and_then(|of_all| of_all.normalize.as_ref())
        {
            to.set("normalize", normalize.value);
        }
        let compute = keys
            .dtype
            .as_ref()
            .map(|name| float(&self.path, "dtype", name))
            .transpose()?;
        let out = keys
            .out_dtype
            .as_ref()
            .map(|name| float(&self.path, "out_dtype", name))
            .transpose()?;
        if let Some(dtype) = out.or(compute) {
            to.set("dtype", dtype::name(dtype));
        }
        if compute.is_some_and(|dtype| dtype.bitsize() < 32) {
            to.notes.push(
                "dtype: weights are averaged in float64 as they are stored and rounded once; mergekit rounds them to dtype first"
                    .to_owned(),
            );
        }
        Ok(to)
    }

    /// Refuses keys whose effect our average does not have.
    fn refuse_unsupported(&self) -> Result<()> {
        let keys = &self.keys;
        for (key, value) in [("slices", &keys.slices), ("modules", &keys.modules)] {
            if let Some(value) = value {
                let at = self.at(value.referenced);
                return Err(MergekitError::PartsOfModels { at, key }.into());
            }
        }
        for (key, value) in [
            ("tokenizer", &keys.tokenizer),
            ("chat_template", &keys.chat_template),
        ] {
            if let Some(value) = value {
                let at = self.at(value.referenced);
                return Err(MergekitError::OwnTokenizer { at, key }.into());
            }
        }
        match &keys.tokenizer_source {
            Some(source) if source.value != "base" => Err(MergekitError::TokenizerSource {
                at: self.at(source.referenced),
                found: source.value.clone(),
            }
            .into()),
            _ => Ok(()),
        }
    }

    fn models(
        &self,
        models: &Spanned<Vec<Model>>,
        to: &mut Translation,
        fetch: Fetch,
    ) -> Result<()> {
        let of_all = self
            .keys
            .parameters
            .as_ref()
            .and_then(|of_all| of_all.weight.as_ref());
        let base = self
            .keys
            .base_model
            .as_ref()
            .map(|base| Ok::<_, Error>((base, folder(&self.path, "base_model", base, fetch)?)));
        let base = base.transpose()?;
        let mut base_is_listed = false;
        for model in &models.value {
            let path = folder(&self.path, "model", &model.model, fetch)?;
            if let Some(normalize) = model
                .parameters
                .as_ref()
                .and_then(|of_model| of_model.normalize.as_ref())
            {
                let at = self.at(normalize.referenced);
                return Err(MergekitError::NormalizeOfModel { at }.into());
            }
            let own = model
                .parameters
                .as_ref()
                .and_then(|of_model| of_model.weight.as_ref());
            let weight = self.weight(own.or(of_all), model.model.referenced)?;
            to.set("model", format!("{}:{weight}", path.display()));
            base_is_listed |= base.as_ref().is_some_and(|(_, base)| *base == path);
        }
        if let Some((base, path)) = base {
            if !base_is_listed {
                // mergekit adds it with the weight of all, and wants one.
                let weight = self.weight(of_all, base.referenced)?;
                to.set("model", format!("{}:{weight}", path.display()));
                to.notes.push(format!(
                    "base_model is not among the models; like mergekit, it is added with the weight of all, {weight}"
                ));
            }
            to.set("base", path.display());
        }
        Ok(())
    }

    fn weight(
        &self,
        weight: Option<&Spanned<Weight>>,
        model: serde_saphyr::Location,
    ) -> Result<f64> {
        let Some(weight) = weight else {
            let at = self.at(model);
            return Err(MergekitError::NoWeight { at }.into());
        };
        let at = self.at(weight.referenced);
        match weight.value {
            Weight::Same(number) if number.is_finite() => Ok(number),
            Weight::Same(number) => Err(InputError::WrongValue {
                at,
                key: "weight".into(),
                expected: "a finite number".into(),
                found: number.to_string(),
            }
            .into()),
            Weight::Other(_) => Err(MergekitError::WeightByTensor { at }.into()),
        }
    }
}
