//! What a description that a user brought does not say of a configuration, though the model's own class would obey it.
//!
//! A built-in family is compared with its class in transformers, which ignores the keys that it does not have.
//! Nobody has compared a description that a user brings.
//! So it must say how it treats each key that may change the computation ([`super::key_meanings`]).

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::config::{Config, Found, names};
use super::config_error::ConfigError;
use super::format::Family;
use super::key_meanings::{KeyMeaning, Neutral};
use super::keys::Field;
use super::known::embedded;
use super::layout::{Block, NormType};
use super::mixture::Mixture;
use super::model_types::TypeFact;
use super::rope::is_rope_key;
use super::rope_place::LAYER_KINDS;
use super::spelling::same_value;
use super::write::ConfigWriter;
use crate::Result;
use crate::checkpoint::json::kind;

/// The keys that hold the values of rotary positions.
const ROPE_OBJECTS: [&str; 2] = ["rope_scaling", NEW_ROPE];

/// The one of transformers 5, which may have an object for each kind of layer.
const NEW_ROPE: &str = "rope_parameters";

/// Refuses a configuration that means something which `family`, brought by a user, does not say.
///
/// `read` is the configuration as the family reads it.
pub(super) fn refuse_unsaid(config: &Config, family: &Family, read: &Architecture) -> Result<()> {
    let (model_type, class) = names(config)?;
    if let Some(known) = embedded(model_type, class)? {
        return same_as_built_in(config, family, read, known);
    }
    let check = Check {
        config,
        family,
        read,
    };
    for (key, value) in &config.json {
        check.key(key, key, value)?;
    }
    ROPE_OBJECTS
        .iter()
        .try_for_each(|object| check.rope_object(object))
}

/// Refuses a `model_type` whose models no description can say, or whose meaning `family`, brought by a user, does not say.
pub(super) fn refuse_type(config: &Config, family: &Family) -> Result<()> {
    let (model_type, class) = names(config)?;
    let (key, fact) = match (model_type, class) {
        (Some(model_type), _) => ("model_type", TypeFact::of(model_type)),
        (None, class) => ("architectures", class.and_then(TypeFact::of_class)),
    };
    let model_type = model_type.or(class).unwrap_or_default();
    match fact {
        None | Some(TypeFact::Described) => Ok(()),
        Some(TypeFact::Never(because)) => {
            Err(ConfigError::not_computed(&config.path, key, model_type, because).into())
        }
        Some(TypeFact::Layout { layout, means }) => {
            let rows = family.layouts.rows();
            if rows.iter().any(|row| row.key == layout && !row.is_neutral) {
                return Ok(());
            }
            Err(ConfigError::UnsaidLayout {
                path: config.path.clone(),
                key,
                layout,
                model_type: model_type.into(),
                means: means.into(),
            }
            .into())
        }
        Some(TypeFact::AbsentKey { key, null, means }) => {
            let is_there = match config.find([key])? {
                Found::Value(..) => true,
                Found::Null => null,
                Found::Absent => false,
            };
            if is_there {
                return Ok(());
            }
            Err(ConfigError::AbsentKey {
                path: config.path.clone(),
                key: key.to_owned(),
                model_type: model_type.to_owned(),
                means: means.into(),
            }
            .into())
        }
    }
}

/// Refuses a description that reads models of a built-in family in another way than that family does.
fn same_as_built_in(
    config: &Config,
    family: &Family,
    read: &Architecture,
    known: &Family,
) -> Result<()> {
    let expected = Architecture::read(config, known)?;
    // The first is the name of the family.
    let pairs = read.meaning().into_iter().zip(expected.meaning()).skip(1);
    let pairs = pairs.map(|((key, found), (_, expected))| (key, found, expected));
    for (key, found, expected) in pairs.chain(experts(read, &expected)) {
        if !same_value(&found, &expected) {
            return Err(ConfigError::OtherThanBuiltIn {
                path: config.path.clone(),
                key: key.into(),
                found: kind(&found).into(),
                expected: kind(&expected).into(),
                built_in: known.name.as_str().into(),
                family: family.name.as_str().into(),
            }
            .into());
        }
    }
    Ok(())
}

/// What two architectures say about experts, by the keys of a BAM.
fn experts(
    read: &Architecture,
    expected: &Architecture,
) -> impl Iterator<Item = (&'static str, Value, Value)> {
    let [read, expected] = [read, expected].map(|architecture| json!(architecture.mixture));
    let of = |mixture: &Value, key: &str| mixture.get(key).cloned().unwrap_or_default();
    Mixture::KEYS
        .into_iter()
        .map(move |key| (key, of(&read, key), of(&expected, key)))
}

/// One configuration, and a family that must say all that it means.
struct Check<'a> {
    config: &'a Config,
    family: &'a Family,
    read: &'a Architecture,
}

impl Check<'_> {
    /// Refuses a value of `key` that may change the computation, where the family does not say how.
    fn key(&self, at: &str, key: &str, value: &Value) -> Result<()> {
        if is_empty(value) || self.family.says(at) {
            return Ok(());
        }
        match KeyMeaning::of(key) {
            None => Ok(()),
            Some(meaning)
                if meaning
                    .neutral
                    .iter()
                    .any(|neutral| self.is(neutral, value)) =>
            {
                Ok(())
            }
            Some(meaning) => Err(self.refusal(at, value, meaning.because)),
        }
    }

    /// Refuses values inside a rotary object, and inside its objects for kinds of layers.
    fn rope_object(&self, object: &str) -> Result<()> {
        let Some(Value::Object(values)) = self.config.at(object) else {
            return Ok(());
        };
        let by_kind = self.family.keys.has(Field::RopeLocalTheta);
        for (key, value) in values.iter().filter(|(key, _)| !is_rope_key(key)) {
            let at = format!("{object}.{key}");
            if by_kind && object == NEW_ROPE && LAYER_KINDS.contains(&key.as_str()) {
                self.rope_object(&at)?;
            } else {
                self.rope_key(&at, value)?;
            }
        }
        Ok(())
    }

    /// Refuses a value inside a rotary object that is none of the values that the kinds of scaling have.
    fn rope_key(&self, at: &str, value: &Value) -> Result<()> {
        if is_empty(value) || self.family.says(at) {
            return Ok(());
        }
        Err(self.refusal(at, value, "it may change rotary positions"))
    }

    fn refusal(&self, key: &str, value: &Value, because: &str) -> crate::Error {
        ConfigError::Unsaid {
            path: self.config.path.clone(),
            key: key.to_owned(),
            found: kind(value),
            because: because.into(),
            family: self.family.name.as_str().into(),
        }
        .into()
    }

    /// Whether a value leaves the computation as the family says it.
    fn is(&self, neutral: &Neutral, value: &Value) -> bool {
        let read = self.read;
        let number = |expected: f64| {
            let close = |found: f64| (found - expected).abs() <= 1e-6 * expected.abs();
            value.as_f64().is_some_and(close)
        };
        let flag = |expected: bool| *value == Value::Bool(expected);
        let each = |is: &dyn Fn(&Value) -> bool| {
            let items = value.as_array();
            items.is_some_and(|items| items.iter().all(is))
        };
        let has = |other: &str| {
            let other = self.config.json.get(other);
            other.is_some_and(|other| !is_empty(other) && *other != Value::Bool(false))
        };
        match neutral {
            Neutral::Bool(expected) => flag(*expected),
            Neutral::Number(expected) => {
                number(*expected) || each(&|item| item.as_f64() == Some(*expected))
            }
            Neutral::Text(expected) => value == expected,
            Neutral::Each(expected) => each(&|item| item == expected),
            Neutral::Ones => each(&|item| item.as_u64() == Some(1)),
            Neutral::As(field) => self.is_as_read(*field, value),
            Neutral::HeadDim => number(read.head_dim as f64),
            Neutral::HeadScale => number((read.head_dim as f64).sqrt().recip()),
            Neutral::Parallel => flag(read.block != Block::Sequential),
            Neutral::NormOffset => {
                flag(read.norm_offset) || number(f64::from(u8::from(read.norm_offset)))
            }
            Neutral::Interleaved => flag(read.rope_interleaved),
            Neutral::Rms => flag(read.norm_type == NormType::Rms),
            Neutral::Biased => flag(read.attention_bias),
            Neutral::AnyText => value.is_string(),
            Neutral::Without(other) => !has(other),
            Neutral::Beside(other) => has(other),
        }
    }

    /// Whether a value is what the family reads for a number.
    fn is_as_read(&self, field: Field, value: &Value) -> bool {
        let writer = ConfigWriter::new(Map::new(), [], self.family, self.read);
        let expected = writer.value(field);
        if field == Field::HiddenAct {
            let named = |value: &Value| value.as_str().and_then(super::Activation::named);
            return same_value(value, &expected)
                || named(value).is_some() && named(value) == named(&expected);
        }
        same_value(value, &expected)
    }
}

/// Whether a value means that the key is not used.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}
