//! Keys that Hugging Face spells in two ways: `torch_dtype`/`dtype`, and `rope_theta` with `rope_scaling` against
//! `rope_parameters`.

use serde_json::{Map, Value};

use super::known::families;

/// Adds the missing spelling of the dtype and of the RoPE keys. No value changes, and a config without either spelling
/// gets neither.
pub fn both_spellings(config: &mut Map<String, Value>) {
    let stands = |config: &Map<String, Value>, name: &str| {
        config.get(name).filter(|v| !v.is_null()).cloned()
    };
    for (name, other) in [("dtype", "torch_dtype"), ("torch_dtype", "dtype")] {
        if let Some(value) = stands(config, name)
            && stands(config, other).is_none()
        {
            config.insert(other.to_owned(), value);
        }
    }
    if !has_one_rotary_embedding(config) {
        return;
    }
    match stands(config, "rope_parameters") {
        Some(Value::Object(mut parameters)) if !parameters.is_empty() => {
            if let (Some(theta), None) =
                (stands(config, "rope_theta"), parameters.get("rope_theta"))
            {
                parameters.insert("rope_theta".to_owned(), theta);
                config.insert(
                    "rope_parameters".to_owned(),
                    Value::Object(parameters.clone()),
                );
            }
            if let (Some(theta), None) =
                (parameters.get("rope_theta"), stands(config, "rope_theta"))
            {
                config.insert("rope_theta".to_owned(), theta.clone());
            }
            if let (Some(scaling), None) = (normalised(&parameters), stands(config, "rope_scaling"))
            {
                config.insert("rope_scaling".to_owned(), Value::Object(scaling));
            }
        }
        Some(other) if !other.is_object() => {}
        _ => {
            let theta = stands(config, "rope_theta");
            let scaling = stands(config, "rope_scaling");
            let scaling = scaling.as_ref().and_then(Value::as_object);
            let inner = scaling.and_then(|scaling| scaling.get("rope_theta"));
            let mut parameters = Map::new();
            parameters.extend(
                theta
                    .as_ref()
                    .or(inner)
                    .map(|theta| ("rope_theta".to_owned(), theta.clone())),
            );
            match scaling.and_then(normalised) {
                Some(scaling) => parameters.extend(scaling),
                None if parameters.is_empty() => return,
                None => _ = parameters.insert("rope_type".to_owned(), Value::from("default")),
            }
            config.insert("rope_parameters".to_owned(), Value::Object(parameters));
        }
    }
}

/// Whether all layers of a model are known to have the same rotary embedding. In other families, such as Gemma 3,
/// `rope_parameters` may need an entry for each kind of layer.
fn has_one_rotary_embedding(config: &Map<String, Value>) -> bool {
    let is_known = |name: &str| {
        families().is_ok_and(|families| {
            let mut types = families.iter().flat_map(|family| &family.model_types);
            types.any(|known| known == name)
        })
    };
    match config.get("model_type") {
        Some(Value::String(name)) => is_known(name),
        _ => true,
    }
}

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
