//! Scaled rotary positions as transformers reads them (`modeling_rope_utils.py`), with every value that it would infer.
//!
//! The two versions read some files differently. What both read the same way, or only one can read, is resolved; the rest is refused.

use serde_json::{Map, Value, json};

use super::config::Config;
use super::config_error::{ConfigError, ORIGINAL};
use super::rope_place::{FULL_LAYERS, RopePlace};
use super::spelling::{LONGROPE, name_longrope, normalised, same_value, without_outer};
use crate::checkpoint::json::kind;
use crate::printable::excerpts;
use crate::{Error, Result};

/// What the values of a scaling depend on.
pub(crate) struct RopeContext {
    /// Dimensions of each head that are rotated.
    pub(crate) rotary: u64,
    /// Longest context that the model was made for.
    pub(crate) longest: Option<u64>,
    /// Whether the class that reads the file is this program's own, the same under each version of transformers.
    pub(crate) own_class: bool,
    /// Whether the class has the original context beside the scaling, with a default of its own, and longrope alone (Phi-3).
    pub(crate) has_outer_original: bool,
}

/// A kind of scaling: its keys beside `rope_type`.
struct Kind {
    name: &'static str,
    required: &'static [&'static str],
    optional: &'static [&'static str],
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "default",
        required: &[],
        optional: &[],
    },
    Kind {
        name: "linear",
        required: &["factor"],
        optional: &[],
    },
    Kind {
        name: "dynamic",
        required: &["factor"],
        optional: &[],
    },
    Kind {
        name: "yarn",
        required: &[],
        optional: &[
            "factor",
            ORIGINAL,
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
    },
    Kind {
        name: LONGROPE,
        required: &["short_factor", "long_factor"],
        optional: &["factor", ORIGINAL, "attention_factor"],
    },
    Kind {
        name: "llama3",
        required: &["factor", "low_freq_factor", "high_freq_factor"],
        optional: &[ORIGINAL],
    },
];

/// Whether objects of rotary positions have a key of that name.
pub(super) fn is_rope_key(name: &str) -> bool {
    ["rope_type", "type", "rope_theta", "partial_rotary_factor"].contains(&name)
        || KINDS
            .iter()
            .any(|kind| kind.required.contains(&name) || kind.optional.contains(&name))
}

impl Config {
    /// The RoPE scaling of either spelling with all its values, `rope_type` first; `None` for the plain RoPE.
    pub(super) fn rope_scaling(
        &self,
        place: &RopePlace,
        context: &RopeContext,
    ) -> Result<Option<Value>> {
        let mut found: Option<(&'static str, Option<Map<String, Value>>)> = None;
        for name in place.objects.iter().copied() {
            let object = match self.at(name) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(object)) if object.is_empty() => continue,
                Some(Value::Object(object)) => object,
                Some(other) => return Err(self.wrong(name, "an object", other)),
            };
            self.check_rope_type(name, place, object)?;
            let mut scaling = normalised(object);
            if context.has_outer_original {
                scaling = scaling
                    .map(|scaling| self.only_longrope(name, scaling))
                    .transpose()?;
            }
            match &found {
                Some((first, earlier)) if !same_scaling(earlier, &scaling, context) => {
                    let [value, other_value] = excerpts(&shown(earlier), &shown(&scaling));
                    return Err(ConfigError::TwoSpellings {
                        path: self.path.clone(),
                        key: (*first).to_owned(),
                        value: value.into(),
                        other: name.to_owned(),
                        other_value: other_value.into(),
                    }
                    .into());
                }
                Some(_) => {}
                None => found = Some((name, scaling)),
            }
        }
        if let Some((name, Some(_))) = found
            && name != "rope_scaling"
            && !context.own_class
            && self.transformers().is_some_and(|major| major < 5)
        {
            return Err(ConfigError::UnreadScaling {
                path: self.path.clone(),
                key: name,
            }
            .into());
        }
        match found {
            Some((name, Some(values))) => Scaling {
                config: self,
                name,
                values,
                context,
            }
            .resolved()
            .map(|values| Some(Value::Object(values))),
            _ => Ok(None),
        }
    }

    /// A scaling as the class of Phi-3 reads it, which has no other than longrope.
    fn only_longrope(
        &self,
        name: &str,
        mut scaling: Map<String, Value>,
    ) -> Result<Map<String, Value>> {
        name_longrope(&mut scaling);
        let found = scaling.get("rope_type").and_then(Value::as_str);
        if found != Some(LONGROPE) {
            return Err(ConfigError::UnknownName {
                path: self.path.clone(),
                key: format!("{name}.rope_type"),
                what: "scaling of this family",
                known: vec!["default", LONGROPE],
                found: found.unwrap_or_default().to_owned(),
            }
            .into());
        }
        Ok(scaling)
    }

    /// Whether transformers 4 can read a longrope: under `rope_scaling`, and with three keys alone in the class of Phi-3.
    fn is_read_by_4(&self, name: &str, context: &RopeContext) -> bool {
        let scaling = self.json.get(name).and_then(Value::as_object);
        let is_readable = |scaling: &Map<String, Value>| {
            !context.has_outer_original || scaling.len() == 3 && scaling.contains_key("type")
        };
        name == "rope_scaling" && scaling.is_some_and(is_readable)
    }

    fn check_rope_type(
        &self,
        name: &str,
        place: &RopePlace,
        object: &Map<String, Value>,
    ) -> Result<()> {
        let key = |inner: &str| format!("{name}.{inner}");
        if let Some((inner, value)) = object.iter().find(|(_, value)| value.is_object()) {
            return Err(ConfigError::NotComputed {
                path: self.path.clone(),
                key: key(inner),
                found: kind(value),
                because: "all layers rotate in one way".into(),
            }
            .into());
        }
        if *place == FULL_LAYERS
            && name == "rope_scaling"
            && !object.contains_key("rope_type")
            && object.contains_key("type")
        {
            return Err(ConfigError::OldType {
                path: self.path.clone(),
                key: key("type"),
            }
            .into());
        }
        for inner in ["rope_type", "type"] {
            if let Some(value) = object.get(inner).filter(|value| !value.is_string()) {
                return Err(self.wrong(&key(inner), "a string", value));
            }
        }
        if let (Some(new), Some(old)) = (object.get("rope_type"), object.get("type"))
            && new != old
        {
            return Err(ConfigError::TwoSpellings {
                path: self.path.clone(),
                key: key("rope_type"),
                value: kind(new).into(),
                other: key("type"),
                other_value: kind(old).into(),
            }
            .into());
        }
        Ok(())
    }
}

/// The factor on cosines and sines that classes take for a context longer by `factor` than the original one.
pub(super) fn longrope_factor(factor: f64, original: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        (1.0 + factor.ln() / original.ln()).sqrt()
    }
}

/// A scaling in words.
fn shown(scaling: &Option<Map<String, Value>>) -> String {
    match scaling {
        Some(map) => Value::Object(map.clone()).to_string(),
        None => "no scaling".to_owned(),
    }
}

fn same_scaling(
    a: &Option<Map<String, Value>>,
    b: &Option<Map<String, Value>>,
    context: &RopeContext,
) -> bool {
    let values = |scaling: &Map<String, Value>| {
        Value::Object(if context.has_outer_original {
            without_outer(scaling.clone())
        } else {
            scaling.clone()
        })
    };
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => same_value(&values(a), &values(b)),
        _ => false,
    }
}

/// One scaling, and the key that holds it.
struct Scaling<'a> {
    config: &'a Config,
    /// `rope_scaling`, `rope_parameters` or an object in that.
    name: &'static str,
    values: Map<String, Value>,
    context: &'a RopeContext,
}

impl Scaling<'_> {
    /// The values of its kind: checked, and those that transformers would infer said.
    fn resolved(mut self) -> Result<Map<String, Value>> {
        let text = self.values.get("rope_type").and_then(Value::as_str);
        let text = text.unwrap_or_default().to_owned();
        let names = KINDS.map(|kind| kind.name);
        let Some(kind) = KINDS.into_iter().find(|kind| kind.name == text) else {
            return Err(ConfigError::UnknownName {
                path: self.config.path.clone(),
                key: format!("{}.rope_type", self.name),
                what: "scaling",
                known: names.to_vec(),
                found: text,
            }
            .into());
        };
        for key in kind.required {
            self.check(key, true)?;
        }
        for key in kind.optional {
            self.check(key, false)?;
        }
        // Keys of other kinds stay: no reader looks at them, and a format without a place for them can say so.
        self.values
            .retain(|key, value| key == "factor" || !value.is_null());
        match kind.name {
            "llama3" => {
                self.say_original()?;
                let [low, high] =
                    ["low_freq_factor", "high_freq_factor"].map(|key| self.number(key));
                if low >= high {
                    let expected = format!(
                        "more than low_freq_factor {}",
                        self.values["low_freq_factor"]
                    );
                    return Err(self.config.unexpected(
                        &format!("{}.high_freq_factor", self.name),
                        expected,
                        &self.values["high_freq_factor"],
                    ));
                }
            }
            "yarn" => {
                let original = self.say_original()?;
                match self.values.get("factor") {
                    None => return Err(self.missing("factor", "a number above 0")),
                    Some(Value::Null) => {
                        let factor = self.longest()? as f64 / original;
                        self.say("factor", factor);
                    }
                    Some(_) => {}
                }
            }
            LONGROPE => self.resolve_longrope()?,
            "dynamic" => _ = self.longest()?,
            _ => {}
        }
        Ok(self.values)
    }

    /// Refuses a value of the wrong kind, and one that is missing where it is required.
    fn check(&self, key: &str, required: bool) -> Result<()> {
        let list = matches!(key, "short_factor" | "long_factor");
        let pairs = self.context.rotary / 2;
        let expected = if list {
            format!("{pairs} numbers above 0, one for each pair of rotated dimensions")
        } else if key == "truncate" {
            "true or false".to_owned()
        } else {
            "a number above 0".to_owned()
        };
        let positive = |value: &Value| value.as_f64().is_some_and(|x| x.is_finite() && x > 0.0);
        let right = match self.values.get(key) {
            None if required => return Err(self.missing(key, &expected)),
            None => return Ok(()),
            // Python passes over these, but takes a null `truncate` for false and cannot divide by a null context.
            Some(Value::Null) if !required && !matches!(key, "truncate" | ORIGINAL) => {
                return Ok(());
            }
            Some(Value::Array(items)) if list => {
                items.len() as u64 == pairs && items.iter().all(positive)
            }
            Some(value) if key == "truncate" => value.is_boolean(),
            Some(value) => !list && positive(value),
        };
        if right {
            return Ok(());
        }
        let name = format!("{}.{key}", self.name);
        Err(self.config.wrong(&name, &expected, &self.values[key]))
    }

    /// Says the original context, which both versions read from the scaling or take as the whole context.
    fn say_original(&mut self) -> Result<f64> {
        let inner = self.values.get(ORIGINAL).and_then(Value::as_f64);
        let outer = self.outer_original()?;
        if let Some(outer) = outer
            && inner != Some(outer)
        {
            return Err(ConfigError::OuterOriginal {
                path: self.config.path.clone(),
                found: outer,
                scaling: self.name,
            }
            .into());
        }
        match inner {
            Some(original) => Ok(original),
            None => {
                let longest = self.longest()?;
                self.values.insert(ORIGINAL.to_owned(), json!(longest));
                Ok(longest as f64)
            }
        }
    }

    /// The key beside the scaling, where Phi-3 has it.
    fn outer_original(&self) -> Result<Option<f64>> {
        match self.config.json.get(ORIGINAL) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self
                .config
                .as_count(ORIGINAL, value)
                .map(|count| Some(count as f64)),
        }
    }

    /// Says the original context and the factor on cosines and sines.
    fn resolve_longrope(&mut self) -> Result<()> {
        let longest = self.longest()? as f64;
        let [inner, factor, said] =
            [ORIGINAL, "factor", "attention_factor"].map(|key| self.number(key));
        let outer = self.outer_original()?;
        if outer.is_none() && self.context.has_outer_original {
            return Err(self.config.missing(ORIGINAL, "a positive integer"));
        }
        let attention = |factor: Option<f64>, original: f64| match (said, factor) {
            (Some(said), _) => Some(said),
            (None, factor) => factor.map(|factor| longrope_factor(factor, original)),
        };
        let original = outer.or(inner).unwrap_or(longest);
        let of_5 = (
            original,
            attention(Some(factor.unwrap_or(longest / original)), original),
        );
        let of_4 = match outer {
            Some(outer) => (outer, attention(Some(longest / outer), outer)),
            None => (longest, attention(factor, longest)),
        };
        let read_by_4 = self.config.is_read_by_4(self.name, self.context) && of_4.1.is_some();
        // Without a factor transformers 4 fails, so the file cannot mean what that version computes.
        let written_by_4 = self.config.transformers().is_some_and(|major| major < 5);
        if read_by_4 && of_4 != of_5 || written_by_4 && of_4.1.is_none() {
            return Err(ConfigError::TwoLongropes {
                path: self.config.path.clone(),
                key: self.name,
            }
            .into());
        }
        self.values
            .insert(ORIGINAL.to_owned(), json!(original as u64));
        self.values.shift_remove("factor");
        if let Some(attention) = of_5.1.filter(|_| said.is_none()) {
            self.say("attention_factor", attention);
        }
        Ok(())
    }

    fn say(&mut self, key: &str, value: f64) {
        self.values.insert(key.to_owned(), json!(value));
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.values.get(key).and_then(Value::as_f64)
    }

    fn longest(&self) -> Result<u64> {
        self.context.longest.ok_or_else(|| {
            self.config
                .missing("max_position_embeddings", "a positive integer")
        })
    }

    fn missing(&self, key: &str, expected: &str) -> Error {
        self.config
            .missing(&format!("{}.{key}", self.name), expected)
    }
}
