//! What all layers of one forward pass share: positions, the attention mask, routing overrides.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};

#[cfg(test)]
use super::causal_lm::{CausalLm, Forward};
#[cfg(test)]
use super::params::LoadOptions;
use super::rope::Rotations;
use super::router::Overrides;

/// Values of masks that a pass keeps for its next layers, at most.
const KEPT: usize = 1 << 26;

/// One forward pass over new tokens.
#[derive(Debug, Clone)]
pub struct Pass {
    /// The token ids `[batch, seq]`, on the device.
    pub(super) tokens: Tensor,
    /// Which positions each query sees.
    pub(super) attention_mask: AttentionMask,
    /// Rotations of the new positions.
    pub(super) rotations: Rotations,
    /// Factors on queries at the new positions, `[1 or batch, seq, 1, 1, 1]`; `None` where all are 1.
    pub(super) query_scales: Option<Tensor>,
    pub(super) overrides: Overrides,
    pub(super) dtype: DType,
    pub(super) device: Device,
    /// Masks as tensors, made when a layer first asks for one.
    pub(super) masks: KeptMasks,
}

/// Masks as tensors that the layers of a pass share.
#[derive(Debug, Clone, Default)]
pub(super) struct KeptMasks(Arc<Mutex<MaskTensors>>);

#[derive(Debug, Default)]
struct MaskTensors {
    /// For each row and new position, the first position that it may see; uploaded once.
    starts: Option<Tensor>,
    masks: BTreeMap<MaskKey, Tensor>,
}

/// Which positions the queries of a pass see, beside the window of their layer.
#[derive(Debug, Clone)]
pub(super) struct AttentionMask {
    /// Positions before the first new one, padding included.
    pub(super) offset: usize,
    /// Padding tokens at the start of each row of the batch.
    pub(super) left_padding: Option<Vec<usize>>,
    /// For each row and new position, the position at which its document begins; `None` where rows are one document.
    pub(super) document_starts: Option<Vec<Vec<usize>>>,
}

impl AttentionMask {
    /// The positions that the query at `position` of row `b` sees.
    ///
    /// Padding attends to itself, so that no softmax row is empty. Nothing reads the output of padding.
    pub(super) fn visible(&self, b: usize, position: usize, window: Option<usize>) -> Range<usize> {
        let oldest = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let padding = self.left_padding.as_ref().map_or(0, |padding| padding[b]);
        let document = self
            .document_starts
            .as_ref()
            .map_or(0, |starts| starts[b][position - self.offset]);
        oldest.max(padding).max(document).min(position)..position + 1
    }

    /// The number of rows with a mask of their own; `None` where all rows share one.
    fn rows(&self) -> Option<usize> {
        self.left_padding
            .as_ref()
            .map(Vec::len)
            .or(self.document_starts.as_ref().map(Vec::len))
    }
}

/// Window, first and number of new positions, first key and the one after the last.
type MaskKey = (Option<usize>, usize, usize, usize, usize);

/// Makes masks on the device of a pass.
#[derive(Debug, Clone)]
pub(super) struct MaskMaker {
    /// Positions before the first new one.
    offset: usize,
    /// For each row and new position, the first position that it may see `[batch, 1, new]` (i64); `None` where that is the
    /// first of all.
    starts: Option<Tensor>,
    dtype: DType,
    device: Device,
    kept: KeptMasks,
}

impl Pass {
    /// What makes the masks of this pass.
    pub(super) fn mask_maker(&self) -> Result<MaskMaker> {
        let mut tensors = self.masks.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tensors.starts.is_none() {
            tensors.starts = self.starts()?;
        }
        Ok(MaskMaker {
            offset: self.attention_mask.offset,
            starts: tensors.starts.clone(),
            dtype: self.dtype,
            device: self.device.clone(),
            kept: self.masks.clone(),
        })
    }

    /// A pass with a mask, for tests of attention.
    #[cfg(test)]
    pub(super) fn of_mask(
        attention_mask: AttentionMask,
        (batch, seq): (usize, usize),
        dtype: DType,
    ) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/llama/seed");
        let model = CausalLm::load(folder.as_ref(), &LoadOptions::default()).unwrap();
        let tokens = Tensor::zeros((batch, seq), DType::U32, &Device::Cpu).unwrap();
        let (_, pass) = model.begin(&tokens, None, &Forward::default()).unwrap();
        Self {
            attention_mask,
            dtype,
            ..pass
        }
    }

    fn starts(&self) -> Result<Option<Tensor>> {
        let mask = &self.attention_mask;
        let (Some(rows), seq) = (mask.rows(), self.tokens.dim(1)?) else {
            return Ok(None);
        };
        let start = |(row, new): (usize, usize)| {
            let padding = mask.left_padding.as_ref().map_or(0, |padding| padding[row]);
            let document = mask.document_starts.as_ref();
            padding.max(document.map_or(0, |starts| starts[row][new])) as i64
        };
        let places = (0..rows).flat_map(|row| (0..seq).map(move |new| (row, new)));
        let starts: Vec<i64> = places.map(start).collect();
        Tensor::from_vec(starts, (rows, 1, seq), &self.device).map(Some)
    }
}

impl MaskMaker {
    /// The mask for `rows` new positions from `first` on over these keys: `[1 or batch, 1, rows, keys]` of zeros and −∞; `None`
    /// where nothing is hidden.
    ///
    /// It is made of comparisons of positions on the device. Padding attends to itself, as [`AttentionMask::visible`] says.
    pub(super) fn mask(
        &self,
        window: Option<usize>,
        first: usize,
        rows: usize,
        keys: Range<usize>,
    ) -> Result<Option<Tensor>> {
        let position = self.offset + first;
        let narrow = window.is_some_and(|window| position + 1 > keys.start.saturating_add(window));
        if rows == 1 && position + 1 == keys.end && !narrow && self.starts.is_none() {
            return Ok(None);
        }
        let key = (window, first, rows, keys.start, keys.end);
        let mut tensors = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mask) = tensors.masks.get(&key) {
            return Ok(Some(mask.clone()));
        }
        let mask = self.made(window, first, rows, keys)?;
        let held: usize = tensors.masks.values().map(Tensor::elem_count).sum();
        if held + mask.elem_count() <= KEPT {
            tensors.masks.insert(key, mask.clone());
        }
        Ok(Some(mask))
    }

    fn made(
        &self,
        window: Option<usize>,
        first: usize,
        rows: usize,
        keys: Range<usize>,
    ) -> Result<Tensor> {
        let device = &self.device;
        let position = (self.offset + first) as i64;
        let counted = |start: i64| {
            Tensor::arange(start, start + rows as i64, device)?.reshape((1, 1, rows, 1))
        };
        let queries = counted(position)?;
        let keys = Tensor::arange(keys.start as i64, keys.end as i64, device)?;
        let keys = keys.reshape((1, 1, 1, ()))?;
        let mut visible = keys.broadcast_le(&queries)?;

        let starts = self.starts.as_ref().map(|starts| {
            let starts = starts.narrow(2, first, rows)?.contiguous()?;
            starts.unsqueeze(3)
        });
        let oldest = window.map(|window| {
            let window = i64::try_from(window).unwrap_or(i64::MAX);
            counted(position + 1 - window)
        });
        let lowest = match (starts.transpose()?, oldest.transpose()?) {
            (Some(starts), Some(oldest)) => Some(starts.broadcast_maximum(&oldest)?),
            (starts, oldest) => starts.or(oldest),
        };
        if let Some(lowest) = lowest {
            let lowest = lowest.broadcast_minimum(&queries)?;
            let near = keys.broadcast_ge(&lowest)?;
            visible = near.broadcast_mul(&visible)?;
        }
        let shown = Tensor::zeros(visible.shape(), DType::F32, device)?;
        let hidden = Tensor::full(f32::NEG_INFINITY, visible.shape(), device)?;
        visible.where_cond(&shown, &hidden)?.to_dtype(self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against [`AttentionMask::visible`], which the kernels use.
    #[test]
    fn masks_from_comparisons_hide_what_kernels_skip() {
        let (batch, seq) = (2, 9);
        let documents = vec![vec![0, 0, 0, 3, 3, 3, 3, 7, 7], vec![0; 9]];
        for (padding, documents) in [
            (None, None),
            (Some(vec![0, 4]), None),
            (None, Some(documents)),
        ] {
            for (offset, window) in [(0, None), (0, Some(3)), (5, None), (5, Some(4))] {
                let mask = AttentionMask {
                    offset,
                    left_padding: padding.clone(),
                    document_starts: documents.clone().filter(|_| offset == 0),
                };
                let pass = Pass::of_mask(mask, (batch, seq), DType::F32);
                let maker = pass.mask_maker().unwrap();
                for (first, rows, start) in [(0, seq, 0), (3, 4, 0), (6, 2, 3), (8, 1, 0)] {
                    let keys = start..offset + first + rows;
                    let mask = maker.mask(window, first, rows, keys.clone()).unwrap();
                    let shape = (batch, 1, rows, keys.len());
                    let mask = match mask {
                        Some(mask) => mask.broadcast_as(shape).unwrap(),
                        None => Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap(),
                    };
                    let found: Vec<f32> = mask.flatten_all().unwrap().to_vec1().unwrap();
                    let mut expected = Vec::new();
                    for row in 0..batch {
                        for query in offset + first..offset + first + rows {
                            let visible = pass.attention_mask.visible(row, query, window);
                            expected.extend(keys.clone().map(|key| {
                                if visible.contains(&key) {
                                    0.0
                                } else {
                                    f32::NEG_INFINITY
                                }
                            }));
                        }
                    }
                    assert_eq!(found, expected, "{padding:?} {offset} {window:?} {first}");
                }
            }
        }
    }
}
