//! Spellings that mean the same: scalings of rotary positions, and JSON values.

use serde_json::{Map, Value};

use super::config_error::ORIGINAL;

/// Keys in the objects of rotary positions that are no part of a scaling.
const BESIDE: [&str; 5] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    QUERY_SCALE,
];

/// The weight of a factor on queries, which only Ministral 3 has there. Other classes do not read it.
const QUERY_SCALE: &str = "llama_4_scaling_beta";

/// The scaling with a factor for each frequency.
pub(super) const LONGROPE: &str = "longrope";

/// Gives a longrope its name where it has one of its names in the first published files of Phi-3.
pub(super) fn name_longrope(scaling: &mut Map<String, Value>) {
    for key in ["rope_type", "type"] {
        if let Some(name) = scaling.get_mut(key)
            && (*name == "su" || *name == "yarn")
        {
            *name = Value::from(LONGROPE);
        }
    }
}

/// A longrope as the class of Phi-3 in transformers 4 reads it, which refuses any other keys. Values that are said beside it are left
/// out, and `rope_type` has its old spelling.
pub(super) fn without_outer(mut scaling: Map<String, Value>) -> Map<String, Value> {
    if scaling.contains_key("attention_factor") {
        return scaling;
    }
    scaling.shift_remove(ORIGINAL);
    if let Some(kind) = scaling.shift_remove("rope_type") {
        scaling.shift_insert(0, "type".to_owned(), kind);
    }
    scaling
}

/// A RoPE scaling alone, with `rope_type` in its new spelling; `None` where it is the plain RoPE.
pub(super) fn normalised(scaling: &Map<String, Value>) -> Option<Map<String, Value>> {
    let kind = ["rope_type", "type"]
        .iter()
        .find_map(|name| scaling.get(*name))
        .filter(|kind| !kind.is_null())?;
    if kind == "default" {
        return None;
    }
    let mut normal = Map::new();
    normal.insert("rope_type".to_owned(), kind.clone());
    normal.extend(
        scaling
            .iter()
            .filter(|(key, _)| !BESIDE.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    Some(normal)
}

/// Whether two JSON values mean the same: numbers by value (`1` is `1.0`), objects whatever their order.
pub(crate) fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            x == y || (x.is_f64() || y.is_f64()) && x.as_f64() == y.as_f64()
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same_value(x, y))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len()
                && x.iter()
                    .all(|(key, x)| y.get(key).is_some_and(|y| same_value(x, y)))
        }
        _ => a == b,
    }
}
