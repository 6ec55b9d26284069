//! Both spellings of the keys that Hugging Face spells in two ways: `torch_dtype`/`dtype`, and `rope_theta` with
//! `rope_scaling` against `rope_parameters`.

use serde_json::{Map, Value, json};

use super::config::{Config, Found};
use super::config_error::ORIGINAL;
use super::format::Family;
use super::keys::Field;
use super::known::embedded;
use super::rope::longrope_factor;
use super::rope_place::LAYER_KINDS;
use super::spelling::{LONGROPE, name_longrope, normalised, without_outer};

/// Adds the missing spelling of the dtype and of the RoPE keys. No value changes, and a config without either spelling
/// gets neither.
pub fn both_spellings(config: &mut Map<String, Value>) {
    for (name, other) in [("dtype", "torch_dtype"), ("torch_dtype", "dtype")] {
        if let Some(value) = said(config, name)
            && said(config, other).is_none()
        {
            config.insert(other.to_owned(), value);
        }
    }
    let Some(name) = config.get("model_type").and_then(Value::as_str) else {
        return both_of_every_layer(config, None);
    };
    // In families that are not known, `rope_parameters` may need an entry for each kind of layer.
    let Ok(Some(family)) = embedded(Some(name), None) else {
        return;
    };
    let by_kind = family.keys.has(Field::RopeLocalTheta);
    if !by_kind || family.says_layouts() && !has_kinds(config) {
        let had_scaling = said(config, "rope_scaling").is_some();
        both_of_every_layer(config, Some(family));
        if !family.says_layouts() {
            say_beside(config, family);
        }
        // Transformers 4 would not obey it.
        let is_refused = |key: &str| family.refused.iter().any(|refused| refused.key == key);
        if !had_scaling && is_refused("rope_scaling") {
            config.shift_remove("rope_scaling");
        }
    } else if !family.says_layouts() {
        both_of_kinds(config, family);
    }
}

/// The value of a key, if it is not null.
fn said(config: &Map<String, Value>, name: &str) -> Option<Value> {
    config.get(name).filter(|value| !value.is_null()).cloned()
}

/// Whether kinds of layers have rotary positions of their own.
fn has_kinds(config: &Map<String, Value>) -> bool {
    let parameters = config.get("rope_parameters");
    parameters.is_some_and(|values| LAYER_KINDS.iter().any(|kind| values.get(kind).is_some()))
}

/// The RoPE keys of a model in which all layers rotate in one way.
fn both_of_every_layer(config: &mut Map<String, Value>, family: Option<&Family>) {
    let theta_name = family.map_or("rope_theta", Family::theta_name);
    let has_outer_original = family.is_some_and(|family| family.says(ORIGINAL));
    if has_outer_original {
        for name in ["rope_scaling", "rope_parameters"] {
            if let Some(Value::Object(scaling)) = config.get_mut(name) {
                name_longrope(scaling);
            }
        }
    }
    let theta = said(config, theta_name);
    match said(config, "rope_parameters") {
        Some(Value::Object(mut parameters)) if !parameters.is_empty() => {
            if let (Some(theta), None) = (&theta, parameters.get("rope_theta")) {
                parameters.insert("rope_theta".to_owned(), theta.clone());
            }
            if let (Some(inner), None) = (parameters.get("rope_theta"), &theta) {
                config.insert(theta_name.to_owned(), inner.clone());
            }
            let is_new = said(config, "rope_scaling").is_none();
            if is_new && !has_outer_original {
                spell_out_longrope(config, &mut parameters);
            }
            if let (Some(scaling), true) = (normalised(&parameters), is_new) {
                let scaling = if has_outer_original {
                    without_outer(scaling)
                } else {
                    scaling
                };
                config.insert("rope_scaling".to_owned(), Value::Object(scaling));
            }
            config.insert("rope_parameters".to_owned(), Value::Object(parameters));
        }
        Some(other) if !other.is_object() => {}
        _ => {
            let scaling = said(config, "rope_scaling");
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

/// Says the values of a longrope in `rope_parameters` that transformers 4 would take from elsewhere: the original context beside
/// it, and the factor on cosines and sines.
fn spell_out_longrope(config: &mut Map<String, Value>, parameters: &mut Map<String, Value>) {
    if parameters.get("rope_type").and_then(Value::as_str) != Some(LONGROPE) {
        return;
    }
    let original = said(config, ORIGINAL).or_else(|| said(parameters, ORIGINAL));
    let longest = config
        .get("max_position_embeddings")
        .and_then(Value::as_f64);
    let (Some(value), Some(longest)) = (original, longest) else {
        return;
    };
    let Some(original) = value.as_f64().filter(|original| *original != longest) else {
        return;
    };
    let factor = parameters.get("factor").and_then(Value::as_f64);
    if said(parameters, "attention_factor").is_none() {
        let attention = longrope_factor(factor.unwrap_or(longest / original), original);
        parameters.insert("attention_factor".to_owned(), json!(attention));
    }
    config.entry(ORIGINAL).or_insert(value);
}

/// Says the values in `rope_parameters` under the family's own keys beside it, which its class in transformers 4 reads.
fn say_beside(config: &mut Map<String, Value>, family: &Family) {
    for field in [Field::RopeTheta, Field::PartialRotaryFactor] {
        let names = &family.keys[field].names;
        let Some(beside) = names.iter().find(|name| !name.contains('.')) else {
            continue;
        };
        let mut inner = names
            .iter()
            .filter_map(|name| name.strip_prefix("rope_parameters."));
        let parameters = config.get("rope_parameters");
        let value = inner.find_map(|inner| parameters?.get(inner).cloned());
        if let (Some(value), None) = (value, said(config, beside)) {
            config.insert(beside.clone(), value);
        }
    }
}

/// The RoPE keys of a family in which kinds of layers rotate differently.
fn both_of_kinds(config: &mut Map<String, Value>, family: &Family) {
    let key = &family.keys[Field::RopeLocalTheta];
    let local = key.name();
    let [theta, scaling] = ["rope_theta", "rope_scaling"].map(|name| said(config, name));
    if has_kinds(config) {
        let of = |kind: &str| config["rope_parameters"].get(kind)?.as_object().cloned();
        let [full, sliding] = LAYER_KINDS.map(of).map(Option::unwrap_or_default);
        let old = [
            (Some("rope_theta"), full.get("rope_theta").cloned()),
            (Some("rope_scaling"), normalised(&full).map(Value::Object)),
            (local, sliding.get("rope_theta").cloned()),
        ];
        for (name, value) in old {
            if let (Some(name), Some(value)) = (name, value)
                && said(config, name).is_none()
            {
                config.insert(name.to_owned(), value);
            }
        }
        return;
    }
    if theta.is_none() && scaling.is_none() && local.is_none_or(|name| said(config, name).is_none())
    {
        return;
    }
    let source = Config::from_json("config.json", config.clone());
    let local = match source.lookup(key) {
        // The default of another base is its name.
        Ok(Found::Value(_, Value::String(_))) => theta.clone(),
        Ok(Found::Value(_, value)) => Some(value.clone()),
        _ => None,
    };
    let scaling = scaling.as_ref().and_then(Value::as_object);
    let kinds = [(scaling.and_then(normalised), theta), (None, local)];
    let values = kinds.map(|(scaling, theta)| {
        let mut values = scaling.unwrap_or_default();
        values.entry("rope_type").or_insert(json!("default"));
        values.extend(theta.map(|theta| ("rope_theta".to_owned(), theta)));
        Value::Object(values)
    });
    let kinds = LAYER_KINDS.map(str::to_owned).into_iter().zip(values);
    config.insert("rope_parameters".to_owned(), Value::Object(kinds.collect()));
}
