//! Where a configuration says the base of rotary positions, their scaling, and the part of each head that rotates.

use serde_json::Value;

use super::config::{Config, FULL_THETA, Found};
use super::config_error::ConfigError;
use super::format::Family;
use super::keys::Field;
use crate::Result;

/// The keys of the objects of rotary positions in `rope_parameters`, in a model whose kinds of layers rotate differently.
pub(super) const LAYER_KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// The base of rotary positions in layers with a window, where kinds of layers rotate differently.
pub(super) const WINDOW_THETA: &str = "rope_parameters.sliding_attention.rope_theta";

/// The part of each head that is rotated. Most classes of dense families do not read the key: transformers 4 fails where it
/// is there, and transformers 5 ignores it.
pub(super) fn partial_rotary_factor(config: &Config, family: &Family) -> Result<Option<f64>> {
    const NAMES: [&str; 5] = [
        "partial_rotary_factor",
        "rope_parameters.partial_rotary_factor",
        "rope_scaling.partial_rotary_factor",
        "rope_parameters.full_attention.partial_rotary_factor",
        "rope_parameters.sliding_attention.partial_rotary_factor",
    ];
    let key = &family.keys[Field::PartialRotaryFactor];
    let own = key.names.iter().map(String::as_str);
    // A class with another key for it does not read this one.
    let is_renamed = key.name().is_some_and(|name| name != NAMES[0]);
    let others = NAMES.into_iter().skip(usize::from(is_renamed));
    // Version 5 takes what an object says, and cannot compute with null, whatever is said beside it.
    let is_null = |name: &&str| config.at(name) == Some(&Value::Null);
    let inner = NAMES.into_iter().skip(1).find(is_null);
    if let (Some(name), false, true) = (inner, key.names.is_empty(), by_5(config)) {
        return Err(config.wrong(name, "a number above 0 up to 1", &Value::Null));
    }
    let (name, value) = match config.find(own.chain(others))? {
        Found::Value(name, value) => (name, value),
        Found::Absent | Found::Null => match config.default(key) {
            Some(value) => (NAMES[0], value),
            None => return Ok(None),
        },
    };
    let factor = value
        .as_f64()
        .filter(|factor| *factor > 0.0 && *factor <= 1.0)
        .ok_or_else(|| config.wrong(name, "a number above 0 up to 1", value))?;
    if factor == 1.0 {
        return Ok(None);
    }
    if key.names.is_empty() && key.default.is_none() {
        return Err(ConfigError::WholeHeads {
            path: config.path.clone(),
            key: name.to_owned(),
            found: factor,
            family: family.name.clone(),
        }
        .into());
    }
    Ok(Some(factor))
}

/// Whether the file is one that version 5 reads rightly.
fn by_5(config: &Config) -> bool {
    config.transformers().is_none_or(|major| major >= 5)
}

/// Where a configuration says how layers rotate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RopePlace {
    /// The objects that may hold the scaling; only transformers 5 reads the last.
    pub(super) objects: &'static [&'static str],
    /// The base in that object.
    inner_theta: &'static str,
    /// The key of the base beside it.
    theta: Field,
}

/// The place of models in which all layers rotate in one way.
pub(super) const EVERY_LAYER: RopePlace = RopePlace {
    objects: &["rope_scaling", "rope_parameters"],
    inner_theta: "rope_parameters.rope_theta",
    theta: Field::RopeTheta,
};

/// The place of layers that see all positions.
pub(super) const FULL_LAYERS: RopePlace = RopePlace {
    objects: &["rope_scaling", "rope_parameters.full_attention"],
    inner_theta: FULL_THETA,
    theta: Field::RopeTheta,
};

/// The place of layers with a window, which transformers 4 never scales.
pub(super) const WINDOW_LAYERS: RopePlace = RopePlace {
    objects: &["rope_parameters.sliding_attention"],
    inner_theta: WINDOW_THETA,
    theta: Field::RopeLocalTheta,
};

/// The base of the rotary frequencies, where the configuration says it or the class has a number for it.
pub(super) fn rope_theta(
    config: &Config,
    family: &Family,
    place: &RopePlace,
) -> Result<Option<f64>> {
    let key = &family.keys[place.theta];
    let outer: &str = match place.theta {
        Field::RopeTheta => family.theta_name(),
        _ => key.name().unwrap_or_default(),
    };
    let inner = (*place != EVERY_LAYER).then_some(place.inner_theta);
    let names = config.counted(key)?.iter().map(String::as_str);
    let theta = match config.find(names.chain(inner))? {
        Found::Value(name, value) => Some(config.as_number(name, value, f64::MIN_POSITIVE)?),
        Found::Null => None,
        Found::Absent => match config.default(key) {
            // The default of another base, which is the caller's.
            None | Some(Value::Null | Value::String(_)) => None,
            Some(value) => {
                Some(config.as_number(key.name().unwrap_or_default(), value, f64::MIN_POSITIVE)?)
            }
        },
    };
    let absent = |name| {
        config
            .find([name])
            .map(|found| !matches!(found, Found::Value(..)))
    };
    if family.says_layouts() || !absent(outer)? || absent(place.inner_theta)? {
        return Ok(theta);
    }
    // Where version 4 gives these layers the base of the others, that base says the same.
    if let (Some(Value::String(_)), Found::Value(_, others)) =
        (&key.default_before_5, config.find([family.theta_name()])?)
        && others.as_f64() == theta
    {
        return Ok(theta);
    }
    // Both versions take all of `rope_scaling` instead where that says anything, and version 4 never reads the other.
    let scaled = *place == EVERY_LAYER
        && matches!(config.json.get("rope_scaling"), Some(Value::Object(map)) if !map.is_empty());
    if scaled || config.transformers().is_some_and(|major| major < 5) {
        return Err(ConfigError::UnreadTheta {
            path: config.path.clone(),
            key: place.inner_theta,
        }
        .into());
    }
    Ok(theta)
}
