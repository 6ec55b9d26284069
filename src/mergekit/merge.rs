//! `mergekit-yaml` files: merges of whole models, or of slices of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_saphyr::Spanned;

use super::Translation;
use super::error::MergekitError;
use super::model::{Fetch, float, folder};
use super::names::{LINEAR, METHODS, OTHER_METHODS};
use crate::checkpoint::dtype;
use crate::checkpoint::yaml::{self, place};
use crate::error::{InputError, Location};
use crate::parameter::Parameter;
use crate::{Error, Result};

/// A configuration of `mergekit-yaml`.
#[derive(Debug)]
pub struct MergeFile {
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
    slices: Option<Spanned<Vec<Slice>>>,
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
struct Slice {
    sources: Spanned<Vec<SliceModel>>,
    base_model: Option<Spanned<String>>,
    residual_weight: Option<Spanned<IgnoredAny>>,
    parameters: Option<Parameters>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SliceModel {
    model: Spanned<String>,
    layer_range: Spanned<[u64; 2]>,
    parameters: Option<Parameters>,
}

/// Parameters under their names; which ones there are depends on the method.
type Parameters = BTreeMap<String, Spanned<Value>>;

/// A parameter of a file.
#[derive(Clone, Debug)]
pub struct FileParameter {
    /// Its name.
    pub key: String,
    /// Where its value is.
    pub at: Location,
    /// Its value.
    pub value: Parameter,
}

/// The parameters of a file.
#[derive(Clone, Debug)]
pub struct FileParameters {
    /// The method.
    pub method: String,
    /// The models, as the file names them.
    pub models: Vec<String>,
    /// Parameters of the merge as a whole.
    pub of_all: Vec<FileParameter>,
    /// Parameters of each model, in the order of the file.
    pub of_models: Vec<Vec<FileParameter>>,
    /// The slices; none where whole models are merged.
    pub slices: Vec<FileSlice>,
}

impl FileParameters {
    /// Whether the file has a parameter, anywhere.
    pub fn has(&self, key: &str) -> bool {
        let of_slices = self.slices.iter().flat_map(|slice| {
            let of_sources = slice.sources.iter().map(|source| &source.parameters);
            of_sources.chain([&slice.parameters])
        });
        let mut all = self.of_models.iter().chain([&self.of_all]).chain(of_slices);
        all.any(|parameters| parameters.iter().any(|parameter| parameter.key == key))
    }
}

/// Layers of the output of a file.
#[derive(Clone, Debug)]
pub struct FileSlice {
    /// What they are made of.
    pub sources: Vec<FileSource>,
    /// Number of the model that the method starts from, if it is another one than elsewhere.
    pub base: Option<usize>,
    /// Parameters of the slice as a whole.
    pub parameters: Vec<FileParameter>,
}

/// Layers of a model in a slice of a file.
#[derive(Clone, Debug)]
pub struct FileSource {
    /// Number of the model, in the order in which the file names models.
    pub model: usize,
    /// Its layers, counted from 0.
    pub layers: Range<u64>,
    /// Parameters of these layers.
    pub parameters: Vec<FileParameter>,
}

/// The method of a file, whatever other keys it has.
#[derive(Debug, Deserialize)]
struct AnyMethod {
    merge_method: Spanned<String>,
}

/// Refuses every method but [`METHODS`].
fn refuse_other_method(path: &Path, method: &Spanned<String>) -> Result<()> {
    let name = method.value.as_str();
    if METHODS.contains(&name) {
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

impl MergeFile {
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

    /// The same merge in settings of `merge`.
    ///
    /// # Errors
    /// Parts of models, and other tokenizers; each with its line.
    pub fn translate(&self, fetch: Fetch) -> Result<Translation> {
        let keys = &self.keys;
        self.refuse_unsupported()?;
        let mut to = Translation::new();
        let method = keys.merge_method.value.as_str();
        if method == LINEAR && keys.slices.is_none() && self.has_plain_weights()? {
            self.weighted_models(self.models()?, &mut to, fetch)?;
            if let Some(normalize) = self.parameter("normalize")? {
                to.set("normalize", normalize.value);
            }
        } else {
            to.set("method", method);
            let names = self.names()?;
            if keys
                .models
                .as_ref()
                .is_some_and(|models| models.value.len() < names.len())
            {
                to.notes.push(
                    "base_model is not among the models; like mergekit, it is added with the weight of all"
                        .to_owned(),
                );
            }
            for model in names {
                let path = folder(&self.path, "model", model, fetch)?;
                to.set("model", path.display());
            }
            if let Some(base) = &keys.base_model {
                let path = folder(&self.path, "base_model", base, fetch)?;
                to.set("base", path.display());
            }
            to.set("parameters", self.path.display());
        }
        self.dtypes(&mut to)?;
        Ok(to)
    }

    /// The models of the file, at least one.
    fn models(&self) -> Result<&[Model]> {
        let keys = &self.keys;
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
        Ok(&models.value)
    }

    /// The names of all models: of each in `models` and of a base that is averaged with them, or of those in slices once each.
    fn names(&self) -> Result<Vec<&Spanned<String>>> {
        let Some(slices) = &self.keys.slices else {
            let mut names: Vec<_> = self.models()?.iter().map(|model| &model.model).collect();
            let base = self.keys.base_model.as_ref();
            let base = base.filter(|base| names.iter().all(|name| name.value != base.value));
            if self.keys.merge_method.value == LINEAR {
                names.extend(base);
            }
            return Ok(names);
        };
        if self.keys.models.is_some() {
            let at = self.at(slices.referenced);
            return Err(MergekitError::ModelsAndSlices { at }.into());
        }
        let mut names: Vec<&Spanned<String>> = Vec::new();
        for source in slices.value.iter().flat_map(|slice| &slice.sources.value) {
            if names.iter().all(|name| name.value != source.model.value) {
                names.push(&source.model);
            }
        }
        if names.is_empty() {
            return Err(MergekitError::EmptyList {
                at: self.at(slices.referenced),
                key: "slices",
                item: "slice with sources",
            }
            .into());
        }
        Ok(names)
    }

    /// The slices of the file.
    fn slices(&self) -> Result<Vec<FileSlice>> {
        let Some(slices) = &self.keys.slices else {
            return Ok(Vec::new());
        };
        let names = self.names()?;
        let source = |source: &SliceModel| {
            let is_model = |name: &&Spanned<String>| name.value == source.model.value;
            let [start, end] = source.layer_range.value;
            Ok(FileSource {
                model: names.iter().position(is_model).unwrap_or(0),
                layers: start..end,
                parameters: self.list(source.parameters.as_ref())?,
            })
        };
        let slice = |slice: &Slice| {
            if let Some(weight) = &slice.residual_weight {
                let at = self.at(weight.referenced);
                return Err(MergekitError::ResidualWeight { at }.into());
            }
            let sources = slice.sources.value.iter().map(source);
            let base = slice.base_model.as_ref().map(|base| {
                let mut sources = slice.sources.value.iter();
                let is_there = sources.any(|source| source.model.value == base.value);
                let number = names.iter().position(|name| name.value == base.value);
                number.filter(|_| is_there).ok_or_else(|| {
                    let at = self.at(base.referenced);
                    Error::from(MergekitError::SliceBase { at })
                })
            });
            Ok(FileSlice {
                sources: sources.collect::<Result<_>>()?,
                base: base.transpose()?,
                parameters: self.list(slice.parameters.as_ref())?,
            })
        };
        slices.value.iter().map(slice).collect()
    }

    /// The dtype of the output, and a note on what mergekit does beside.
    fn dtypes(&self, to: &mut Translation) -> Result<()> {
        let read = |key, name: &Option<Spanned<String>>| {
            let dtype = name.as_ref().map(|name| float(&self.path, key, name));
            dtype.transpose()
        };
        let compute = read("dtype", &self.keys.dtype)?;
        let out = read("out_dtype", &self.keys.out_dtype)?;
        if let Some(dtype) = out.or(compute) {
            to.set("dtype", dtype::name(dtype));
        }
        if compute.is_some_and(|dtype| dtype.bitsize() < 32) {
            to.notes.push(
                "dtype: weights are merged in float64 as they are stored and rounded once; mergekit rounds them to dtype first"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// The parameters of the file.
    ///
    /// # Errors
    /// Values that no parameter has, with their lines.
    pub fn parameters(&self) -> Result<FileParameters> {
        let list = |parameters: &Option<Parameters>| self.list(parameters.as_ref());
        let names = self.names()?;
        let mut of_models = Vec::with_capacity(names.len());
        if self.keys.slices.is_none() {
            for model in self.models()? {
                of_models.push(list(&model.parameters)?);
            }
        }
        of_models.resize(names.len(), Vec::new());
        Ok(FileParameters {
            method: self.keys.merge_method.value.clone(),
            models: names.iter().map(|name| name.value.clone()).collect(),
            of_all: list(&self.keys.parameters)?,
            of_models,
            slices: self.slices()?,
        })
    }

    fn list(&self, parameters: Option<&Parameters>) -> Result<Vec<FileParameter>> {
        let parameters = parameters.into_iter().flatten();
        // A parameter without a value is left to the method.
        let given = parameters.filter(|(_, value)| !value.value.is_null());
        let read = given.map(|(key, value)| {
            let at = self.at(value.referenced);
            match Parameter::from_value(&value.value) {
                Ok(value) => Ok(FileParameter {
                    key: key.clone(),
                    at,
                    value,
                }),
                Err(problem) => Err(MergekitError::Parameter {
                    at,
                    key: key.clone(),
                    problem,
                }
                .into()),
            }
        });
        read.collect()
    }

    /// A parameter of the merge as a whole.
    fn parameter(&self, key: &str) -> Result<Option<FileParameter>> {
        let of_all = self.list(self.keys.parameters.as_ref())?;
        Ok(of_all.into_iter().find(|parameter| parameter.key == key))
    }

    /// Whether flags can say all parameters: a number for each model, and whether they are normalised.
    fn has_plain_weights(&self) -> Result<bool> {
        let FileParameters {
            of_all, of_models, ..
        } = self.parameters()?;
        let is_weight = |parameter: &FileParameter| {
            parameter.key == "weight" && parameter.value.number().is_some()
        };
        let is_normalize = |parameter: &FileParameter| {
            parameter.key == "normalize" && matches!(parameter.value, Parameter::Switch(_))
        };
        let mut of_models = of_models.iter().flatten();
        Ok(
            of_models.all(is_weight)
                && of_all.iter().all(|all| is_weight(all) || is_normalize(all)),
        )
    }

    /// Refuses keys whose effect our merges do not have.
    fn refuse_unsupported(&self) -> Result<()> {
        let keys = &self.keys;
        if let Some(value) = &keys.modules {
            let at = self.at(value.referenced);
            return Err(MergekitError::PartsOfModels { at, key: "modules" }.into());
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

    /// The models of an average with their weights.
    fn weighted_models(&self, models: &[Model], to: &mut Translation, fetch: Fetch) -> Result<()> {
        let of_all = self.parameter("weight")?;
        let base = self
            .keys
            .base_model
            .as_ref()
            .map(|base| Ok::<_, Error>((base, folder(&self.path, "base_model", base, fetch)?)));
        let base = base.transpose()?;
        let mut base_is_listed = false;
        for model in models {
            let path = folder(&self.path, "model", &model.model, fetch)?;
            let own = self.list(model.parameters.as_ref())?;
            let weight = self.weight(own.first().or(of_all.as_ref()), &model.model)?;
            to.set("model", format!("{}:{weight}", path.display()));
            base_is_listed |= base.as_ref().is_some_and(|(_, base)| *base == path);
        }
        if let Some((base, path)) = base {
            if !base_is_listed {
                // mergekit adds it with the weight of all, and wants one.
                let weight = self.weight(of_all.as_ref(), base)?;
                to.set("model", format!("{}:{weight}", path.display()));
                to.notes.push(format!(
                    "base_model is not among the models; like mergekit, it is added with the weight of all, {weight}"
                ));
            }
            to.set("base", path.display());
        }
        Ok(())
    }

    fn weight(&self, weight: Option<&FileParameter>, model: &Spanned<String>) -> Result<f64> {
        let number = weight.and_then(|weight| weight.value.number());
        let at = self.at(model.referenced);
        number.ok_or_else(|| MergekitError::NoWeight { at }.into())
    }
}
