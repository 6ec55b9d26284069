//! The next token out of logits.

use candle_core::{Device, Tensor};
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;

use super::error::ModelError;
use crate::{Error, Result};

/// How the next token is chosen.
///
/// Filters act in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p, each on what those
/// before it have left.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 is greedy: the most probable token, the lowest id among equals.
    pub temperature: f64,
    /// Draw from the so many most probable tokens.
    pub top_k: Option<usize>,
    /// Draw from the fewest tokens that have this probability together.
    pub top_p: Option<f64>,
    /// Draw from the tokens with at least this share of the largest probability.
    pub min_p: Option<f64>,
    /// Divides the positive logits of tokens that have come before, and multiplies negative ones; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Seed of the draws. Equal seeds give equal tokens, on the same logits and with the same version of this program.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses numbers that make no sense, by name.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return out_of_range("temperature", "of 0 or more", self.temperature);
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return out_of_range("repetition penalty", "above 0", self.repetition_penalty);
        }
        if self.top_k == Some(0) {
            return out_of_range("top-k", "of 1 or more", 0.0);
        }
        for (name, share) in [("top-p", self.top_p), ("min-p", self.min_p)] {
            if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
                return out_of_range(name, "from 0 to 1", share);
            }
        }
        Ok(())
    }
}

fn out_of_range(what: &'static str, expected: &'static str, found: f64) -> Result<()> {
    Err(ModelError::Sampling {
        what,
        expected,
        found,
    }
    .into())
}

/// Draws tokens, one after another.
pub(super) struct Sampler {
    sampling: Sampling,
    /// ChaCha12 is the generator of candle-transformers' sampler, whose draws ours equal.
    generator: ChaCha12Rng,
}

impl Sampler {
    pub(super) fn new(sampling: &Sampling) -> Self {
        Self {
            sampling: sampling.clone(),
            generator: ChaCha12Rng::seed_from_u64(sampling.seed),
        }
    }

    /// The next token after `seen`, out of finite `logits` over the vocabulary.
    pub(super) fn next(&mut self, mut logits: Vec<f32>, seen: &[u32]) -> Result<u32> {
        let penalty = self.sampling.repetition_penalty as f32;
        if penalty != 1.0 {
            let mut seen = seen.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / penalty
                    } else {
                        *logit * penalty
                    };
                }
            }
        }
        // So low a temperature leaves the most probable token alone, and would overflow.
        if self.sampling.temperature < 1e-6 {
            return Ok(largest(&logits));
        }
        let mut probabilities = probabilities(logits, self.sampling.temperature)
            .map_err(|e| Error::compute("draw a token", e))?;
        filter(&mut probabilities, &self.sampling);
        let draw = WeightedIndex::new(&probabilities)
            .map_err(|e| Error::compute("draw a token", candle_core::Error::wrap(e)))?;
        Ok(draw.sample(&mut self.generator) as u32)
    }
}

/// The softmax of `logits / temperature`.
fn probabilities(logits: Vec<f32>, temperature: f64) -> candle_core::Result<Vec<f32>> {
    let count = logits.len();
    let logits = Tensor::from_vec(logits, count, &Device::Cpu)?;
    candle_nn::ops::softmax_last_dim(&(logits / temperature)?)?.to_vec1()
}

/// The id of the largest logit.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// Sets the probabilities of tokens that may not be drawn to zero; the largest always stays.
fn filter(probabilities: &mut [f32], sampling: &Sampling) {
    if sampling.top_k.is_none() && sampling.top_p.is_none() && sampling.min_p.is_none() {
        return;
    }
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    let by_probability = |a: &usize, b: &usize| {
        probabilities[*b]
            .total_cmp(&probabilities[*a])
            .then(a.cmp(b))
    };
    if let Some(k) = sampling.top_k.filter(|k| *k < order.len()) {
        order.select_nth_unstable_by(k, by_probability);
        order.truncate(k);
    }
    order.sort_unstable_by(by_probability);
    let mut kept = order.len();
    if let Some(p) = sampling.top_p {
        let total: f64 = order.iter().map(|id| f64::from(probabilities[*id])).sum();
        let mut sum = 0.0;
        let full = order.iter().position(|id| {
            sum += f64::from(probabilities[*id]);
            sum >= p * total
        });
        kept = full.map_or(kept, |last| last + 1);
    }
    if let (Some(p), Some(first)) = (sampling.min_p, order.first()) {
        let least = p * f64::from(probabilities[*first]);
        kept = kept
            .min(order.partition_point(|id| f64::from(probabilities[*id]) >= least))
            .max(1);
    }
    let mut allowed = vec![false; probabilities.len()];
    order[..kept].iter().for_each(|id| allowed[*id] = true);
    probabilities
        .iter_mut()
        .zip(allowed)
        .filter(|(_, allowed)| !allowed)
        .for_each(|(p, _)| *p = 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(sampling: Sampling) -> Vec<f32> {
        let mut probabilities = vec![0.1, 0.4, 0.05, 0.2, 0.25];
        filter(&mut probabilities, &sampling);
        probabilities
    }

    #[test]
    fn filters_keep_the_most_probable() {
        let greedy = Sampling::default();
        assert_eq!(
            filtered(Sampling {
                top_k: Some(2),
                ..greedy.clone()
            }),
            [0.0, 0.4, 0.0, 0.0, 0.25]
        );
        assert_eq!(
            filtered(Sampling {
                top_p: Some(0.7),
                ..greedy.clone()
            }),
            [0.0, 0.4, 0.0, 0.2, 0.25]
        );
        assert_eq!(
            filtered(Sampling {
                top_p: Some(0.0),
                ..greedy.clone()
            }),
            [0.0, 0.4, 0.0, 0.0, 0.0]
        );
        assert_eq!(
            filtered(Sampling {
                min_p: Some(0.5),
                ..greedy.clone()
            }),
            [0.0, 0.4, 0.0, 0.2, 0.25]
        );
        assert_eq!(
            filtered(Sampling {
                min_p: Some(1.0),
                ..greedy.clone()
            }),
            [0.0, 0.4, 0.0, 0.0, 0.0]
        );
        // 0.4 of the 0.65 that top-k leaves are more than 0.6.
        let both = Sampling {
            top_k: Some(2),
            top_p: Some(0.6),
            ..greedy
        };
        assert_eq!(filtered(both), [0.0, 0.4, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn repetition_makes_tokens_less_likely() {
        let mut sampler = Sampler::new(&Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        });
        assert_eq!(sampler.next(vec![1.0, 3.0, 2.0], &[1, 1]).unwrap(), 2);
        assert_eq!(sampler.next(vec![-1.0, -3.0, -1.5], &[0]).unwrap(), 2);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut sampler = Sampler::new(&Sampling {
            temperature: 1.0,
            ..Sampling::default()
        });
        let logits: Vec<f32> = [0.2f32, 0.5, 0.3].iter().map(|p| p.ln()).collect();
        let mut counts = [0; 3];
        (0..10_000).for_each(|_| counts[sampler.next(logits.clone(), &[]).unwrap() as usize] += 1);
        // Four standard deviations are 0.02.
        assert!(
            (counts[0] - 2000i32).abs() < 200 && (counts[1] - 5000i32).abs() < 200,
            "{counts:?}"
        );
    }

    #[test]
    fn draws_equal_those_of_candle_transformers() {
        let golden: Vec<u32> =
            serde_json::from_str(include_str!("../../fixtures/golden/draws.json")).unwrap();
        let mut ours = Sampler::new(&Sampling {
            temperature: 0.7,
            seed: 11,
            ..Sampling::default()
        });
        for (round, expected) in golden.into_iter().enumerate() {
            let logits: Vec<f32> = (0..300)
                .map(|id| ((id * 37 + round * 11) % 101) as f32 / 25.0)
                .collect();
            assert_eq!(ours.next(logits, &[]).unwrap(), expected);
        }
    }

    #[test]
    fn numbers_without_sense_are_refused() {
        let wrong = Sampling {
            top_p: Some(1.5),
            ..Sampling::default()
        };
        assert!(
            wrong
                .check()
                .unwrap_err()
                .to_string()
                .contains("top-p from 0 to 1, found 1.5")
        );
        assert!(
            Sampling {
                temperature: f64::NAN,
                ..Sampling::default()
            }
            .check()
            .is_err()
        );
    }
}
