//! Sliding windows: how far attention looks back, and in which layers.

use serde_json::Value;

use super::config::{Config, Found};
use super::config_error::ConfigError;
use super::format::Family;
use super::keys::Field;
use super::layout::Layers;
use crate::Result;

/// The window, and the layers that it limits.
pub(super) fn windows(
    config: &Config,
    family: &Family,
    num_layers: u64,
) -> Result<(Option<u64>, Layers)> {
    let keys = &family.keys;
    let used = config.flag(&keys[Field::UseSlidingWindow])?.unwrap_or(true);
    let window = if used {
        config.count(&keys[Field::SlidingWindow])?
    } else {
        None
    };
    let listed = match config.lookup(&keys[Field::LayerTypes])? {
        Found::Value(name, value) => Some((name, sliding(config, name, value, num_layers)?)),
        Found::Absent | Found::Null => None,
    };
    let layers = match (window, listed) {
        // A BAM keeps what its seed says about a window that is not used.
        (None, Some((name, layers))) if !layers.is_empty() && !family.says_layouts() => {
            return Err(ConfigError::NoWindow {
                path: config.path.clone(),
                key: name.to_owned(),
            }
            .into());
        }
        (None, _) => return Ok((None, Layers::All)),
        (Some(_), Some((_, layers))) => layers,
        (Some(_), None) => {
            if !family.says_layouts() {
                config.not_null(&keys[Field::MaxWindowLayers], "a number of layers")?;
            }
            let first = match config.lookup(&keys[Field::MaxWindowLayers])? {
                Found::Absent | Found::Null => 0,
                Found::Value(name, value) => value
                    .as_u64()
                    .ok_or_else(|| config.wrong(name, "a number of layers", value))?,
            };
            (first.min(num_layers)..num_layers).collect()
        }
    };
    Ok(match layers.len() as u64 {
        0 => (None, Layers::All),
        all if all == num_layers => (window, Layers::All),
        _ => (window, Layers::List(layers)),
    })
}

/// The layers that `layer_types` lists as sliding.
fn sliding(config: &Config, name: &str, value: &Value, num_layers: u64) -> Result<Vec<u64>> {
    let Some(kinds) = value.as_array() else {
        return Err(config.wrong(name, "a list with one entry for each layer", value));
    };
    if kinds.len() as u64 != num_layers {
        let expected = format!("one entry for each of {num_layers} layers");
        return Err(config.unexpected(name, expected, kinds.len()));
    }
    let mut layers = Vec::new();
    for (layer, found) in (0..).zip(kinds) {
        match found.as_str() {
            Some("sliding_attention") => layers.push(layer),
            Some("full_attention") => {}
            _ => {
                let expected = "`sliding_attention` or `full_attention`";
                return Err(config.unexpected(name, expected, found));
            }
        }
    }
    Ok(layers)
}
