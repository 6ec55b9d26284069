//! Rotary position embeddings: half-split or interleaved pairs, over all of a head or its first part, with the scalings
//! of transformers (`modeling_rope_utils.py`): linear, llama3 (Llama 3.1) and yarn (Peng et al. 2023, arXiv 2309.00071).

use std::f64::consts::PI;

use candle_core::{D, DType, Device, Result as CandleResult, Tensor};
use serde_json::Value;

use super::fused;
use super::params::Mode;
use crate::error::nearest;
use crate::family::{Architecture, Config};
use crate::{Error, Result};

/// The kinds of scaling that are known.
const KINDS: [&str; 4] = ["default", "linear", "llama3", "yarn"];

/// The rotation of one model.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    /// Angle per position of each pair, rounded to float32 as everywhere else.
    frequencies: Vec<f32>,
    /// Factor on cosines and sines (yarn).
    attention_factor: f64,
    interleaved: bool,
    mode: Mode,
}

/// Cosines and sines of some positions, `[1 or batch, seq, 1, pairs]`.
#[derive(Debug, Clone)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// The rotation that a configuration describes.
    pub(super) fn new(architecture: &Architecture, config: &Config, mode: Mode) -> Result<Self> {
        let partial = partial_factor(config)?;
        let rotary = (architecture.head_dim as f64 * partial) as usize;
        if rotary == 0 || rotary % 2 == 1 {
            let problem = format!(
                "expected an even number of rotated dimensions of each head, found {rotary}"
            );
            return Err(Error::key(&config.path, "head_dim", problem));
        }
        let base = architecture.rope_theta;
        let plain: Vec<f64> = (0..rotary / 2)
            .map(|i| base.powf(-((2 * i) as f64) / rotary as f64))
            .collect();
        let scaling = Scaling {
            config,
            architecture,
            values: architecture.rope_scaling.as_ref(),
        };
        let (frequencies, attention_factor) = scaling.apply(plain, rotary)?;
        let frequencies = frequencies
            .into_iter()
            .map(|frequency| frequency as f32)
            .collect();
        Ok(Self {
            frequencies,
            attention_factor,
            interleaved: architecture.rope_interleaved,
            mode,
        })
    }

    /// Frequencies, and the factor on cosines and sines.
    #[cfg(test)]
    pub(super) fn parts(&self) -> (&[f32], f64) {
        (&self.frequencies, self.attention_factor)
    }

    /// Cosines and sines of positions, one row of positions a row of the batch or one row for all.
    pub(super) fn rotation(
        &self,
        positions: &[Vec<usize>],
        dtype: DType,
        device: &Device,
    ) -> CandleResult<Rotation> {
        let (rows, seq, pairs) = (
            positions.len(),
            positions.first().map_or(0, Vec::len),
            self.frequencies.len(),
        );
        let (mut cos, mut sin) = (
            Vec::with_capacity(rows * seq * pairs),
            Vec::with_capacity(rows * seq * pairs),
        );
        for position in positions.iter().flatten() {
            for frequency in &self.frequencies {
                // The product is rounded to float32 as in transformers, which matters at large positions.
                let angle = f64::from(*position as f32 * frequency);
                cos.push(angle.cos() * self.attention_factor);
                sin.push(angle.sin() * self.attention_factor);
            }
        }
        let tensor =
            |values| Tensor::from_vec(values, (rows, seq, 1, pairs), device)?.to_dtype(dtype);
        Ok(Rotation {
            cos: tensor(cos)?,
            sin: tensor(sin)?,
        })
    }

    /// For a fused operation.
    pub(super) fn fused(&self, rotation: &Rotation) -> CandleResult<fused::Rotate> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let (rows, pairs) = (rotation.cos.dim(0)?, self.frequencies.len());
        Ok(fused::Rotate::new(
            values(&rotation.cos)?,
            values(&rotation.sin)?,
            rows,
            pairs,
            self.interleaved,
        ))
    }

    /// Rotates queries or keys `[batch, seq, heads, head_dim]`.
    pub(super) fn apply(&self, x: &Tensor, rotation: &Rotation) -> CandleResult<Tensor> {
        let (pairs, head_dim) = (self.frequencies.len(), x.dim(D::Minus1)?);
        let Rotation { cos, sin } = rotation;
        if self.mode == Mode::Infer
            && !self.interleaved
            && 2 * pairs == head_dim
            && cos.dim(0)? == 1
        {
            let flat = |t: &Tensor| t.reshape((t.dim(1)?, pairs));
            return candle_nn::rotary_emb::rope_thd(&x.contiguous()?, &flat(cos)?, &flat(sin)?);
        }
        let rotated = x.narrow(D::Minus1, 0, 2 * pairs)?;
        let rotated = if self.interleaved {
            let (batch, seq, heads, _) = rotated.dims4()?;
            let x = rotated.reshape((batch, seq, heads, pairs, 2))?;
            let (first, second) = (
                x.narrow(4, 0, 1)?.squeeze(4)?,
                x.narrow(4, 1, 1)?.squeeze(4)?,
            );
            let (first, second) = rotate(&first, &second, cos, sin)?;
            Tensor::stack(&[first, second], 4)?.reshape((batch, seq, heads, 2 * pairs))?
        } else {
            let (first, second) = (
                rotated.narrow(D::Minus1, 0, pairs)?,
                rotated.narrow(D::Minus1, pairs, pairs)?,
            );
            let (first, second) = rotate(&first, &second, cos, sin)?;
            Tensor::cat(&[first, second], D::Minus1)?
        };
        if 2 * pairs == head_dim {
            return Ok(rotated);
        }
        Tensor::cat(
            &[
                rotated,
                x.narrow(D::Minus1, 2 * pairs, head_dim - 2 * pairs)?,
            ],
            D::Minus1,
        )
    }
}

fn rotate(
    first: &Tensor,
    second: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
) -> CandleResult<(Tensor, Tensor)> {
    let new_first = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
    let new_second = (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?;
    Ok((new_first, new_second))
}

/// Fraction of a head that is rotated.
fn partial_factor(config: &Config) -> Result<f64> {
    let objects = ["rope_parameters", "rope_scaling"]
        .map(|name| config.json.get(name).and_then(Value::as_object));
    let inner = objects
        .into_iter()
        .flatten()
        .find_map(|object| object.get("partial_rotary_factor"));
    let Some(value) = config
        .json
        .get("partial_rotary_factor")
        .or(inner)
        .filter(|value| !value.is_null())
    else {
        return Ok(1.0);
    };
    value
        .as_f64()
        .filter(|factor| *factor > 0.0 && *factor <= 1.0)
        .ok_or_else(|| {
            Error::key(
                &config.path,
                "partial_rotary_factor",
                format!("expected a number above 0 up to 1, found {value}"),
            )
        })
}

/// The scaling of the frequencies, and where it stands for errors.
struct Scaling<'a> {
    config: &'a Config,
    architecture: &'a Architecture,
    values: Option<&'a Value>,
}

impl Scaling<'_> {
    /// The scaled frequencies out of the plain ones, and the factor on cosines and sines.
    fn apply(&self, plain: Vec<f64>, rotary: usize) -> Result<(Vec<f64>, f64)> {
        let kind = self
            .values
            .and_then(|values| values.get("rope_type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        match kind {
            "default" => Ok((plain, 1.0)),
            "linear" => {
                let factor = self.required("factor")?;
                Ok((
                    plain
                        .into_iter()
                        .map(|frequency| frequency / factor)
                        .collect(),
                    1.0,
                ))
            }
            "llama3" => Ok((self.llama3(plain)?, 1.0)),
            "yarn" => self.yarn(&plain, rotary),
            other => {
                let error = self.fault(
                    "rope_type",
                    format!("expected one of {}, found {other}", KINDS.join(", ")),
                );
                Err(match nearest(other, KINDS) {
                    Some(known) => {
                        error.with_hint(format!("the nearest known scaling is `{known}`"))
                    }
                    None => error,
                })
            }
        }
    }

    /// Long waves are stretched, short ones kept, those between are blended.
    fn llama3(&self, plain: Vec<f64>) -> Result<Vec<f64>> {
        let factor = self.required("factor")?;
        let (low, high) = (
            self.required("low_freq_factor")?,
            self.required("high_freq_factor")?,
        );
        let context = self.original_context()?;
        if low >= high {
            return Err(self.fault(
                "high_freq_factor",
                format!("expected more than low_freq_factor {low}, found {high}"),
            ));
        }
        let scaled = |frequency: f64| {
            let wave = 2.0 * PI / frequency;
            if wave < context / high {
                frequency
            } else if wave > context / low {
                frequency / factor
            } else {
                let smooth = (context / wave - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        };
        Ok(plain.into_iter().map(scaled).collect())
    }

    fn yarn(&self, plain: &[f64], rotary: usize) -> Result<(Vec<f64>, f64)> {
        let context = self.original_context()?;
        let factor = match self.optional("factor")? {
            Some(factor) => factor,
            None => self.longest()? / context,
        };
        let mscale = |scale: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * scale * factor.ln() + 1.0
            }
        };
        let of_heads = match (self.optional("mscale")?, self.optional("mscale_all_dim")?) {
            (Some(one), Some(all)) => mscale(one) / mscale(all),
            _ => mscale(1.0),
        };
        let attention_factor = self.optional("attention_factor")?.unwrap_or(of_heads);
        let (fast, slow) = (
            self.optional("beta_fast")?.unwrap_or(32.0),
            self.optional("beta_slow")?.unwrap_or(1.0),
        );
        let base = self.architecture.rope_theta;
        let dimension = |rotations: f64| {
            rotary as f64 * (context / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln())
        };
        let truncate = self
            .values
            .and_then(|values| values.get("truncate"))
            .and_then(Value::as_bool)
            .unwrap_or(true);
        let (mut low, mut high) = (dimension(fast), dimension(slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(rotary as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let frequencies = plain.iter().enumerate().map(|(i, frequency)| {
            let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * stretched + frequency * (1.0 - stretched)
        });
        Ok((frequencies.collect(), attention_factor))
    }

    fn optional(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self
            .values
            .and_then(|values| values.get(name))
            .filter(|value| !value.is_null())
        else {
            return Ok(None);
        };
        let number = value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0);
        number
            .map(Some)
            .ok_or_else(|| self.fault(name, format!("expected a number above 0, found {value}")))
    }

    fn required(&self, name: &str) -> Result<f64> {
        self.optional(name)?.ok_or_else(|| {
            self.fault(
                name,
                "expected a number above 0, found no such key".to_owned(),
            )
        })
    }

    fn original_context(&self) -> Result<f64> {
        match self.optional("original_max_position_embeddings")? {
            Some(context) => Ok(context),
            None => self.longest(),
        }
    }

    fn longest(&self) -> Result<f64> {
        self.architecture
            .max_position_embeddings
            .map(|longest| longest as f64)
            .ok_or_else(|| {
                let problem = "expected a positive integer, found no such key".to_owned();
                Error::key(&self.config.path, "max_position_embeddings", problem)
            })
    }

    fn fault(&self, name: &str, problem: String) -> Error {
        let object = ["rope_parameters", "rope_scaling"]
            .into_iter()
            .find(|object| self.config.json.get(*object).is_some_and(Value::is_object))
            .unwrap_or("rope_parameters");
        Error::key(&self.config.path, &format!("{object}.{name}"), problem)
    }
}
