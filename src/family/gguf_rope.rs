//! The rotary embedding of a GGUF file, in the words of transformers.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use super::gguf_error::GgufModelError;
use super::keys::Field;
use super::names::{GgufNames, GgufRope};
use super::spelling::LONGROPE;
use crate::checkpoint::{Gguf, GgufValue};
use crate::error::{InputError, Result};

/// The tensor of factors that divide the frequencies: how llama.cpp stores the scaling of Llama 3.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// The tensors of factors for short and for long contexts (Phi-3).
pub(super) const SHORT: &str = "rope_factors_short.weight";
pub(super) const LONG: &str = "rope_factors_long.weight";

/// The beginning of a scaling's metadata keys, after the architecture's name.
const SCALING: &str = "rope.scaling.";

/// `low_freq_factor` and `high_freq_factor` of all published Llama 3 models.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;

/// A rotary embedding.
#[derive(Debug, PartialEq)]
pub(super) struct Rope {
    /// Base of the frequencies.
    pub(super) theta: f64,
    /// `rope_scaling` of transformers 4, where positions are scaled.
    pub(super) scaling: Option<Map<String, Value>>,
}

/// What the metadata and the factors of `gguf` say, for heads of `head_dim` and a context of `context` tokens.
pub(super) fn read(gguf: &Gguf, names: &GgufNames, head_dim: u64, context: u64) -> Result<Rope> {
    let theta_key = names.key(Field::RopeTheta)?;
    let theta = gguf.float(&theta_key)?.unwrap_or(10000.0);
    if theta <= 0.0 {
        return Err(InputError::wrong_value(
            &gguf.path,
            &theta_key,
            "a base above 0",
            theta,
        ));
    }
    if let Some(tensor) = [LONG, SHORT]
        .into_iter()
        .find(|name| gguf.tensors.contains_key(*name))
    {
        check_alone(gguf, names, LONGROPE, tensor)?;
        neutral(gguf, names, &[("yarn_ext_factor", 0.0)])?;
        let scaling = Some(longrope(gguf, names, head_dim, context)?);
        return Ok(Rope { theta, scaling });
    }
    let scaling = scaling(gguf, names, context)?;
    let per_layer = gguf
        .tensors
        .keys()
        .find(|name| name.starts_with("blk.") && name.ends_with(FACTORS));
    let source = gguf
        .tensors
        .get_key_value(FACTORS)
        .map(|(name, _)| name)
        .or(per_layer);
    let Some(source) = source else {
        return Ok(Rope { theta, scaling });
    };
    let factors = factors_of(gguf, source, head_dim)?;
    if factors.iter().all(|factor| *factor == 1.0) {
        return Ok(Rope { theta, scaling });
    }
    check_alone(gguf, names, "llama3", source)?;
    let scaling = Some(
        llama3(&factors, theta).ok_or_else(|| GgufModelError::UnknownFactors {
            path: gguf.path.clone(),
            tensor: source.clone(),
        })?,
    );
    Ok(Rope { theta, scaling })
}

/// Refuses a tensor of factors of an architecture without that scaling, and one beside another scaling: llama.cpp computes both.
fn check_alone(gguf: &Gguf, names: &GgufNames, scaling: &str, tensor: &str) -> Result<()> {
    if !names.has_scaling(scaling) {
        return Err(GgufModelError::UnknownTensor {
            path: gguf.path.clone(),
            tensor: tensor.to_owned(),
            architecture: names.architecture.clone(),
        }
        .into());
    }
    let key = names.own_key(&format!("{SCALING}type"));
    let kind = gguf.text(&key)?.unwrap_or("linear");
    let divides = factor(gguf, names)?.is_some_and(|(factor, _)| factor != 1.0);
    if kind == "none" || ["linear", LONGROPE].contains(&kind) && !divides {
        return Ok(());
    }
    Err(GgufModelError::TwoScalings {
        path: gguf.path.clone(),
        tensor: tensor.to_owned(),
        kind: kind.to_owned(),
        key,
    }
    .into())
}

/// Refuses other values of settings that llama.cpp obeys, and transformers does not have in this scaling.
fn neutral(gguf: &Gguf, names: &GgufNames, settings: &[(&str, f64)]) -> Result<()> {
    for (setting, usual) in settings {
        let key = names.own_key(&format!("{SCALING}{setting}"));
        if let Some(found) = gguf.float(&key)?.filter(|found| found != usual) {
            let expected = format!("it absent, or {usual}, in this rotary scaling");
            return Err(InputError::wrong_value(&gguf.path, &key, expected, found));
        }
    }
    Ok(())
}

/// The factor of a scaling, and its key.
fn factor(gguf: &Gguf, names: &GgufNames) -> Result<Option<(f64, String)>> {
    let key = names.own_key(&format!("{SCALING}factor"));
    let old = names.own_key("rope.scale_linear");
    if let Some(factor) = gguf.float(&key)? {
        return Ok(Some((factor, key)));
    }
    Ok(gguf.float(&old)?.map(|factor| (factor, old)))
}

/// The values of a tensor of factors, one for each pair of rotated dimensions.
fn factors_of(gguf: &Gguf, tensor: &str, rotated: u64) -> Result<Vec<f32>> {
    let factors = gguf.small_tensor(tensor)?;
    if factors.len() as u64 == rotated / 2 {
        return Ok(factors);
    }
    Err(GgufModelError::FactorsShape {
        path: gguf.path.clone(),
        tensor: tensor.to_owned(),
        expected: rotated / 2,
        found: factors.len(),
    }
    .into())
}

/// The factors for short and for long contexts, as `longrope`.
fn longrope(
    gguf: &Gguf,
    names: &GgufNames,
    rotated: u64,
    context: u64,
) -> Result<Map<String, Value>> {
    let key = |field: &str| names.own_key(&format!("{SCALING}{field}"));
    // As the shortest text that has the same value: a factor of 1.05 is 1.05 again.
    let list = |tensor| -> Result<Value> {
        let factors = factors_of(gguf, tensor, rotated)?.into_iter();
        Ok(factors
            .map(|factor| json!(GgufValue::F32(factor).float()))
            .collect())
    };
    let original = gguf.unsigned(&key("original_context_length"))?;
    let attention = gguf.float(&key("attn_factor"))?.unwrap_or(1.0);
    Ok(object(&[
        ("rope_type", json!(LONGROPE)),
        ("short_factor", list(SHORT)?),
        ("long_factor", list(LONG)?),
        (
            "original_max_position_embeddings",
            json!(original.unwrap_or(context)),
        ),
        ("attention_factor", json!(attention)),
    ]))
}

/// The scaling that the metadata say, in the words of transformers.
fn scaling(gguf: &Gguf, names: &GgufNames, context: u64) -> Result<Option<Map<String, Value>>> {
    let key = |field: &str| names.own_key(&format!("{SCALING}{field}"));
    let factor = factor(gguf, names)?;
    let default = if factor.is_some() { "linear" } else { "none" };
    let kind = gguf.text(&key("type"))?.unwrap_or(default);
    let scaling = match kind {
        "none" => None,
        "linear" | "yarn" => {
            let (factor, factor_key) = factor.unwrap_or((1.0, key("factor")));
            if factor < 1.0 {
                return Err(InputError::wrong_value(
                    &gguf.path,
                    &factor_key,
                    "a factor from 1 up",
                    factor,
                ));
            }
            if factor > 1.0 && !names.has_scaling(kind) {
                let known = names.scalings().iter().map(|kind| kind.name());
                let known = known.collect::<Vec<_>>().join(", ");
                let expected = format!(
                    "one of {known}, as in the {} architecture",
                    names.architecture
                );
                let found = format!("`{kind}`");
                return Err(InputError::wrong_value(
                    &gguf.path,
                    &key("type"),
                    expected,
                    found,
                ));
            }
            Some(if kind == "linear" {
                linear(factor)
            } else {
                yarn(gguf, names, factor, context)?
            })
        }
        found => {
            let expected = "`none`, `linear` or `yarn`";
            let found = format!("`{found}`");
            return Err(InputError::wrong_value(
                &gguf.path,
                &key("type"),
                expected,
                found,
            ));
        }
    };
    if kind != "yarn" {
        neutral(
            gguf,
            names,
            &[("attn_factor", 1.0), ("yarn_ext_factor", 0.0)],
        )?;
    }
    Ok(scaling)
}

fn object(fields: &[(&str, Value)]) -> Map<String, Value> {
    fields
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect()
}

fn linear(factor: f64) -> Map<String, Value> {
    object(&[("rope_type", json!("linear")), ("factor", json!(factor))])
}

fn yarn(gguf: &Gguf, names: &GgufNames, factor: f64, context: u64) -> Result<Map<String, Value>> {
    let prefix = names.own_key(SCALING);
    let original_key = format!("{prefix}original_context_length");
    let original = match gguf.unsigned(&original_key)? {
        Some(0) => {
            let expected = "a length above 0";
            return Err(InputError::wrong_value(
                &gguf.path,
                &original_key,
                expected,
                0,
            ));
        }
        Some(original) => original,
        None => context,
    };
    let mut scaling = object(&[
        ("rope_type", json!("yarn")),
        ("factor", json!(factor)),
        ("original_max_position_embeddings", json!(original)),
    ]);
    for (field, name) in [
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ] {
        if let Some(value) = gguf.float(&format!("{prefix}{field}"))? {
            scaling.insert(name.to_owned(), json!(value));
        }
    }
    // llama.cpp multiplies YaRN's own attention factor by this; transformers puts its `attention_factor` in place of it.
    if let Some(attention) = gguf
        .float(&format!("{prefix}attn_factor"))?
        .filter(|attention| *attention != 1.0)
    {
        scaling.insert(
            "attention_factor".to_owned(),
            json!(attention * (0.1 * factor.ln() + 1.0)),
        );
    }
    let all = names.scalings().contains(&GgufRope::AllOfYarn);
    let log_multiplier = gguf.float(&format!("{prefix}yarn_log_multiplier"))?;
    if let Some(multiplier) = log_multiplier.filter(|multiplier| all && *multiplier != 0.0) {
        // Both factors on cosines and sines would be multiplied.
        neutral(gguf, names, &[("attn_factor", 1.0)])?;
        scaling.insert("mscale".to_owned(), json!(1.0));
        scaling.insert("mscale_all_dim".to_owned(), json!(multiplier));
    }
    let known = [
        "type",
        "factor",
        "original_context_length",
        "finetuned",
        "yarn_beta_fast",
        "yarn_beta_slow",
        "attn_factor",
    ];
    let unknown = gguf.metadata.keys().find(|key| {
        key.strip_prefix(&prefix)
            .is_some_and(|field| !(known.contains(&field) || all && field == "yarn_log_multiplier"))
    });
    match unknown {
        Some(key) => Err(GgufModelError::UnknownYarn {
            path: gguf.path.clone(),
            key: key.clone(),
        }
        .into()),
        None => Ok(scaling),
    }
}

/// The `llama3` scaling that gives these factors, with the published low and high frequency factors 1 and 4.
///
/// Tried are the published scalings (factor 8 and 32, context 8192), then the largest of the factors with that and
/// other contexts. Where several give the same factors they mean the same model.
fn llama3(factors: &[f32], theta: f64) -> Option<Map<String, Value>> {
    let largest = factors
        .iter()
        .copied()
        .fold(1.0, f32::max)
        .to_string()
        .parse()
        .ok()?;
    let published = [(8.0, 8192), (32.0, 8192), (largest, 8192)];
    let others = (4..=20).map(|power| (largest, 1_u64 << power));
    let (factor, original) = published
        .into_iter()
        .chain(others)
        .find(|(factor, original)| {
            factors.iter().enumerate().all(|(index, found)| {
                let exponent = index as f64 / factors.len() as f64;
                let expected =
                    llama3_factor(theta.powf(exponent), *factor, (LOW, HIGH), *original as f64);
                (f64::from(*found) - expected).abs() <= 1e-4 * expected
            })
        })?;
    Some(object(&[
        ("rope_type", json!("llama3")),
        ("factor", json!(factor)),
        ("low_freq_factor", json!(LOW)),
        ("high_freq_factor", json!(HIGH)),
        ("original_max_position_embeddings", json!(original)),
    ]))
}

/// The factors of a `llama3` scaling, one for each frequency of a head.
pub(super) fn llama3_factors(
    theta: f64,
    head_dim: u64,
    factor: f64,
    limits: (f64, f64),
    original: f64,
) -> Vec<f32> {
    let half = head_dim / 2;
    let period = |index: u64| theta.powf(index as f64 / half as f64);
    (0..half)
        .map(|index| llama3_factor(period(index), factor, limits, original) as f32)
        .collect()
}

/// What Llama 3 divides a frequency by, which turns once in `TAU * period` tokens.
fn llama3_factor(period: f64, factor: f64, (low, high): (f64, f64), original: f64) -> f64 {
    let turns = original / (TAU * period);
    if turns > high {
        1.0
    } else if turns < low {
        factor
    } else {
        let smooth = (turns - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The factors that llama.cpp's converter writes, computed here in another form: through wavelengths.
    fn written(theta: f64, head_dim: usize, factor: f64, original: f64) -> Vec<f32> {
        let mut factors = Vec::new();
        for i in (0..head_dim).step_by(2) {
            let frequency = 1.0 / theta.powf(i as f64 / head_dim as f64);
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            factors.push(if wavelength < original / 4.0 {
                1.0
            } else if wavelength > original {
                factor as f32
            } else {
                let smooth = (original / wavelength - 1.0) / 3.0;
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            });
        }
        factors
    }

    #[test]
    fn the_published_llama_3_scalings_are_recovered() {
        for (factor, head_dim) in [(8.0, 128), (32.0, 64)] {
            let scaling = llama3(&written(500_000.0, head_dim, factor, 8192.0), 500_000.0).unwrap();
            assert_eq!(scaling["factor"], json!(factor));
            assert_eq!(scaling["original_max_position_embeddings"], json!(8192));
        }
        let scaling = llama3(&written(500_000.0, 64, 4.0, 1024.0), 500_000.0).unwrap();
        assert_eq!(scaling["original_max_position_embeddings"], json!(1024));
    }

    #[test]
    fn other_factors_are_not_taken_for_llama_3() {
        let mut factors = written(500_000.0, 128, 8.0, 8192.0);
        assert_eq!(llama3(&factors, 10_000.0), None);
        factors[3] = 1.5;
        assert_eq!(llama3(&factors, 500_000.0), None);
    }
}
