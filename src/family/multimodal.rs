//! Models with further inputs, such as images, whose language model is of a family.
//!
//! The keys of the language model are the object `text_config` of `config.json`. The names of its tensors begin otherwise than the
//! family's, and the tensors of other parts are left out.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::config::Config;
use super::config_error::ConfigError;
use super::keys::{Field, Key};
use super::known::embedded;
use crate::Result;
use crate::checkpoint::json::kind;

/// The key of the language model's configuration.
pub(super) const TEXT_CONFIG: &str = "text_config";

/// The key that ties the head to the input embedding.
const TIED: &str = "tie_word_embeddings";

/// Keys of the whole that hold for its language model, too.
const SHARED: [&str; 6] = [
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "transformers_version",
];

/// A kind of models with further inputs.
#[derive(Debug, PartialEq, Eq)]
pub struct Multimodal {
    /// Its `model_type`.
    model_type: &'static str,
    /// The `model_type` of its language model, where `text_config` says none.
    text: &'static str,
    /// Keys of `text_config` that its class ignores.
    ignored: &'static [&'static str],
}

/// How names of the language model's tensors begin, and how they begin in the family: as the files of the Hub have them, and as
/// transformers 5 calls them.
const PREFIXES: [(&str, &str); 3] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
];

/// How names of other tensors begin.
const OTHERS: [&str; 4] = [
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
];

/// The table.
static MULTIMODAL: [Multimodal; 3] = [
    Multimodal {
        model_type: "gemma3",
        text: "gemma3_text",
        ignored: &["final_logit_softcapping"],
    },
    Multimodal {
        model_type: "mistral3",
        text: "mistral",
        ignored: &[],
    },
    Multimodal {
        model_type: "llava",
        text: "llama",
        ignored: &[],
    },
];

/// Sizes that `text_config` leaves out where the class has the same.
const SIZES: [&str; 5] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
];

/// These sizes, by the `model_type` of the language model.
const CLASS_SIZES: [(&str, [u64; SIZES.len()]); 4] = [
    ("llama", [4096, 11008, 32, 32, 32000]),
    ("mistral", [4096, 14336, 32, 32, 32000]),
    ("ministral3", [4096, 14336, 34, 32, 131_072]),
    ("qwen2", [4096, 22016, 32, 32, 151_936]),
];

impl Multimodal {
    /// The kind of a configuration, where it has further inputs.
    pub(super) fn of(config: &Config) -> Option<&'static Self> {
        let name = config.json.get("model_type")?;
        MULTIMODAL.iter().find(|kind| name == kind.model_type)
    }

    /// The name that a tensor of the language model has in its family, where it has another here.
    pub(super) fn name_in_family(stored: &str) -> Option<String> {
        PREFIXES.iter().find_map(|(theirs, ours)| {
            let rest = stored.strip_prefix(theirs)?;
            Some(format!("{ours}{rest}"))
        })
    }

    /// Whether a tensor of that name belongs to another part.
    pub(super) fn is_other(name: &str) -> bool {
        OTHERS.iter().any(|begin| name.starts_with(begin))
    }
}

impl Config {
    /// The configuration of the language model: this one, or the object in it where the model has further inputs.
    pub(crate) fn language_model(&self) -> Result<Cow<'_, Self>> {
        let Some(whole) = Multimodal::of(self) else {
            return Ok(Cow::Borrowed(self));
        };
        let mut json = match self.json.get(TEXT_CONFIG) {
            Some(Value::Object(text)) => text.clone(),
            // The class of Mistral 3 then has sizes of its own.
            None | Some(Value::Null) if whole.model_type != "mistral3" => Map::new(),
            Some(other) => return Err(self.wrong(TEXT_CONFIG, "an object", other)),
            None => return Err(self.missing(TEXT_CONFIG, "an object")),
        };
        for key in whole.ignored {
            json.shift_remove(*key);
        }
        for key in SHARED {
            if let (Some(value), None) = (self.json.get(key), json.get(key)) {
                json.insert(key.to_owned(), value.clone());
            }
        }
        let name = json.entry("model_type").or_insert(whole.text.into());
        let name = name.as_str().unwrap_or_default().to_owned();
        let family = embedded(Some(&name), None)?;
        if let Some(class) = family.and_then(|family| family.architectures.first()) {
            json.insert("architectures".to_owned(), Value::from(vec![class.clone()]));
        }
        if let Some((_, sizes)) = CLASS_SIZES.iter().find(|(known, _)| *known == name) {
            for (key, size) in SIZES.into_iter().zip(sizes) {
                json.entry(key).or_insert(Value::from(*size));
            }
        }
        if let Some(family) = family {
            self.check_tie(&json, &family.keys[Field::TieWordEmbeddings])?;
        }
        Ok(Cow::Owned(Self {
            path: self.path.clone(),
            json,
        }))
    }

    /// Refuses a head that only one version of transformers ties. Version 4 obeys the key of the language model, and
    /// version 5 the key of the whole, where the checkpoint has no head.
    fn check_tie(&self, text: &Map<String, Value>, key: &Key) -> Result<()> {
        let of_text = text.get(TIED).filter(|tied| !tied.is_null());
        let of_text = of_text.or(key.default.as_ref());
        let of_whole = self.json.get(TIED);
        if of_text != Some(&Value::Bool(true)) || of_whole != Some(&Value::Bool(false)) {
            return Ok(());
        }
        Err(ConfigError::TwoSpellings {
            path: self.path.clone(),
            key: TIED.to_owned(),
            value: kind(&Value::Bool(false)).into(),
            other: format!("{TEXT_CONFIG}.{TIED}"),
            other_value: kind(&Value::Bool(true)).into(),
        }
        .into())
    }
}
