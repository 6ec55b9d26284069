//! Parameters of merges, which may differ by tensor and by layer: `0.5`, `[0, 0.5, 1]`, `[{filter: mlp, value: 0.3}, {value: 0.5}]`.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

/// A parameter, which says one value for each tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// A number for every tensor.
    Number(f64),
    /// A switch for every tensor.
    Switch(bool),
    /// Numbers from the first layer to the last, evenly spaced; layers between them have values between them.
    Gradient(Vec<f64>),
    /// Switches from the first layer to the last, evenly spaced; layers between them have the one before.
    Switches(Vec<bool>),
    /// The first choice whose filter is a part of the tensor's name.
    Choices(Vec<Choice>),
}

/// A value for some tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// A part of their names; every tensor if absent.
    pub filter: Option<String>,
    /// The value, without further choices.
    pub value: Parameter,
}

/// The value of a parameter for one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setting {
    /// A number.
    Number(f64),
    /// A switch.
    Switch(bool),
}

/// The forms that a parameter may have, for errors.
const FORMS: &str =
    "a finite number, true, false, a list of numbers, or a list of {filter: TEXT, value: NUMBER}";

impl Parameter {
    /// A parameter from a value of JSON or YAML.
    ///
    /// # Errors
    /// What was expected and found.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let refused = || format!("expected {FORMS}, found {value}");
        match value {
            Value::Object(_) => Ok(Self::Choices(vec![choice(value)?])),
            Value::Array(entries) if entries.iter().any(Value::is_object) => {
                let choices = entries.iter().map(choice);
                Ok(Self::Choices(choices.collect::<Result<_, _>>()?))
            }
            other => plain(other).ok_or_else(refused),
        }
    }

    /// The value for a tensor at `position`: 0 in the first layer, 1 in the last or only one, 0 outside of layers.
    pub fn at(&self, tensor: &str, position: f64) -> Option<Setting> {
        match self {
            Self::Number(number) => Some(Setting::Number(*number)),
            Self::Switch(switch) => Some(Setting::Switch(*switch)),
            Self::Gradient(numbers) => {
                let last = numbers.len().checked_sub(1)?;
                let place = position * last as f64;
                let below = (place as usize).min(last);
                let part = place - below as f64;
                let above = numbers[(below + 1).min(last)];
                Some(Setting::Number(
                    (1.0 - part) * numbers[below] + part * above,
                ))
            }
            Self::Switches(switches) => {
                let switch = entry(switches, position)?;
                Some(Setting::Switch(*switch))
            }
            Self::Choices(choices) => {
                let chosen = choices.iter().find(|choice| choice.is_for(tensor))?;
                chosen.value.at(tensor, position)
            }
        }
    }

    /// The same where a switch is wanted: nothing is between two numbers of a list then.
    pub fn switch_at(&self, tensor: &str, position: f64) -> Option<Setting> {
        match self {
            Self::Gradient(numbers) => {
                let number = entry(numbers, position)?;
                Some(Setting::Number(*number))
            }
            Self::Choices(choices) => {
                let chosen = choices.iter().find(|choice| choice.is_for(tensor))?;
                chosen.value.switch_at(tensor, position)
            }
            other => other.at(tensor, position),
        }
    }

    /// The number that it is for every tensor, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The same as JSON.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Number(number) => json!(number),
            Self::Switch(switch) => json!(switch),
            Self::Gradient(numbers) => json!(numbers),
            Self::Switches(switches) => json!(switches),
            Self::Choices(choices) => choices.iter().map(Choice::to_value).collect(),
        }
    }
}

impl Choice {
    fn is_for(&self, tensor: &str) -> bool {
        let filter = self.filter.as_deref();
        filter.is_none_or(|filter| filter == "*" || tensor.contains(filter))
    }

    fn to_value(&self) -> Value {
        match &self.filter {
            Some(filter) => json!({"filter": filter, "value": self.value.to_value()}),
            None => json!({"value": self.value.to_value()}),
        }
    }
}

/// The entry of a list at `position`, or the one before it.
fn entry<T>(entries: &[T], position: f64) -> Option<&T> {
    let last = entries.len().checked_sub(1)?;
    entries.get((position * last as f64) as usize)
}

/// A parameter without choices.
fn plain(value: &Value) -> Option<Parameter> {
    let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
    match value {
        Value::Bool(switch) => Some(Parameter::Switch(*switch)),
        Value::Array(switches) if switches.first().is_some_and(Value::is_boolean) => {
            let switches: Option<Vec<bool>> = switches.iter().map(Value::as_bool).collect();
            switches.map(Parameter::Switches)
        }
        Value::Array(numbers) if !numbers.is_empty() => {
            let numbers: Option<Vec<f64>> = numbers.iter().map(number).collect();
            numbers.map(Parameter::Gradient)
        }
        other => number(other).map(Parameter::Number),
    }
}

fn choice(value: &Value) -> Result<Choice, String> {
    let refused = || format!("expected {{filter: TEXT, value: NUMBER}}, found {value}");
    let keys = value.as_object().ok_or_else(refused)?;
    if let Some(key) = keys
        .keys()
        .find(|key| !matches!(key.as_str(), "filter" | "value"))
    {
        return Err(format!(
            "expected the keys `filter` and `value`, found `{key}`"
        ));
    }
    let filter = match keys.get("filter") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => return Err(refused()),
    };
    let value = keys.get("value").and_then(plain).ok_or_else(refused)?;
    Ok(Choice { filter, value })
}

impl FromStr for Parameter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value: Value = serde_saphyr::from_str(text)
            .map_err(|_| format!("expected {FORMS}, found `{text}`"))?;
        Self::from_value(&value)
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.to_value().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, tensor: &str, position: f64) -> Option<f64> {
        match text.parse::<Parameter>().unwrap().at(tensor, position)? {
            Setting::Number(number) => Some(number),
            Setting::Switch(switch) => Some(f64::from(u8::from(switch))),
        }
    }

    #[test]
    fn gradients_are_interpolated_from_the_first_layer_to_the_last() {
        let found = [0.0, 0.25, 0.5, 0.75, 1.0].map(|place| at("[0, 1, 0.5]", "x", place).unwrap());
        assert_eq!(found, [0.0, 0.5, 1.0, 0.75, 0.5]);
        assert_eq!(at("[0.3]", "x", 1.0), Some(0.3));
        assert_eq!(at("0.5", "x", 1.0), Some(0.5));
        assert_eq!(at("true", "x", 1.0), Some(1.0));
    }

    #[test]
    fn nothing_is_between_two_switches() {
        for text in ["[false, true, false]", "[0, 1, 0]"] {
            let parameter: Parameter = text.parse().unwrap();
            let found = [0.0, 0.4, 0.5, 0.9, 1.0].map(|place| {
                match parameter.switch_at("x", place).unwrap() {
                    Setting::Switch(switch) => switch,
                    Setting::Number(number) => number == 1.0,
                }
            });
            assert_eq!(found, [false, false, true, true, false], "{text}");
            assert_eq!(parameter.to_string().parse(), Ok(parameter));
        }
    }

    #[test]
    fn the_first_choice_that_fits_counts() {
        let text = "[{filter: self_attn, value: [0, 1]}, {filter: mlp, value: 0.2}, {value: 0.5}]";
        assert_eq!(
            at(text, "model.layers.0.self_attn.q_proj.weight", 0.5),
            Some(0.5)
        );
        assert_eq!(
            at(text, "model.layers.0.mlp.up_proj.weight", 0.5),
            Some(0.2)
        );
        assert_eq!(at(text, "lm_head.weight", 0.5), Some(0.5));
        assert_eq!(at("{filter: mlp, value: 1}", "lm_head.weight", 0.5), None);
        assert_eq!(
            at("[{filter: '*', value: 1}]", "lm_head.weight", 0.5),
            Some(1.0)
        );
    }

    #[test]
    fn other_forms_are_refused_and_written_forms_are_read_again() {
        for text in [
            "[]",
            "abc",
            ".nan",
            ".inf",
            "[1, a]",
            "[true, 0]",
            "[0, true]",
            "{fliter: a, value: 1}",
            "[{filter: 3, value: 1}]",
            "{filter: a}",
        ] {
            text.parse::<Parameter>().unwrap_err();
        }
        let text = "[{filter: a, value: [0, 1]}, {value: 2}]";
        let parameter: Parameter = text.parse().unwrap();
        assert_eq!(parameter.to_string().parse(), Ok(parameter));
    }
}
