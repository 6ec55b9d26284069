//! What all layers of one forward pass share: positions, the attention mask, routing overrides.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::rope::Rotations;
use super::router::Overrides;

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
    pub(super) masks: RefCell<BTreeMap<MaskKey, Tensor>>,
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

/// Window, first and number of new positions, number of all positions.
type MaskKey = (Option<usize>, usize, usize, usize);

impl Pass {
    /// The mask for `rows` new positions from `first` on over the first `total` positions: `[1 or batch, 1, rows, total]`
    /// of zeros and −∞; `None` where nothing is hidden.
    pub(super) fn mask(
        &self,
        window: Option<usize>,
        first: usize,
        rows: usize,
        total: usize,
    ) -> Result<Option<Tensor>> {
        let first = self.attention_mask.offset + first;
        let narrow = window.is_some_and(|window| total > window);
        if rows == 1 && first + 1 == total && !narrow && self.attention_mask.rows().is_none() {
            return Ok(None);
        }
        let key = (window, first, rows, total);
        if let Some(mask) = self.masks.borrow().get(&key) {
            return Ok(Some(mask.clone()));
        }
        let batch = self.attention_mask.rows().unwrap_or(1);
        let mut mask = Vec::with_capacity(batch * rows * total);
        for b in 0..batch {
            for query in first..first + rows {
                let visible = self.attention_mask.visible(b, query, window);
                mask.extend((0..total).map(|key| {
                    if visible.contains(&key) {
                        0f32
                    } else {
                        f32::NEG_INFINITY
                    }
                }));
            }
        }
        let mask = Tensor::from_vec(mask, (batch, 1, rows, total), &self.device)?;
        let mask = mask.to_dtype(self.dtype)?;
        self.masks.borrow_mut().insert(key, mask.clone());
        Ok(Some(mask))
    }
}
