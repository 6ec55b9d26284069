//! One `config.json` as read, and typed access to its keys under any of their names.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::config_error::ConfigError;
use super::format::Family;
use super::gguf_architecture;
use super::keys::Key;
use super::known::{BAM, brought, embedded, families};
use super::layout::Choice;
use super::model_types::TypeFact;
use super::spelling::same_value;
use crate::checkpoint::foreign;
use crate::checkpoint::json::{kind, read_object};
use crate::checkpoint::version;
use crate::error::InputError;
use crate::{Error, Result};

/// The key that holds the version of a BAM's `config.json`.
pub(super) const BAM_VERSION: &str = "bam_version";
/// The version of a BAM all of whose keys the first release knows.
pub(super) const FIRST_BAM_VERSION: u64 = 1;
/// The version of a BAM whose meaning an older reader would miss ([`Architecture::bam_version`](super::Architecture)).
pub(super) const LAST_BAM_VERSION: u64 = 2;

/// The base of rotary positions in layers that see all positions, where kinds of layers rotate differently.
pub(super) const FULL_THETA: &str = "rope_parameters.full_attention.rope_theta";

/// One `config.json` as read; its keys keep their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file, for errors.
    pub path: PathBuf,
    /// What it says.
    pub json: Map<String, Value>,
}

/// The value under the names of a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Found<'a> {
    /// None of the names.
    Absent,
    /// Only nulls.
    Null,
    /// This value, under this name.
    Value(&'a str, &'a Value),
}

impl Family {
    /// The family of a `config.json`, by `model_type` or, where it has none, by `architectures`.
    ///
    /// A family that a user brought comes before the embedded ones, and describes models of unknown families, too. A command
    /// may read models of embedded families beside those: the mixture that it made of them, or what they are compared with.
    pub fn of(config: &Config) -> Result<Arc<Self>> {
        let (model_type, class) = names(config)?;
        let brought = brought();
        if let Some(family) = brought.filter(|family| family.is_named(model_type, class)) {
            return Ok(Arc::clone(family));
        }
        match embedded(model_type, class)?.or(brought) {
            Some(family) => Ok(Arc::clone(family)),
            None => Err(unknown_family(config, config.model_type()?, families()?)),
        }
    }
}

/// The `model_type` and the class by which a configuration names its family.
pub(super) fn names(config: &Config) -> Result<(Option<&str>, Option<&str>)> {
    let model_type = match config.json.get("model_type") {
        None => None,
        Some(_) => Some(config.model_type()?),
    };
    let classes = config.json.get("architectures");
    let class = classes.and_then(|classes| classes.get(0)?.as_str());
    Ok((model_type, class))
}

/// The refusal of a `model_type` that is none of the known families'.
fn unknown_family(config: &Config, found: &str, known: &[Arc<Family>]) -> Error {
    if let Some(TypeFact::Never(because)) = TypeFact::of(found) {
        return ConfigError::not_computed(&config.path, "model_type", found, because).into();
    }
    let known = known.iter().flat_map(|family| &family.model_types);
    ConfigError::UnknownFamily {
        path: config.path.clone(),
        found: found.to_owned(),
        known: known.cloned().collect(),
    }
    .into()
}

impl Config {
    /// Reads a `config.json`, or the one in a folder.
    pub fn read(file_or_folder: &Path) -> Result<Self> {
        let path = foreign::config_of(file_or_folder)?;
        // Of a GGUF file, its architecture decides what can be done with it.
        let json = read_object(&path)
            .map_err(|error| gguf_architecture::refusal(&path).unwrap_or(error))?;
        let config = Self { path, json };
        config.check_version()?;
        Ok(config)
    }

    /// A config that was not read from a file; `path` only names the place in errors.
    pub fn from_json(path: impl Into<PathBuf>, json: Map<String, Value>) -> Self {
        Self {
            path: path.into(),
            json,
        }
    }

    /// As [`read`](Self::read); none where a folder has no `config.json`, or where `path` is a weight file.
    pub fn read_if_present(path: &Path) -> Result<Option<Self>> {
        let file = path.join("config.json");
        file.exists().then(|| Self::read(&file)).transpose()
    }

    /// Refuses a BAM of a version that this program does not know; one without the key has the first version.
    fn check_version(&self) -> Result<()> {
        match self.json.get(BAM_VERSION) {
            Some(found) if self.json.get("model_type").is_some_and(|name| name == BAM) => {
                if *found == FIRST_BAM_VERSION {
                    return Ok(());
                }
                version::check(&self.path, BAM_VERSION, Some(found), LAST_BAM_VERSION)
            }
            _ => Ok(()),
        }
    }

    /// The key `model_type`.
    pub fn model_type(&self) -> Result<&str> {
        match self.json.get("model_type") {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.wrong("model_type", "a string", other)),
            None => Err(self.missing("model_type", "the name of a family, such as \"llama\"")),
        }
    }

    /// The value under `name`, where `a.b` is key `b` of the object `a`.
    pub(super) fn at(&self, name: &str) -> Option<&Value> {
        let (object, keys) = match name.split_once('.') {
            None => return self.json.get(name),
            Some((object, keys)) => (self.json.get(object)?, keys),
        };
        keys.split('.')
            .try_fold(object, |object, key| object.as_object()?.get(key))
    }

    /// The value under any of the names; two names with different values are refused.
    pub(crate) fn find<'a>(
        &'a self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Found<'a>> {
        let mut found = Found::Absent;
        for name in names {
            match (self.at(name), &found) {
                (None, _) | (Some(Value::Null), Found::Null | Found::Value(..)) => {}
                (Some(Value::Null), Found::Absent) => found = Found::Null,
                (Some(value), Found::Absent | Found::Null) => found = Found::Value(name, value),
                (Some(value), Found::Value(first, earlier)) if !same_value(earlier, value) => {
                    return Err(ConfigError::TwoSpellings {
                        path: self.path.clone(),
                        key: (*first).to_owned(),
                        value: kind(earlier).into(),
                        other: name.to_owned(),
                        other_value: kind(value).into(),
                    }
                    .into());
                }
                (Some(_), Found::Value(..)) => {}
            }
        }
        Ok(found)
    }

    /// The names of a key that count. A class that looks into an object first takes what that says, whatever is said beside it.
    pub(super) fn counted<'a>(&self, key: &'a Key) -> Result<&'a [String]> {
        let is_inner = |name: &String| name.contains('.');
        if let [first, beside @ ..] = &key.names[..]
            && is_inner(first)
            && !beside.iter().any(is_inner)
            && let Found::Value(..) = self.find([first.as_str()])?
        {
            return Ok(&key.names[..1]);
        }
        Ok(&key.names)
    }

    /// As [`Self::find`], with the default of the key where the file has none of its names. A value that the class reads as another
    /// counts as the other.
    pub(crate) fn lookup<'a>(&'a self, key: &'a Key) -> Result<Found<'a>> {
        let names = self.counted(key)?;
        Ok(match self.find(names.iter().map(String::as_str))? {
            Found::Value(name, value) => Found::Value(name, key.read_as(value).unwrap_or(value)),
            Found::Absent => match (self.default(key), key.names.first()) {
                (Some(Value::Null), _) => Found::Null,
                (Some(value), Some(name)) => Found::Value(name, value),
                (Some(value), None) => Found::Value("default", value),
                (None, _) => Found::Absent,
            },
            found => found,
        })
    }

    /// The default of a key. Where it depends on the version of transformers, the version that wrote the file counts,
    /// and version 4 where the file has no version.
    pub(super) fn default<'a>(&self, key: &'a Key) -> Option<&'a Value> {
        match (&key.default_before_5, &key.default) {
            (Some(of_4), _) if self.transformers().is_none_or(|major| major < 5) => Some(of_4),
            (_, default) => default.as_ref(),
        }
    }

    /// The major version of transformers that wrote the file, if it says so. Only version 5 has `rope_parameters`.
    pub(crate) fn transformers(&self) -> Option<u32> {
        self.writer().map(|(major, _)| major)
    }

    /// That version with its second number.
    pub(super) fn writer(&self) -> Option<(u32, u32)> {
        let said = self.json.get("transformers_version");
        let Some(said) = said.and_then(Value::as_str) else {
            let new = self.json.get("rope_parameters").and_then(Value::as_object);
            let is_new = new.is_some_and(|values| !values.is_empty());
            return is_new.then_some((5, 0));
        };
        version(said)
    }

    /// Refuses null for a key that has a default: the configuration class expects a value then.
    pub(crate) fn not_null(&self, key: &Key, expected: &str) -> Result<()> {
        match (&key.default, key.names.first()) {
            (Some(_), Some(name)) if self.lookup(key)? == Found::Null => Err(ConfigError::Null {
                path: self.path.clone(),
                key: name.clone(),
                expected: expected.to_owned(),
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// A positive integer, if the key is there and not null.
    pub(crate) fn count(&self, key: &Key) -> Result<Option<u64>> {
        match self.lookup(key)? {
            Found::Absent | Found::Null => Ok(None),
            Found::Value(name, value) => self.as_count(name, value).map(Some),
        }
    }

    /// A positive integer that must be there.
    pub(crate) fn required_count(&self, key: &Key) -> Result<u64> {
        let name = key.names.first().map_or("", String::as_str);
        self.count(key)?
            .ok_or_else(|| self.missing(name, "a positive integer"))
    }

    /// An integer from 0 on, if the key is there and not null.
    pub(crate) fn index(&self, key: &Key) -> Result<Option<u64>> {
        match self.lookup(key)? {
            Found::Absent | Found::Null => Ok(None),
            Found::Value(_, value) if value.as_u64() == Some(0) => Ok(Some(0)),
            Found::Value(name, value) => match self.as_count(name, value) {
                Err(_) if !value.is_u64() => {
                    Err(self.wrong(name, "an integer of at least 0", value))
                }
                count => count.map(Some),
            },
        }
    }

    /// `value`, found under `name`, as a positive integer.
    pub(crate) fn as_count(&self, name: &str, value: &Value) -> Result<u64> {
        /// Past any real dimension; a product of two fits 64 bits.
        const LARGEST: u64 = 1 << 31;
        match value.as_u64() {
            Some(count) if count > LARGEST => {
                Err(self.unexpected(name, format!("at most {LARGEST}"), count))
            }
            Some(count) if count > 0 => Ok(count),
            _ => Err(self.wrong(name, "a positive integer", value)),
        }
    }

    /// A finite number of at least `least`, if the key is there and not null.
    pub(crate) fn number(&self, key: &Key, least: f64) -> Result<Option<f64>> {
        match self.lookup(key)? {
            Found::Absent | Found::Null => Ok(None),
            Found::Value(name, value) => self.as_number(name, value, least).map(Some),
        }
    }

    /// `value`, found under `name`, as a finite number of at least `least`.
    pub(crate) fn as_number(&self, name: &str, value: &Value, least: f64) -> Result<f64> {
        let expected = match least {
            f64::MIN => "a number".to_owned(),
            f64::MIN_POSITIVE => "a number above 0".to_owned(),
            least => format!("a number of at least {least}"),
        };
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number >= least)
            .ok_or_else(|| self.wrong(name, &expected, value))
    }

    /// A boolean; null means false, as it does to Python.
    pub(crate) fn flag(&self, key: &Key) -> Result<Option<bool>> {
        match self.lookup(key)? {
            Found::Absent => Ok(None),
            Found::Null => Ok(Some(false)),
            Found::Value(name, value) => self.as_flag(name, value).map(Some),
        }
    }

    /// `value`, found under `name`, as a boolean.
    pub(crate) fn as_flag(&self, name: &str, value: &Value) -> Result<bool> {
        value
            .as_bool()
            .ok_or_else(|| self.wrong(name, "true or false", value))
    }

    /// A boolean under one name, if it is there and not null.
    pub(crate) fn own_flag(&self, name: &str) -> Result<Option<bool>> {
        match self.find([name])? {
            Found::Value(name, value) => self.as_flag(name, value).map(Some),
            Found::Absent | Found::Null => Ok(None),
        }
    }

    /// A positive integer under one name, if it is there and not null.
    pub(crate) fn own_count(&self, name: &str) -> Result<Option<u64>> {
        match self.find([name])? {
            Found::Value(name, value) => self.as_count(name, value).map(Some),
            Found::Absent | Found::Null => Ok(None),
        }
    }

    /// A string, if the key is there and not null.
    pub(crate) fn text<'a>(&'a self, key: &'a Key) -> Result<Option<&'a str>> {
        match self.lookup(key)? {
            Found::Absent | Found::Null => Ok(None),
            Found::Value(name, value) => value
                .as_str()
                .map(Some)
                .ok_or_else(|| self.wrong(name, "a string", value)),
        }
    }

    /// A named layout under its own key, if it is there.
    pub(crate) fn choice<T: Choice>(&self, name: &str) -> Result<Option<T>> {
        let parse = |value| T::parse(value).map_err(|unexpected| unexpected.at(&self.path, name));
        self.json
            .get(name)
            .filter(|value| !value.is_null())
            .map(parse)
            .transpose()
    }

    /// An error for a value of the wrong kind.
    pub(crate) fn wrong(&self, name: &str, expected: &str, found: &Value) -> Error {
        self.unexpected(name, expected.to_owned(), kind(found))
    }

    /// An error for a value that the key may not have, in words.
    pub(crate) fn unexpected(
        &self,
        name: &str,
        expected: impl Into<Cow<'static, str>>,
        found: impl ToString,
    ) -> Error {
        InputError::wrong_value(&self.path, name, expected, found)
    }

    /// An error for a key that is not there.
    pub(crate) fn missing(&self, name: &str, expected: &str) -> Error {
        InputError::missing_key(&self.path, name, expected.to_owned())
    }
}

/// The first two numbers of a version.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next().and_then(|minor| minor.parse().ok());
    Some((major, minor.unwrap_or(0)))
}
