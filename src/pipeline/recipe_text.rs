//! A recorded recipe as a recipe that can be read and run.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::checkpoint::recipe::StageRecord;
use crate::{Error, Result};

/// The YAML of a recipe of these stages, whose `sources` lie where the map says, as seen from the work folder.
pub(super) fn of(stages: &[StageRecord], sources: &BTreeMap<String, String>) -> Result<String> {
    let mut recipe = Map::new();
    if !sources.is_empty() {
        recipe.insert("variables".to_owned(), json!(sources));
    }
    recipe.insert("stages".to_owned(), stages.iter().map(stage).collect());
    serde_saphyr::to_string(&recipe).map_err(|e| Error::compute("write the recipe", e))
}

fn stage(stage: &StageRecord) -> Value {
    let settings = stage.settings.iter().map(|(key, values)| {
        let value = match &values[..] {
            [one] => plain(one),
            all => all.iter().map(|value| plain(value)).collect(),
        };
        (key.clone(), value)
    });
    let mut entry = Map::new();
    entry.insert("name".to_owned(), json!(stage.name));
    entry.insert(
        stage.command.clone(),
        settings.collect::<Map<_, _>>().into(),
    );
    if let Some(file) = &stage.stdout {
        entry.insert("stdout".to_owned(), json!(file));
    }
    entry.into()
}

/// A number or truth value as one would write it, if a reader gets the same text back.
fn plain(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    match &value {
        Value::Bool(_) => value,
        Value::Number(number) if number.is_u64() && number.to_string() == text => value,
        Value::Number(number)
            if number.is_f64() && number.as_f64().is_some_and(|n| n.to_string() == text) =>
        {
            value
        }
        _ => text.into(),
    }
}
