//! The scaling of rotary positions in a GGUF file that is written: which ones llama.cpp computes, and their metadata.

use std::path::Path;

use serde_json::{Map, Value};

use super::architecture::Architecture;
use super::gguf_error::GgufModelError;
use super::gguf_rope;
use crate::Result;
use crate::checkpoint::GgufMetadata;

/// The values of YaRN that llama.cpp takes: it does not read them for the architectures that are written.
const YARN: [(&str, f64); 2] = [("beta_fast", 32.0), ("beta_slow", 1.0)];

/// A scaling that llama.cpp computes.
pub(super) enum GgufScaling {
    /// Every position divided by a factor.
    Linear { factor: f64 },
    /// YaRN with the usual values.
    Yarn { factor: f64, original: Option<u64> },
    /// Factors on frequencies, which are a tensor of the file (Llama 3).
    Factors(Vec<f32>),
}

impl GgufScaling {
    /// The scaling of a model, where it has one; otherwise the reason why llama.cpp computes another one.
    pub(super) fn of(a: &Architecture) -> std::result::Result<Option<Self>, String> {
        let Some(Value::Object(scaling)) = &a.rope_scaling else {
            return Ok(None);
        };
        let kind = scaling.get("rope_type").and_then(Value::as_str);
        let (read, keys): (_, &[&str]) = match kind {
            Some("linear") => (linear(scaling)?, &["factor"]),
            Some("yarn") => (
                yarn(scaling, a)?,
                &[
                    "factor",
                    "original_max_position_embeddings",
                    "beta_fast",
                    "beta_slow",
                ],
            ),
            Some("llama3") => (
                llama3(scaling, a)?,
                &[
                    "factor",
                    "low_freq_factor",
                    "high_freq_factor",
                    "original_max_position_embeddings",
                ],
            ),
            other => {
                let other = other.unwrap_or("none");
                return Err(format!(
                    "it scales rotary positions by linear, yarn or llama3, not by {other} (rope_type)"
                ));
            }
        };
        let is_known = |key: &str| key == "rope_type" || keys.contains(&key);
        match scaling.keys().find(|key| !is_known(key)) {
            None => Ok(Some(read)),
            Some(key) => Err(format!("its rotary scaling has no place for `{key}`")),
        }
    }

    /// Adds the scaling of the model in the folder `path` under the keys of `architecture`; returns the factors on
    /// frequencies, where it has them.
    pub(super) fn add(
        metadata: &mut GgufMetadata,
        path: &Path,
        architecture: &str,
        a: &Architecture,
    ) -> Result<Option<Vec<f32>>> {
        let refused =
            |reason| GgufModelError::of_reasons(path, architecture, a, vec![reason]).map(|()| None);
        let scaling = Self::of(a).or_else(refused)?;
        let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
        let mut say = |kind: &str, factor: f64| {
            metadata.text(&key("type"), kind);
            metadata.float(&key("factor"), factor);
        };
        match scaling {
            None => Ok(None),
            Some(Self::Factors(factors)) => Ok(Some(factors)),
            Some(Self::Linear { factor }) => {
                say("linear", factor);
                Ok(None)
            }
            Some(Self::Yarn { factor, original }) => {
                say("yarn", factor);
                if let Some(original) = original {
                    metadata.number(&key("original_context_length"), original)?;
                }
                Ok(None)
            }
        }
    }
}

/// Dimensions of each head that rotate.
pub(super) fn rotated(a: &Architecture) -> u64 {
    (a.head_dim as f64 * a.partial_rotary_factor.unwrap_or(1.0)) as u64
}

fn number(scaling: &Map<String, Value>, key: &str) -> Option<f64> {
    scaling.get(key).and_then(Value::as_f64)
}

fn needed(scaling: &Map<String, Value>, key: &str) -> std::result::Result<f64, String> {
    number(scaling, key).ok_or_else(|| format!("its rotary scaling needs a number `{key}`"))
}

fn linear(scaling: &Map<String, Value>) -> std::result::Result<GgufScaling, String> {
    let factor = needed(scaling, "factor")?;
    Ok(GgufScaling::Linear { factor })
}

fn yarn(
    scaling: &Map<String, Value>,
    a: &Architecture,
) -> std::result::Result<GgufScaling, String> {
    let factor = needed(scaling, "factor")?;
    let said = number(scaling, "original_max_position_embeddings").map(|length| length as u64);
    for (key, usual) in YARN {
        if let Some(found) = number(scaling, key).filter(|value| *value != usual) {
            return Err(format!(
                "its YaRN has a {key} of {usual}, the model's {found}"
            ));
        }
    }
    Ok(GgufScaling::Yarn {
        factor,
        original: said.or(a.max_position_embeddings),
    })
}

fn llama3(
    scaling: &Map<String, Value>,
    a: &Architecture,
) -> std::result::Result<GgufScaling, String> {
    let needed = |key| needed(scaling, key);
    Ok(GgufScaling::Factors(gguf_rope::llama3_factors(
        a.rope_theta,
        rotated(a),
        needed("factor")?,
        (needed("low_freq_factor")?, needed("high_freq_factor")?),
        needed("original_max_position_embeddings")?,
    )))
}
