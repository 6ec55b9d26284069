//! Attention in training, block of queries by block of queries.
//!
//! Scores exist for one block at a time: the forward pass keeps none of them, and the backward pass computes each block again.
//! So memory grows with the length of a text and not with its square. A block takes all keys up to its last query, from the
//! first that a window leaves.

use std::ops::Range;

use candle_core::{Result, Tensor, Var};

use super::attend::{ScoreRules, attend_all};
use super::norm::at_least_f32;
use super::outside::with_gradients;
use super::subgraph::{seeded, taken};
use crate::model::params::Mode;
use crate::model::pass::MaskMaker;

/// Softmax attention of queries `[rows, group, seq, head_dim]` over keys and values `[rows, positions, head_dim]`, for `block`
/// queries of each sequence at a time.
pub(super) fn attend_in_blocks(
    rules: ScoreRules,
    inputs: [&Tensor; 3],
    masks: MaskMaker,
    block: usize,
) -> Result<Tensor> {
    let blocks = Blocks {
        rules,
        masks,
        block,
    };
    let value = blocks.forward(inputs.map(Tensor::detach))?;
    with_gradients(inputs, value, move |inputs, grad_output| {
        blocks.backward(inputs.map(Tensor::detach), grad_output)
    })
}

struct Blocks {
    rules: ScoreRules,
    masks: MaskMaker,
    /// Queries of each sequence in a block.
    block: usize,
}

/// The queries of a block, and the keys that any of them sees.
struct Block {
    first: usize,
    rows: usize,
    keys: Range<usize>,
}

impl Blocks {
    /// The blocks of the last `seq` of `total` positions.
    fn all(&self, seq: usize, total: usize) -> impl Iterator<Item = Block> {
        let (block, window) = (self.block, self.rules.window);
        (0..seq).step_by(block).map(move |first| {
            let rows = block.min(seq - first);
            let position = total - seq + first;
            let oldest = window.map_or(0, |window| (position + 1).saturating_sub(window));
            Block {
                first,
                rows,
                keys: oldest..position + rows,
            }
        })
    }

    fn mask(&self, block: &Block) -> Result<Option<Tensor>> {
        self.masks.mask(
            self.rules.window,
            block.first,
            block.rows,
            block.keys.clone(),
        )
    }

    fn forward(&self, inputs: [Tensor; 3]) -> Result<Tensor> {
        let (seq, total) = (inputs[0].dim(2)?, inputs[1].dim(1)?);
        let mut parts = Vec::with_capacity(seq.div_ceil(self.block));
        for block in self.all(seq, total) {
            let [queries, keys, values] = block.of(&inputs)?;
            let mask = self.mask(&block)?;
            let inputs = [&queries.contiguous()?, &keys, &values];
            parts.push(attend_all(self.rules, inputs, mask.as_ref(), Mode::Train)?);
        }
        Tensor::cat(&parts, 2)
    }

    /// The gradients of queries, keys and values.
    fn backward(&self, inputs: [Tensor; 3], grad_output: &Tensor) -> Result<[Tensor; 3]> {
        let (seq, total) = (inputs[0].dim(2)?, inputs[1].dim(1)?);
        let mut grad_queries = Vec::with_capacity(seq.div_ceil(self.block));
        let mut grad_keys: Option<[Tensor; 2]> = None;
        for block in self.all(seq, total) {
            let [queries, keys, values] = block.of(&inputs)?;
            let variables = [
                Var::from_tensor(&queries)?,
                Var::from_tensor(&keys)?,
                Var::from_tensor(&values)?,
            ];
            let mask = self.mask(&block)?;
            let inputs = [0, 1, 2].map(|number| variables[number].as_tensor());
            let output = attend_all(self.rules, inputs, mask.as_ref(), Mode::Train)?;
            let grad_block = grad_output.narrow(2, block.first, block.rows)?;
            let mut store = seeded(&output, &grad_block.contiguous()?)?.backward()?;
            let [queries, keys, values] = &variables;
            grad_queries.push(taken(&mut store, queries)?);
            // The keys that the block does not see have no gradient from it.
            let (before, after) = (block.keys.start, total - block.keys.end);
            let mut whole = |var: &Var| -> Result<Tensor> {
                let found = taken(&mut store, var)?;
                // Blocks add up, which half precision would round each time.
                let found = found.to_dtype(at_least_f32(found.dtype()))?;
                found.pad_with_zeros(1, before, after)
            };
            let found = [whole(keys)?, whole(values)?];
            grad_keys = Some(match grad_keys {
                Some([keys, values]) => {
                    let [found_keys, found_values] = &found;
                    [(keys + found_keys)?, (values + found_values)?]
                }
                None => found,
            });
        }
        let Some([grad_keys, grad_values]) = grad_keys else {
            candle_core::bail!("expected at least one query");
        };
        let dtype = inputs[1].dtype();
        Ok([
            Tensor::cat(&grad_queries, 2)?,
            grad_keys.to_dtype(dtype)?,
            grad_values.to_dtype(dtype)?,
        ])
    }
}

impl Block {
    /// Its part of queries, keys and values.
    fn of(&self, inputs: &[Tensor; 3]) -> Result<[Tensor; 3]> {
        let [queries, keys, values] = inputs;
        let of_keys = |x: &Tensor| x.narrow(1, self.keys.start, self.keys.len());
        Ok([
            queries.narrow(2, self.first, self.rows)?,
            of_keys(keys)?,
            of_keys(values)?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::model::pass::{AttentionMask, Pass};

    const ROWS: (usize, usize, usize) = (4, 2, 3);

    fn values(count: usize, step: f64) -> Vec<f64> {
        (0..count).map(|i| (i as f64 * step).sin()).collect()
    }

    /// Output and gradients of queries, keys and values.
    fn run(dtype: DType, seq: usize, attend: impl Fn([&Tensor; 3]) -> Tensor) -> Vec<Vec<f64>> {
        let (rows, group, head_dim) = ROWS;
        let var = |shape: &[usize], step: f64| {
            let count = shape.iter().product();
            let tensor = Tensor::from_vec(values(count, step), shape, &Device::Cpu).unwrap();
            Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap()
        };
        let queries = var(&[rows, group, seq, head_dim], 0.7);
        let keys = var(&[rows, seq, head_dim], 0.9);
        let keyed = var(&[rows, seq, head_dim], 1.3);
        let output = attend([queries.as_tensor(), keys.as_tensor(), keyed.as_tensor()]);
        let weights = var(&[rows, group, seq, head_dim], 0.4);
        let sum = (&output * weights.as_detached_tensor()).unwrap();
        let mut store = sum.sum_all().unwrap().backward().unwrap();
        let numbers = |tensor: Tensor| {
            let tensor = tensor.to_dtype(DType::F64).unwrap();
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        let gradients = [&queries, &keys, &keyed].map(|var| store.remove(var).unwrap());
        let found = std::iter::once(output).chain(gradients);
        found.map(numbers).collect()
    }

    #[test]
    fn blocks_are_all_queries_at_once() {
        let (batch, seq) = (2, 11);
        let documents = vec![vec![0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 6], vec![0; 11]];
        for (padding, documents) in [
            (None, None),
            (Some(vec![0, 5]), None),
            (None, Some(documents)),
        ] {
            for (window, soft_cap) in [(None, None), (Some(4), None), (Some(3), Some(0.7))] {
                let rules = ScoreRules {
                    scale: 0.8,
                    soft_cap,
                    window,
                };
                let mask = AttentionMask {
                    offset: 0,
                    left_padding: padding.clone(),
                    document_starts: documents.clone(),
                };
                for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
                    let pass = Pass::of_mask(mask.clone(), (batch, seq), dtype);
                    let masks = pass.mask_maker().unwrap();
                    let whole = masks.mask(window, 0, seq, 0..seq).unwrap();
                    let expected = run(dtype, seq, |inputs| {
                        attend_all(rules, inputs, whole.as_ref(), Mode::Train).unwrap()
                    });
                    for block in [1, 3, 4, 11, 64] {
                        let found = run(dtype, seq, |inputs| {
                            attend_in_blocks(rules, inputs, masks.clone(), block).unwrap()
                        });
                        for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
                            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
                            let off = off.fold(0.0, f64::max);
                            assert!(off < tolerance, "{block} {mask:?} {rules:?} {part}: {off}");
                        }
                    }
                }
            }
        }
    }
}
