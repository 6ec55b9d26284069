//! Router rows from prompts: the hidden states of a model as it reads descriptions of each expert's domain.
//!
//! The rows of `mergekit-moe`, under its names. An expert's row in a layer is the mean over its positive prompts, less
//! the mean over its negative ones, scaled to length one. `hidden` and `hidden_last` take the layer's input at a
//! prompt's last token. `hidden_avg` takes its mean over the tokens. `cheap_embed` takes the sum of the tokens'
//! embeddings, the same row in every layer. A prompt starts with the tokenizer's `bos_token` where it has one. Each
//! prompt is read on its own and in float32, so that padding is in no mean and at no end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::EvaluateError;
use crate::checkpoint::{hash, yaml};
use crate::mergekit::{MoeFile, Prompted};
use crate::model::chat::special_tokens;
use crate::model::tokenizer::Tokenizer;
use crate::model::{CausalLm, Forward};
use crate::{Error, Result};

/// Rows whose cosine is above this route nearly alike: with two experts, a condition number of 5.
pub const ALIKE: f64 = 12.0 / 13.0;

/// What messages call the shared expert.
const SHARED: &str = "shared expert";

/// How a prompt becomes a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateMode {
    /// The input of the layer at the last token.
    Hidden,
    /// The same.
    HiddenLast,
    /// The mean over the tokens of the layer's input.
    HiddenAvg,
    /// The sum of the tokens' embeddings.
    CheapEmbed,
}

impl GateMode {
    /// Every mode.
    const ALL: [Self; 4] = [
        Self::Hidden,
        Self::HiddenLast,
        Self::HiddenAvg,
        Self::CheapEmbed,
    ];

    /// As in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::HiddenLast => "hidden_last",
            Self::HiddenAvg => "hidden_avg",
            Self::CheapEmbed => "cheap_embed",
        }
    }
}

/// What one expert is for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpertPrompts {
    name: String,
    positive_prompts: Vec<String>,
    #[serde(default)]
    negative_prompts: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct SharedPrompts {
    positive_prompts: Vec<String>,
    #[serde(default)]
    negative_prompts: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    gate_mode: GateMode,
    experts: Vec<ExpertPrompts>,
    shared_expert: Option<SharedPrompts>,
}

/// A file of prompts, its experts in the order of the mixture.
#[derive(Clone, Debug)]
pub struct Prompts {
    path: PathBuf,
    /// How they become rows.
    pub mode: GateMode,
    /// SHA-256 of the file.
    pub sha256: String,
    experts: Vec<ExpertPrompts>,
    shared: Option<ExpertPrompts>,
}

impl Prompts {
    /// Reads a file for a mixture of the experts `names`, each of which it must name once; or a configuration of
    /// `mergekit-moe`, whose experts are these in order.
    pub fn read(path: &Path, names: &[String]) -> Result<Self> {
        let keys: BTreeMap<String, IgnoredAny> = yaml::read(path)?;
        let is_mergekit = MoeFile::has_keys(keys.keys().map(String::as_str));
        let (mode, experts, shared) = if is_mergekit {
            of_mergekit(path, names)?
        } else {
            of_ours(path, names)?
        };
        if let Some(expert) = experts
            .iter()
            .chain(&shared)
            .find(|expert| expert.positive_prompts.is_empty())
        {
            return Err(EvaluateError::NoPositivePrompts {
                path: path.to_path_buf(),
                name: expert.name.clone(),
            }
            .into());
        }
        for (number, expert) in experts.iter().enumerate() {
            let same = |other: &&ExpertPrompts| {
                (&other.positive_prompts, &other.negative_prompts)
                    == (&expert.positive_prompts, &expert.negative_prompts)
            };
            if let Some(other) = experts[..number].iter().find(same) {
                return Err(EvaluateError::SamePrompts {
                    path: path.to_path_buf(),
                    first: other.name.clone(),
                    second: expert.name.clone(),
                }
                .into());
            }
        }
        let (sha256, _) = hash::sha256_file(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            mode,
            sha256,
            experts,
            shared,
        })
    }

    /// The rows, computed by `model`, whose folder has the tokenizer. `progress` is called after each prompt.
    pub fn rows(&self, model: &CausalLm, progress: &dyn Fn(u64)) -> Result<Rows> {
        let folder = model.params().path();
        let tokenizer = Tokenizer::load(folder, model.architecture().vocab_size)?;
        let special = special_tokens(folder)?;
        let reader = Reader {
            model,
            tokenizer: &tokenizer,
            bos: special
                .get("bos_token")
                .and_then(serde_json::Value::as_str)
                .unwrap_or_default(),
            mode: self.mode,
            path: &self.path,
        };
        let rows = |expert: &ExpertPrompts| {
            let mut layers = reader.summary(&expert.positive_prompts, progress)?;
            if !expert.negative_prompts.is_empty() {
                let negative = reader.summary(&expert.negative_prompts, progress)?;
                for (row, negative) in layers.iter_mut().flatten().zip(negative.iter().flatten()) {
                    *row -= negative;
                }
            }
            for (layer, row) in layers.iter_mut().enumerate() {
                self.normalise(row, &expert.name, layer)?;
            }
            Ok::<_, Error>(layers)
        };
        let experts = self.experts.iter().map(rows).collect::<Result<_>>()?;
        Ok(Rows {
            experts,
            shared: self.shared.as_ref().map(rows).transpose()?,
            note: tokenizer.note(),
        })
    }

    fn normalise(&self, row: &mut [f64], name: &str, layer: usize) -> Result<()> {
        let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        if !(norm.is_finite() && norm > 1e-8) {
            return Err(EvaluateError::RowLength {
                path: self.path.clone(),
                name: name.to_owned(),
                length: norm,
                layer,
            }
            .into());
        }
        row.iter_mut().for_each(|value| *value /= norm);
        Ok(())
    }

    /// The name of each expert with its prompts, the shared one last.
    pub fn of_experts(&self) -> Vec<(String, Prompted)> {
        let of = |expert: &ExpertPrompts| {
            let prompted = Prompted {
                positive: expert.positive_prompts.clone(),
                negative: expert.negative_prompts.clone(),
            };
            (expert.name.clone(), prompted)
        };
        self.experts.iter().chain(&self.shared).map(of).collect()
    }

    /// Number of prompts.
    pub fn count(&self) -> u64 {
        self.experts
            .iter()
            .chain(&self.shared)
            .map(|expert| expert.positive_prompts.len() + expert.negative_prompts.len())
            .sum::<usize>() as u64
    }
}

/// How prompts become rows, what the experts are for, and what the shared expert is for.
type Read = (GateMode, Vec<ExpertPrompts>, Option<ExpertPrompts>);

/// A file of our own, its experts in the order of `names`.
fn of_ours(path: &Path, names: &[String]) -> Result<Read> {
    let file: File = yaml::read(path)?;
    let mut by_name = BTreeMap::new();
    for expert in file.experts {
        if !names.contains(&expert.name) {
            return Err(EvaluateError::UnknownExpert {
                path: path.to_path_buf(),
                name: expert.name,
                experts: names.to_vec(),
            }
            .into());
        }
        let name = expert.name.clone();
        if by_name.insert(name.clone(), expert).is_some() {
            let path = path.to_path_buf();
            return Err(EvaluateError::RepeatedExpert { path, name }.into());
        }
    }
    let in_order = names.iter().map(|name| {
        by_name
            .remove(name)
            .ok_or_else(|| EvaluateError::NoPrompts {
                path: path.to_path_buf(),
                name: name.clone(),
            })
    });
    let shared = file.shared_expert.map(|shared| ExpertPrompts {
        name: SHARED.to_owned(),
        positive_prompts: shared.positive_prompts,
        negative_prompts: shared.negative_prompts,
    });
    Ok((file.gate_mode, in_order.collect::<Result<_, _>>()?, shared))
}

/// A configuration of `mergekit-moe`, its experts under `names`.
fn of_mergekit(path: &Path, names: &[String]) -> Result<Read> {
    let file = MoeFile::read(path)?;
    let Some(mode) = GateMode::ALL
        .into_iter()
        .find(|mode| mode.name() == file.gate_mode())
    else {
        return Err(EvaluateError::GateMode {
            path: path.to_path_buf(),
            mode: file.gate_mode().to_owned(),
        }
        .into());
    };
    let prompts = file.prompts();
    if prompts.len() != names.len() {
        return Err(EvaluateError::ExpertCount {
            path: path.to_path_buf(),
            found: prompts.len(),
            experts: names.to_vec(),
        }
        .into());
    }
    let named = |(name, prompts): (&str, Prompted)| ExpertPrompts {
        name: name.to_owned(),
        positive_prompts: prompts.positive,
        negative_prompts: prompts.negative,
    };
    let shared = file
        .shared_prompts()
        .map(|prompts| named((SHARED, prompts)));
    Ok((
        mode,
        names
            .iter()
            .map(String::as_str)
            .zip(prompts)
            .map(named)
            .collect(),
        shared,
    ))
}

/// Reads prompts with a model.
struct Reader<'a> {
    model: &'a CausalLm,
    tokenizer: &'a Tokenizer,
    bos: &'a str,
    mode: GateMode,
    path: &'a Path,
}

impl Reader<'_> {
    /// What several prompts amount to in each layer, `[layer][hidden]`.
    fn summary(&self, prompts: &[String], progress: &dyn Fn(u64)) -> Result<Vec<Vec<f64>>> {
        let mut sum: Vec<Vec<f64>> = Vec::new();
        for prompt in prompts {
            let layers = self.one(prompt)?;
            if sum.is_empty() {
                sum = layers;
            } else {
                sum.iter_mut()
                    .flatten()
                    .zip(layers.iter().flatten())
                    .for_each(|(sum, value)| *sum += value);
            }
            progress(1);
        }
        if self.mode == GateMode::CheapEmbed {
            // A sum of embeddings has no mean over prompts; its direction is what counts.
            let norm = sum[0]
                .iter()
                .map(|value| value * value)
                .sum::<f64>()
                .sqrt()
                .max(1e-8);
            sum[0].iter_mut().for_each(|value| *value /= norm);
            return Ok(vec![sum.remove(0); self.model.layers()]);
        }
        sum.iter_mut()
            .flatten()
            .for_each(|value| *value /= prompts.len() as f64);
        Ok(sum)
    }

    /// What one prompt amounts to: in each layer, or with `cheap_embed` in all of them.
    fn one(&self, prompt: &str) -> Result<Vec<Vec<f64>>> {
        let ids = self
            .tokenizer
            .encode(&format!("{}{prompt}", self.bos), false)?
            .ids;
        if ids.is_empty() {
            let path = self.path.to_path_buf();
            return Err(EvaluateError::EmptyPrompt { path }.into());
        }
        let failed = |e| Error::compute("read a prompt's hidden states", e);
        let tokens = Tensor::new(ids.as_slice(), &Device::Cpu)
            .and_then(|ids| ids.unsqueeze(0))
            .map_err(failed)?;
        let states = if self.mode == GateMode::CheapEmbed {
            vec![self.model.begin(&tokens, None, &Forward::default())?.0]
        } else {
            let forward = Forward {
                keep_hidden: true,
                last_only: true,
                ..Forward::default()
            };
            let mut hidden = self.model.forward(&tokens, None, &forward)?.hidden;
            // The last is the head's input, which no router reads.
            hidden.pop();
            hidden
        };
        states
            .iter()
            .map(|state| self.over_tokens(state, ids.len()).map_err(failed))
            .collect()
    }

    /// One row out of hidden states `[1, seq, hidden]`.
    fn over_tokens(&self, state: &Tensor, seq: usize) -> candle_core::Result<Vec<f64>> {
        let rows: Vec<Vec<f64>> = state.squeeze(0)?.to_dtype(DType::F64)?.to_vec2()?;
        let sum = |rows: &[Vec<f64>]| -> Vec<f64> {
            let width = rows.first().map_or(0, Vec::len);
            (0..width)
                .map(|column| rows.iter().map(|row| row[column]).sum())
                .collect()
        };
        Ok(match self.mode {
            GateMode::Hidden | GateMode::HiddenLast => sum(&rows[seq - 1..]),
            GateMode::HiddenAvg => sum(&rows).into_iter().map(|sum| sum / seq as f64).collect(),
            GateMode::CheapEmbed => sum(&rows),
        })
    }
}

/// Router rows of length one, `[expert][layer][hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    experts: Vec<Vec<Vec<f64>>>,
    shared: Option<Vec<Vec<f64>>>,
    /// What there is to say about the tokenizer that read the prompts.
    pub note: Option<String>,
}

impl Rows {
    /// The rows of a layer's router, `[experts · hidden]` in float32.
    pub fn of_layer(&self, layer: usize) -> Vec<f32> {
        self.experts
            .iter()
            .flat_map(|layers| layers[layer].iter().map(|value| *value as f32))
            .collect()
    }

    /// The row of a layer's shared expert, `[hidden]` in float32, if there are prompts for it.
    pub fn of_shared(&self, layer: usize) -> Option<Vec<f32>> {
        self.shared
            .as_ref()
            .map(|layers| layers[layer].iter().map(|value| *value as f32).collect())
    }

    /// Which two experts have the rows most alike, in which layer, and their cosine; `None` with one expert.
    pub fn most_alike(&self) -> Option<(usize, usize, usize, f64)> {
        let mut most: Option<(usize, usize, usize, f64)> = None;
        for (b, other) in self.experts.iter().enumerate() {
            for (a, expert) in self.experts[..b].iter().enumerate() {
                for (layer, (x, y)) in expert.iter().zip(other).enumerate() {
                    let cosine = x.iter().zip(y).map(|(x, y)| x * y).sum();
                    if most.is_none_or(|(_, _, _, earlier)| cosine > earlier) {
                        most = Some((a, b, layer, cosine));
                    }
                }
            }
        }
        most
    }
}
