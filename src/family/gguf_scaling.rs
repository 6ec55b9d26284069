//! The scaling of rotary positions in a GGUF file that is written: which ones llama.cpp computes, and their metadata.

use serde_json::{Map, Value};

use super::architecture::Architecture;
use super::config_error::ORIGINAL;
use super::gguf_rope::{self, FACTORS, LONG, SHORT};
use super::names::GgufRope;
use crate::Result;
use crate::checkpoint::GgufMetadata;

/// The values of YaRN that llama.cpp takes where it does not read them.
const FAST: f64 = 32.0;
const SLOW: f64 = 1.0;

/// A tensor of factors on frequencies: its name and its values.
pub type FrequencyFactors = (&'static str, Vec<f32>);

/// A scaling that llama.cpp computes.
pub(super) enum GgufScaling {
    /// Every position divided by a factor.
    Linear { factor: f64 },
    /// YaRN, with settings where llama.cpp reads them.
    Yarn {
        factor: f64,
        original: Option<u64>,
        settings: Option<YarnSettings>,
    },
    /// Factors on frequencies, which are a tensor of the file (Llama 3).
    Factors(Vec<f32>),
    /// Factors on frequencies for short and for long contexts, and one on cosines and sines.
    Longrope {
        short: Vec<f32>,
        long: Vec<f32>,
        original: u64,
        attention: f64,
    },
}

/// Settings of YaRN.
pub(super) struct YarnSettings {
    fast: f64,
    slow: f64,
    /// The weight of the logarithm that the factor on cosines and sines is divided by; 0 means that it is not divided.
    log_multiplier: f64,
}

impl GgufScaling {
    /// The scaling of a model, where it has one that is among `known`; otherwise the reason why llama.cpp computes another one.
    pub(super) fn of(
        a: &Architecture,
        known: &[GgufRope],
    ) -> std::result::Result<Option<Self>, String> {
        let Some(Value::Object(scaling)) = &a.rope_scaling else {
            return Ok(None);
        };
        let found = scaling.get("rope_type").and_then(Value::as_str);
        let kind = known.iter().find(|kind| Some(kind.name()) == found);
        let (read, keys): (_, &[&str]) = match kind {
            Some(GgufRope::Linear) => (linear(scaling)?, &["factor"]),
            Some(GgufRope::Yarn) => (
                yarn(scaling, a)?,
                &["factor", ORIGINAL, "beta_fast", "beta_slow"],
            ),
            Some(GgufRope::AllOfYarn) => (
                all_of_yarn(scaling, a)?,
                &[
                    "factor",
                    ORIGINAL,
                    "beta_fast",
                    "beta_slow",
                    "mscale",
                    "mscale_all_dim",
                    "attention_factor",
                ],
            ),
            Some(GgufRope::Llama3) => (
                llama3(scaling, a)?,
                &["factor", "low_freq_factor", "high_freq_factor", ORIGINAL],
            ),
            Some(GgufRope::Longrope) => (
                longrope(scaling)?,
                &["short_factor", "long_factor", "attention_factor", ORIGINAL],
            ),
            None => {
                let known: Vec<&str> = known.iter().map(|kind| kind.name()).collect();
                let (known, found) = (known.join(", "), found.unwrap_or("none"));
                return Err(format!(
                    "it scales rotary positions by one of {known}, not by {found} (rope_type)"
                ));
            }
        };
        let is_known = |key: &str| key == "rope_type" || keys.contains(&key);
        match scaling.keys().find(|key| !is_known(key)) {
            None => Ok(Some(read)),
            Some(key) => Err(format!("its rotary scaling has no place for `{key}`")),
        }
    }

    /// Adds the scaling under the keys of `architecture`; returns the tensors of factors on frequencies, where it has some.
    pub(super) fn add(
        self,
        metadata: &mut GgufMetadata,
        architecture: &str,
    ) -> Result<Vec<FrequencyFactors>> {
        let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
        let original_key = key("original_context_length");
        let mut say = |kind: &str, factor: f64| {
            metadata.text(&key("type"), kind);
            metadata.float(&key("factor"), factor);
        };
        match self {
            Self::Factors(factors) => return Ok(vec![(FACTORS, factors)]),
            Self::Linear { factor } => say("linear", factor),
            Self::Yarn {
                factor,
                original,
                settings,
            } => {
                say("yarn", factor);
                if let Some(original) = original {
                    metadata.number(&original_key, original)?;
                }
                if let Some(settings) = settings {
                    metadata.float(&key("yarn_beta_fast"), settings.fast);
                    metadata.float(&key("yarn_beta_slow"), settings.slow);
                    metadata.float(&key("yarn_log_multiplier"), settings.log_multiplier);
                }
            }
            Self::Longrope {
                short,
                long,
                original,
                attention,
            } => {
                metadata.number(&original_key, original)?;
                metadata.float(&key("attn_factor"), attention);
                return Ok(vec![(LONG, long), (SHORT, short)]);
            }
        }
        Ok(Vec::new())
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
    let said = number(scaling, ORIGINAL).map(|length| length as u64);
    for (key, usual) in [("beta_fast", FAST), ("beta_slow", SLOW)] {
        if let Some(found) = number(scaling, key).filter(|value| *value != usual) {
            return Err(format!(
                "its YaRN has a {key} of {usual}, the model's {found}"
            ));
        }
    }
    Ok(GgufScaling::Yarn {
        factor,
        original: said.or(a.max_position_embeddings),
        settings: None,
    })
}

/// YaRN with its settings. llama.cpp divides the usual factor on cosines and sines, `1 + 0.1 · ln(factor)`, by
/// `1 + 0.1 · weight · ln(factor)`.
fn all_of_yarn(
    scaling: &Map<String, Value>,
    a: &Architecture,
) -> std::result::Result<GgufScaling, String> {
    let factor = needed(scaling, "factor")?;
    let [attention, one, all] =
        ["attention_factor", "mscale", "mscale_all_dim"].map(|key| number(scaling, key));
    let log_multiplier = match (attention, one, all) {
        (None, Some(1.0), Some(all)) => all,
        (None, Some(one), Some(all)) if one == all => 1.0,
        (None, _, None) | (None, None, _) => 0.0,
        _ => {
            return Err(
                "its YaRN has an mscale of 1, or one as large as mscale_all_dim, and no attention_factor"
                    .to_owned(),
            );
        }
    };
    let setting = |key, usual| number(scaling, key).unwrap_or(usual);
    Ok(GgufScaling::Yarn {
        factor,
        original: number(scaling, ORIGINAL)
            .map(|length| length as u64)
            .or(a.max_position_embeddings),
        settings: Some(YarnSettings {
            fast: setting("beta_fast", FAST),
            slow: setting("beta_slow", SLOW),
            log_multiplier,
        }),
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
        needed(ORIGINAL)?,
    )))
}

fn longrope(scaling: &Map<String, Value>) -> std::result::Result<GgufScaling, String> {
    let factors = |key: &str| {
        let list = scaling.get(key).and_then(Value::as_array);
        let numbers = list.into_iter().flatten().filter_map(Value::as_f64);
        numbers.map(|factor| factor as f32).collect()
    };
    Ok(GgufScaling::Longrope {
        short: factors("short_factor"),
        long: factors("long_factor"),
        original: needed(scaling, ORIGINAL)? as u64,
        attention: needed(scaling, "attention_factor")?,
    })
}
