//! What can be wrong with a `config.json`: one variant per broken rule, and what to do next.
//!
//! Missing keys, and values of another type or outside of their range, are in [`InputError`](crate::error::InputError).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::architecture_fault::ArchitectureFault;
use crate::checkpoint::json::kind;
use crate::error::{Error, ErrorPlace, nearest, one_of};

/// The key that says how long texts were before positions were scaled.
pub(super) const ORIGINAL: &str = "original_max_position_embeddings";

/// A rule that a `config.json` breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    // ---- any key
    /// A rule that the configuration of a language model breaks, which is an object in the file.
    #[error("{}: {}", self.place(), error.problem())]
    Inside {
        /// The file.
        path: PathBuf,
        /// The key in the file.
        key: String,
        /// The broken rule.
        error: Box<Error>,
    },
    /// The name of a family that is not known.
    #[error(
        "{}: key `model_type`: expected a known family: {}; found {}",
        path.display(), one_of(known.iter().map(String::as_str)), kind(&Value::from(found.as_str()))
    )]
    UnknownFamily {
        /// The file.
        path: PathBuf,
        /// The name.
        found: String,
        /// Names of the known families, as `model_type` has them.
        known: Vec<String>,
    },
    /// Two spellings of one key with different values.
    #[error("{}: key `{key}`: is {value}, but `{other}`, its other spelling, is {other_value}", path.display())]
    TwoSpellings {
        /// The file.
        path: PathBuf,
        /// The first spelling.
        key: String,
        /// Its value, in words.
        value: Box<str>,
        /// The second spelling.
        other: String,
        /// Its value, in words.
        other_value: Box<str>,
    },
    /// Null under a key that has a default: the configuration class expects a value then.
    #[error("{}: key `{key}`: expected {expected}, found null", path.display())]
    Null {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The values that it may have.
        expected: String,
    },
    /// A name that is none of those that can be computed.
    #[error("{}: key `{key}`: expected {}, found {found}", path.display(), one_of(known.iter().copied()))]
    UnknownName {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What the name is of, as in “activation”.
        what: &'static str,
        /// The known names.
        known: Vec<&'static str>,
        /// The name.
        found: String,
    },
    /// A value with a meaning that cannot be computed.
    #[error("{}: key `{key}`: is {found}, which cannot be computed here: {because}", path.display())]
    NotComputed {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value, in words.
        found: String,
        /// The reason.
        because: Box<str>,
    },
    /// A key that may change the computation, in a description that a user brought and that does not say how.
    #[error(
        "{}: key `{key}`: is {found}, but the description of the family `{family}` does not say what the key means: {because}",
        path.display()
    )]
    Unsaid {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value, in words.
        found: String,
        /// What the key does, as a clause.
        because: Box<str>,
        /// The name of the description.
        family: Box<str>,
    },
    /// A key whose absence has a meaning in models of this type.
    #[error("{}: key `{key}`: is not there, which means in models of type `{model_type}` {means}", path.display())]
    AbsentKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type of the model.
        model_type: String,
        /// The meaning, as a clause.
        means: Box<str>,
    },
    /// A description that a user brought without a layout that models of this type have.
    #[error(
        "{}: key `{key}`: is `{model_type}`: {means}, but the format file does not say `{layout}`",
        path.display()
    )]
    UnsaidLayout {
        /// The file.
        path: PathBuf,
        /// The key that says the type.
        key: &'static str,
        /// The type of the model.
        model_type: Box<str>,
        /// The layout's key in a format file.
        layout: &'static str,
        /// Its meaning, as a clause.
        means: Box<str>,
    },
    /// A description that a user brought of models that a built-in family reads in another way.
    #[error(
        "{}: key `{key}`: the family `{family}` reads {found}, but for models of this type the built-in family `{built_in}` reads {expected}",
        path.display()
    )]
    OtherThanBuiltIn {
        /// The file.
        path: PathBuf,
        /// What differs, under its key in a BAM's configuration.
        key: Box<str>,
        /// The value that the description reads, in words.
        found: Box<str>,
        /// The value that the built-in family reads, in words.
        expected: Box<str>,
        /// The name of the built-in family.
        built_in: Box<str>,
        /// The name of the description.
        family: Box<str>,
    },
    /// Numbers that no model can have.
    #[error("{}: key `{}`: {fault}", path.display(), fault.key())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// The broken rule.
        fault: ArchitectureFault,
    },

    // ---- attention
    /// Heads that cannot fill the hidden size, without a width of heads.
    #[error("{}: key `{key}`: expected a divisor of the hidden size {hidden_size}, found {found}", path.display())]
    UnevenHeads {
        /// The file.
        path: PathBuf,
        /// The key of the number of heads.
        key: String,
        /// The hidden size.
        hidden_size: u64,
        /// The heads.
        found: u64,
    },
    /// A width of heads that models of the family ignore.
    #[error(
        "{}: key `head_dim`: is {found}, but heads of the family {family} fill the hidden size: {expected}",
        path.display()
    )]
    IgnoredHeadDim {
        /// The file.
        path: PathBuf,
        /// The family.
        family: String,
        /// The width in the file.
        found: u64,
        /// The width that the family computes with.
        expected: u64,
    },
    /// Layers with a sliding window in a model without one.
    #[error("{}: key `{key}`: lists layers with a sliding window, but the model has no window", path.display())]
    NoWindow {
        /// The file.
        path: PathBuf,
        /// The list of layers.
        key: String,
    },

    // ---- rotary positions
    /// Heads that rotate in part, in a family that rotates whole heads.
    #[error("{}: key `{key}`: is {found}, but models of the family {family} rotate whole heads", path.display())]
    WholeHeads {
        /// The file.
        path: PathBuf,
        /// The key of the rotated part.
        key: String,
        /// The rotated part.
        found: f64,
        /// The family.
        family: String,
    },
    /// A base of the frequencies where transformers does not read it.
    #[error(
        "{}: key `{key}`: is passed over by transformers: beside rope_scaling by version 5, and always by version 4",
        path.display()
    )]
    UnreadTheta {
        /// The file.
        path: PathBuf,
        /// The key of the base.
        key: &'static str,
    },
    /// A scaling where the version of transformers that wrote the file does not read it.
    #[error(
        "{}: key `{key}`: says a scaling, but transformers 4, which wrote the file, does not read it",
        path.display()
    )]
    UnreadScaling {
        /// The file.
        path: PathBuf,
        /// The key of the scaling.
        key: &'static str,
    },
    /// The old name of a scaling's kind, where no version reads it.
    #[error("{}: key `{key}`: says a scaling that transformers does not read in models of this class", path.display())]
    OldType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// An original context that one version of transformers reads.
    #[error(
        "{}: key `{ORIGINAL}`: is {found}, which transformers 5 reads and transformers 4 does not", path.display()
    )]
    OuterOriginal {
        /// The file.
        path: PathBuf,
        /// The original context.
        found: f64,
        /// The key of the scaling.
        scaling: &'static str,
    },
    /// A scaling that two versions of transformers compute differently.
    #[error("{}: key `{key}`: says a longrope that transformers 4 and 5 compute differently", path.display())]
    TwoLongropes {
        /// The file.
        path: PathBuf,
        /// The key of the scaling.
        key: &'static str,
    },

    /// A text that two versions of transformers read differently, where it is not known that the file means what is computed here.
    #[error("{}: key `{key}`: is {found}, which versions of transformers read differently", path.display())]
    TwoReadings {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The text.
        found: Box<str>,
        /// What transformers 5 reads, and versions before the next.
        taken: Box<str>,
        /// The first version that takes the text literally, up to version 5.
        since: Box<str>,
    },

    // ---- experts
    /// A dense model where a mixture is needed.
    #[error("{}: describes a dense model, expected a mixture", path.display())]
    Dense {
        /// The file.
        path: PathBuf,
    },
    /// A mixture where a request asks for another one.
    #[error("{}: describes a mixture already, which is costed as it is", path.display())]
    Mixture {
        /// The file.
        path: PathBuf,
    },
    /// Adapters of experts, of which no dense model can be made.
    #[error(
        "{}: key `expert_adapters`: is true: a dense model has no place for the matrix that an expert's output passes",
        path.display()
    )]
    ExpertAdapters {
        /// The file.
        path: PathBuf,
    },
    /// Experts and layers without experts of different widths, of which no dense model can be made.
    #[error(
        "{}: key `moe_intermediate_size`: is {experts}, but layers without experts are {layers} wide: a dense model has one width",
        path.display()
    )]
    TwoWidths {
        /// The file.
        path: PathBuf,
        /// Inner width of an expert.
        experts: u64,
        /// Inner width of a layer without experts.
        layers: u64,
    },
    /// Experts that alone are models of no known family.
    #[error("{}: its experts alone are models of no known family: {}", path.display(), known.join(", "))]
    NoDenseFamily {
        /// The file.
        path: PathBuf,
        /// The families of dense models.
        known: Vec<String>,
    },
}

impl ConfigError {
    /// An error about a configuration that is the value of `object` in the file: it names the key in the file.
    pub(super) fn inside(object: &str, error: Error) -> Error {
        let place = error.place();
        let (Some(path), Some(key)) = (place.path, place.key) else {
            return error;
        };
        if key.starts_with(object) {
            return error;
        }
        Self::Inside {
            path: path.to_path_buf(),
            key: format!("{object}.{key}"),
            error: Box::new(error),
        }
        .into()
    }

    /// The refusal of models of a type that no description can say.
    pub(super) fn not_computed(path: &Path, key: &str, found: &str, because: &str) -> Self {
        Self::NotComputed {
            path: path.to_path_buf(),
            key: key.to_owned(),
            found: kind(&Value::from(found)),
            because: because.into(),
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::Inside { error, .. } => return error.hint(),
            Self::UnknownFamily { found, known, .. } => {
                const BRING: &str = "a family that differs in names only can be brought with --format FILE (see formats/ for examples)";
                let near = nearest(found, known.iter().map(String::as_str));
                return Some(near.map_or(BRING.into(), |near| {
                    format!("the nearest known one is `{near}`; {BRING}").into()
                }));
            }
            Self::TwoSpellings { other, .. } => {
                return Some(format!("make them equal or remove `{other}`").into());
            }
            Self::Unsaid { key, .. } => {
                return Some(
                    format!("name `{key}` in the format file: under `keys` or `present` if that is its meaning, or under `other_keys` if models of the family ignore it")
                        .into(),
                );
            }
            Self::AbsentKey { key, .. } => {
                return Some(format!("write `{key}` into config.json with the value that the model was trained with").into());
            }
            Self::UnsaidLayout { layout, .. } => {
                return Some(format!("write `{layout}` into the format file with the value that these models have").into());
            }
            Self::OtherThanBuiltIn { .. } => {
                "leave out --format, or give models that compute something else a `model_type` of their own"
            }
            Self::Null { key, .. } => {
                return Some(format!("remove `{key}` where its default is meant").into());
            }
            Self::UnknownName {
                what, known, found, ..
            } => {
                if found == "su" && known.contains(&"longrope") {
                    return Some("write `longrope`, as `su` is called now".into());
                }
                let near = nearest(found, known.iter().copied())?;
                return Some(format!("the nearest known {what} is `{near}`").into());
            }
            Self::UnevenHeads { .. } => {
                "a config whose heads do not fill the hidden size says `head_dim`"
            }
            Self::NoWindow { .. } => {
                "set use_sliding_window to true and sliding_window, or list `full_attention` alone"
            }
            Self::WholeHeads { .. } => {
                "remove the key if the model was trained with transformers 5, which ignores it"
            }
            Self::UnreadTheta { .. } => {
                "say it as transformers 4 does, too: `rope_theta`, or `rope_local_base_freq` where the class has it"
            }
            Self::UnreadScaling { .. } => "say it as `rope_scaling` too",
            Self::OldType { .. } => {
                "call the key `rope_type`, or remove the scaling if the model was trained without it"
            }
            Self::OuterOriginal { scaling, .. } => {
                return Some(
                    format!("say it as `{scaling}.{ORIGINAL}` and remove this key").into(),
                );
            }
            Self::TwoLongropes { .. } => {
                return Some(
                    format!("say it as transformers 5 does: `rope_parameters` with {ORIGINAL} and attention_factor")
                        .into(),
                );
            }
            Self::TwoReadings {
                key, taken, since, ..
            } => {
                return Some(
                    format!(
                        "say `{key}`: {taken}, as transformers 5 and those before {since} read it; a model that others have trained computes otherwise"
                    )
                    .into(),
                );
            }
            Self::Mixture { .. } => {
                "leave out --method, --kv, --preset, --top-k, --attention-top-k and all about experts, or give a dense config"
            }
            Self::NotComputed { .. }
            | Self::Architecture { .. }
            | Self::IgnoredHeadDim { .. }
            | Self::Dense { .. }
            | Self::ExpertAdapters { .. }
            | Self::TwoWidths { .. }
            | Self::NoDenseFamily { .. } => return None,
        }))
    }

    /// The file and the key.
    pub fn place(&self) -> ErrorPlace<'_> {
        let (path, key) = match self {
            Self::UnknownFamily { path, .. } => (path, "model_type"),
            Self::TwoSpellings { path, key, .. }
            | Self::Null { path, key, .. }
            | Self::UnknownName { path, key, .. }
            | Self::NotComputed { path, key, .. }
            | Self::Unsaid { path, key, .. }
            | Self::AbsentKey { path, key, .. }
            | Self::UnevenHeads { path, key, .. }
            | Self::NoWindow { path, key }
            | Self::WholeHeads { path, key, .. }
            | Self::OldType { path, key }
            | Self::Inside { path, key, .. } => (path, key.as_str()),
            Self::OtherThanBuiltIn { path, key, .. } => (path, &**key),
            Self::UnsaidLayout { path, key, .. } => (path, *key),
            Self::Architecture { path, fault } => (path, fault.key()),
            Self::IgnoredHeadDim { path, .. } => (path, "head_dim"),
            Self::UnreadTheta { path, key } | Self::UnreadScaling { path, key } => (path, *key),
            Self::OuterOriginal { path, .. } => (path, ORIGINAL),
            Self::TwoLongropes { path, key } => (path, *key),
            Self::TwoReadings { path, key, .. } => (path, key.as_str()),
            Self::ExpertAdapters { path } => (path, "expert_adapters"),
            Self::TwoWidths { path, .. } => (path, "moe_intermediate_size"),
            Self::Dense { path } | Self::Mixture { path } | Self::NoDenseFamily { path, .. } => {
                return ErrorPlace::of(path);
            }
        };
        ErrorPlace::of(path).with_key(key)
    }
}
