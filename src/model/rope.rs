//! Rotary position embeddings: half-split or interleaved pairs, over all of a head or its first part.
//!
//! The scalings are as in transformers (`modeling_rope_utils.py`): linear, dynamic, llama3 (Llama 3.1), yarn (Peng et al. 2023, arXiv 2309.00071)
//! and longrope (Ding et al. 2024, arXiv 2402.13753).

use std::f64::consts::PI;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use serde_json::Value;

use super::error::ModelError;
use super::modules::LayerRotation;
use crate::family::{Architecture, Config};
use crate::{Error, Result};

/// The rotations of a model.
#[derive(Debug, Clone)]
pub(super) struct Ropes {
    full: Rope,
    /// The rotation of layers with a window, where it is another.
    window: Option<Rope>,
}

/// One rotation.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    /// Angle per position of each pair, rounded to float32 as everywhere else.
    frequencies: Vec<f32>,
    /// Frequencies of a pass that reaches beyond a number of positions (longrope).
    long: Option<(usize, Vec<f32>)>,
    /// Factor on cosines and sines (yarn, longrope).
    attention_factor: f64,
    interleaved: bool,
}

/// Cosines and sines of the positions of a pass, for each rotation of the model.
#[derive(Debug, Clone)]
pub(super) struct Rotations {
    pub(super) full: Rotation,
    pub(super) window: Option<Rotation>,
}

impl Rotations {
    /// The rotation of a layer, if it rotates.
    pub(super) fn of(&self, layer: LayerRotation) -> Option<&Rotation> {
        match layer {
            LayerRotation::None => None,
            LayerRotation::Full => Some(&self.full),
            LayerRotation::Window => Some(self.window.as_ref().unwrap_or(&self.full)),
        }
    }
}

/// Cosines and sines of some positions, `[1 or batch, seq, 1, pairs]`.
#[derive(Debug, Clone)]
pub(super) struct Rotation {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
    /// Whether neighbours are a pair; otherwise the first half of a head pairs with the second.
    pub(super) interleaved: bool,
}

impl Ropes {
    /// The rotations that a configuration describes.
    pub(super) fn new(architecture: &Architecture, config: &Config) -> Result<Self> {
        let of = |theta, scaling| Rope::new(architecture, config, theta, scaling);
        let window = architecture.window_rope.as_ref();
        Ok(Self {
            full: of(architecture.rope_theta, architecture.rope_scaling.as_ref())?,
            window: window
                .map(|rope| of(rope.theta, rope.scaling.as_ref()))
                .transpose()?,
        })
    }

    /// How many rotations use the frequencies of long texts in a text of so many positions.
    pub(super) fn switched(&self, positions: usize) -> usize {
        let long = self.long_contexts();
        long.filter(|original| positions > *original).count()
    }

    /// Whether a longer text may change how the positions before it rotate.
    pub(super) fn may_switch(&self) -> bool {
        self.long_contexts().next().is_some()
    }

    /// The positions up to which rotations use the frequencies of short texts, where they have others.
    fn long_contexts(&self) -> impl Iterator<Item = usize> {
        let ropes = [Some(&self.full), self.window.as_ref()];
        let long = |rope: &Rope| rope.long.as_ref().map(|(original, _)| *original);
        ropes.into_iter().flatten().filter_map(long)
    }

    /// The rotation of layers that see all positions.
    #[cfg(test)]
    pub(super) fn full(&self) -> &Rope {
        &self.full
    }

    /// Cosines and sines of positions, as [`Rope::rotation`].
    pub(super) fn rotations(
        &self,
        positions: &[Vec<usize>],
        dtype: DType,
        device: &Device,
    ) -> CandleResult<Rotations> {
        let window = self.window.as_ref();
        Ok(Rotations {
            full: self.full.rotation(positions, dtype, device)?,
            window: window
                .map(|rope| rope.rotation(positions, dtype, device))
                .transpose()?,
        })
    }
}

impl Rope {
    /// The rotation with a base and a scaling.
    fn new(
        architecture: &Architecture,
        config: &Config,
        base: f64,
        scaling: Option<&Value>,
    ) -> Result<Self> {
        let rotary = architecture.rotary(config)? as usize;
        let plain: Vec<f64> = (0..rotary / 2)
            .map(|i| base.powf(-((2 * i) as f64) / rotary as f64))
            .collect();
        let scaling = Scaling {
            config,
            base,
            values: scaling,
        };
        let scaled = scaling.apply(plain, rotary)?;
        let rounded = |frequencies: Vec<f64>| frequencies.into_iter().map(|x| x as f32).collect();
        Ok(Self {
            frequencies: rounded(scaled.frequencies),
            long: scaled
                .long
                .map(|(original, frequencies)| (original, rounded(frequencies))),
            attention_factor: scaled.attention_factor,
            interleaved: architecture.rope_interleaved,
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
        // One set for the whole text, as in transformers.
        let longest = positions.iter().flatten().max().map_or(0, |last| last + 1);
        let frequencies = match &self.long {
            Some((original, frequencies)) if longest > *original => frequencies,
            _ => &self.frequencies,
        };
        for position in positions.iter().flatten() {
            for frequency in frequencies {
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
            interleaved: self.interleaved,
        })
    }
}

/// What a scaling makes of the plain frequencies.
struct Scaled {
    frequencies: Vec<f64>,
    long: Option<(usize, Vec<f64>)>,
    attention_factor: f64,
}

impl From<Vec<f64>> for Scaled {
    fn from(frequencies: Vec<f64>) -> Self {
        Self {
            frequencies,
            long: None,
            attention_factor: 1.0,
        }
    }
}

/// The scaling of the frequencies; reading the configuration has checked its values and said those that are inferred.
struct Scaling<'a> {
    config: &'a Config,
    base: f64,
    values: Option<&'a Value>,
}

impl Scaling<'_> {
    fn apply(&self, plain: Vec<f64>, rotary: usize) -> Result<Scaled> {
        let kind = self
            .value("rope_type")
            .and_then(Value::as_str)
            .unwrap_or("default");
        match kind {
            "linear" => {
                let factor = self.required("factor")?;
                let slower: Vec<f64> = plain.into_iter().map(|x| x / factor).collect();
                Ok(slower.into())
            }
            "llama3" => Ok(self.llama3(plain)?.into()),
            "yarn" => self.yarn(&plain, rotary),
            "longrope" => self.longrope(&plain),
            // A dynamic scaling begins beyond `max_position_embeddings`, and no pass goes there.
            _ => Ok(plain.into()),
        }
    }

    /// Long waves are stretched, short ones kept, those between are blended.
    fn llama3(&self, plain: Vec<f64>) -> Result<Vec<f64>> {
        let factor = self.required("factor")?;
        let low = self.required("low_freq_factor")?;
        let high = self.required("high_freq_factor")?;
        let context = self.required("original_max_position_embeddings")?;
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

    fn yarn(&self, plain: &[f64], rotary: usize) -> Result<Scaled> {
        let context = self.required("original_max_position_embeddings")?;
        let factor = self.required("factor")?;
        let mscale = |scale: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * scale * factor.ln() + 1.0
            }
        };
        let of_heads = match (self.number("mscale"), self.number("mscale_all_dim")) {
            (Some(one), Some(all)) => mscale(one) / mscale(all),
            _ => mscale(1.0),
        };
        let attention_factor = self.number("attention_factor").unwrap_or(of_heads);
        let fast = self.number("beta_fast").unwrap_or(32.0);
        let slow = self.number("beta_slow").unwrap_or(1.0);
        let dimension = |rotations: f64| {
            rotary as f64 * (context / (rotations * 2.0 * PI)).ln() / (2.0 * self.base.ln())
        };
        let truncate = self.value("truncate").and_then(Value::as_bool);
        let (mut low, mut high) = (dimension(fast), dimension(slow));
        if truncate.unwrap_or(true) {
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
        Ok(Scaled {
            frequencies: frequencies.collect(),
            long: None,
            attention_factor,
        })
    }

    /// A factor for each pair: one list up to the original context, another beyond it.
    fn longrope(&self, plain: &[f64]) -> Result<Scaled> {
        let divided = |name: &str| -> Result<Vec<f64>> {
            let factors = self.value(name).and_then(Value::as_array);
            let factors = factors.ok_or_else(|| self.missing(name))?;
            let factors = factors.iter().filter_map(Value::as_f64);
            // transformers holds the lists in float32.
            Ok(plain
                .iter()
                .zip(factors)
                .map(|(x, by)| x / f64::from(by as f32))
                .collect())
        };
        let original = self.required("original_max_position_embeddings")?;
        Ok(Scaled {
            frequencies: divided("short_factor")?,
            long: Some((original as usize, divided("long_factor")?)),
            attention_factor: self.required("attention_factor")?,
        })
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.values?.get(name)
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.value(name).and_then(Value::as_f64)
    }

    fn required(&self, name: &str) -> Result<f64> {
        self.number(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        ModelError::NoRopeValue {
            path: self.config.path.clone(),
            key: format!("rope_parameters.{name}"),
        }
        .into()
    }
}
