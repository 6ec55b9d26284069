//! Spellings that mean the same: scalings of rotary positions, and JSON values.

use serde_json::{Map, Value};

/// A RoPE scaling without `rope_theta` and with `rope_type` in its new spelling; `None` where it is the plain RoPE.
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
            .filter(|(key, _)| !["rope_type", "type", "rope_theta"].contains(&key.as_str()))
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
