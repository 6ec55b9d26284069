//! What all layers of one forward pass share: positions, masks, overrides.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::rope::Rotation;
use super::router::Overrides;

/// One forward pass over new tokens.
#[derive(Debug, Clone)]
pub struct Pass {
    /// What queries may look at.
    pub(super) sight: Sight,
    /// Rotations of the new positions.
    pub(super) rotation: Rotation,
    pub(super) overrides: Overrides,
    pub(super) dtype: DType,
    pub(super) device: Device,
    /// Masks that a layer of this pass has asked for already.
    pub(super) masks: RefCell<BTreeMap<MaskKey, Tensor>>,
}

/// Which positions the queries of a pass see, beside the window of their layer.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    /// Positions before the first new one, padding included.
    pub(super) offset: usize,
    /// Padding tokens at the start of each row of the batch.
    pub(super) left_padding: Option<Vec<usize>>,
    /// For each row and new position, the position at which its document begins; `None` where rows are one document.
    pub(super) document_starts: Option<Vec<Vec<usize>>>,
}

impl Sight {
    /// The positions that the query at `position` of row `b` sees; padding sees itself, so that no row is without anything
    /// to see, and what it computes is looked at by nobody.
    pub(super) fn visible(&self, b: usize, position: usize, window: Option<usize>) -> Range<usize> {
        let oldest = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let padding = self.left_padding.as_ref().map_or(0, |padding| padding[b]);
        let document = self
            .document_starts
            .as_ref()
            .map_or(0, |starts| starts[b][position - self.offset]);
        oldest.max(padding).max(document).min(position)..position + 1
    }

    /// Rows of the batch that see each their own; `None` where all see the same.
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
        let first = self.sight.offset + first;
        let narrow = window.is_some_and(|window| total > window);
        if rows == 1 && first + 1 == total && !narrow && self.sight.rows().is_none() {
            return Ok(None);
        }
        let key = (window, first, rows, total);
        if let Some(mask) = self.masks.borrow().get(&key) {
            return Ok(Some(mask.clone()));
        }
        let batch = self.sight.rows().unwrap_or(1);
        let mut mask = Vec::with_capacity(batch * rows * total);
        for b in 0..batch {
            for query in first..first + rows {
                let visible = self.sight.visible(b, query, window);
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

/// Whether the loops that are written for the CPU in float32 can be used.
pub(super) fn on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}
