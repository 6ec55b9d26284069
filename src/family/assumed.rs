//! What a configuration leaves open, or says so that versions of transformers read it differently, and what is taken for it.

use serde_json::{Map, Value};

use super::config::{Config, FULL_THETA, Found, version};
use super::config_error::ConfigError;
use super::format::Family;
use super::keys::{Field, Key};
use super::rope_place::WINDOW_THETA;
use crate::checkpoint::json::kind;
use crate::{Result, notice};

/// A value that was taken.
struct Assumption {
    /// The key that says it, where one does in both versions.
    key: Option<String>,
    value: Value,
    /// What was taken, and why.
    note: String,
    /// Whether the version that wrote the file decides.
    is_decided: bool,
}

impl Config {
    /// Says once what is taken for values that nothing in the file decides, whatever command reads it.
    pub(super) fn note_assumptions(&self, family: &Family) -> Result<()> {
        for assumption in self.assumptions(family)? {
            if !assumption.is_decided {
                notice::once(assumption.note);
            }
        }
        Ok(())
    }

    /// What is taken because of the version that wrote the file.
    pub(super) fn decided_assumptions(&self, family: &Family) -> Result<Vec<String>> {
        let all = self.assumptions(family)?.into_iter();
        Ok(all
            .filter(|assumption| assumption.is_decided)
            .map(|assumption| assumption.note)
            .collect())
    }

    /// Adds to `json`, this config as it will be written, the values that were taken, so that both versions of transformers read
    /// the same. Returns what was taken because of the version that wrote the file.
    pub(crate) fn say_assumptions(&self, json: &mut Map<String, Value>) -> Result<Vec<String>> {
        // A model of a family that is not known is copied as it is.
        let Ok(family) = Family::of(self) else {
            return Ok(Vec::new());
        };
        for assumption in self.assumptions(&family)? {
            if let Some(key) = assumption.key {
                json.insert(key, assumption.value);
            }
        }
        self.decided_assumptions(&family)
    }

    fn assumptions(&self, family: &Family) -> Result<Vec<Assumption>> {
        let [theta, local, activation] =
            [Field::RopeTheta, Field::RopeLocalTheta, Field::HiddenAct]
                .map(|field| &family.keys[field]);
        let found = [
            self.absent_theta(theta)?,
            self.absent_local_theta(family, local)?,
            self.read_otherwise(activation)?,
        ];
        Ok(found.into_iter().flatten().collect())
    }

    /// The base of rotary positions, where it is absent and the versions have different defaults.
    fn absent_theta(&self, key: &Key) -> Result<Option<Assumption>> {
        let names = self.counted(key)?.iter().map(String::as_str);
        let names = names.chain([FULL_THETA]);
        let absent = self.find(names)? == Found::Absent;
        let (Some(of_4), Some(of_5), Some(name), true) =
            (&key.default_before_5, &key.default, key.name(), absent)
        else {
            return Ok(None);
        };
        let (taken, by) = match self.transformers() {
            Some(major) if major < 5 => (of_4, "transformers 4, which wrote the file"),
            Some(_) => (of_5, "transformers 5, which wrote the file"),
            None => (of_4, "transformers 4, as the file says no version"),
        };
        Ok(Some(Assumption {
            key: Some(name.to_owned()),
            value: taken.clone(),
            note: format!(
                "{}: `{name}` is not said and is taken to be {taken}, the default of {by}; it is {of_4} in transformers 4 and {of_5} in 5",
                self.path.display()
            ),
            is_decided: self.transformers().is_some(),
        }))
    }

    /// The base in layers with a window, where one version gives them the base of the others.
    fn absent_local_theta(&self, family: &Family, key: &Key) -> Result<Option<Assumption>> {
        let names = key.names.iter().map(String::as_str).chain([WINDOW_THETA]);
        let (Some(Value::String(_)), Some(of_5), Found::Absent) =
            (&key.default_before_5, &key.default, self.find(names)?)
        else {
            return Ok(None);
        };
        let outer = family.theta_name();
        let Found::Value(_, of_4) = self.find([outer, FULL_THETA])? else {
            return Ok(None);
        };
        if of_4.as_f64() == of_5.as_f64() || self.transformers().is_some() {
            return Ok(None);
        }
        Ok(Some(Assumption {
            key: None,
            value: of_4.clone(),
            note: format!(
                "{}: layers with a window rotate with `{outer}` {of_4}, as in transformers 4, because the file says no version; transformers 5 takes {of_5}",
                self.path.display()
            ),
            is_decided: false,
        }))
    }

    /// A value in whose place the class of transformers 5 reads another.
    fn read_otherwise(&self, key: &Key) -> Result<Option<Assumption>> {
        let Found::Value(name, value) = self.find(key.names.iter().map(String::as_str))? else {
            return Ok(None);
        };
        let Some(taken) = key.read_as(value) else {
            return Ok(None);
        };
        if let Some(since) = &key.literal_since {
            let writer = self.writer();
            let takes_it_literally = |found| version(since) <= Some(found) && found < (5, 0);
            if writer.is_none_or(takes_it_literally) {
                return Err(ConfigError::TwoReadings {
                    path: self.path.clone(),
                    key: name.to_owned(),
                    found: kind(value).into(),
                    taken: kind(taken).into(),
                    since: since.as_str().into(),
                }
                .into());
            }
        }
        Ok(Some(Assumption {
            key: Some(name.to_owned()),
            value: taken.clone(),
            note: format!(
                "{}: `{name}` is {} and is taken for {}, as in the version of transformers that wrote the file; 4.57 does not",
                self.path.display(),
                kind(value),
                kind(taken)
            ),
            is_decided: false,
        }))
    }
}
