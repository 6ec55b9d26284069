//! What all layers of one forward pass share: positions, masks, overrides.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::rope::Rotation;
use super::router::Overrides;

/// One forward pass over new tokens.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Positions before the first new one, padding included.
    pub(super) offset: usize,
    /// Rotations of the new positions.
    pub(super) rotation: Rotation,
    /// Padding tokens at the start of each row of the batch.
    pub(super) left_padding: Option<Vec<usize>>,
    pub(super) overrides: Overrides,
    pub(super) dtype: DType,
    pub(super) device: Device,
    /// Masks that a layer of this pass has asked for already.
    pub(super) masks: RefCell<BTreeMap<MaskKey, Tensor>>,
}

/// Window, first and number of new positions, number of all positions.
type MaskKey = (Option<usize>, usize, usize, usize);

impl Pass {
    /// The mask for `rows` new positions from `first` on over the first `total` positions: `[1 or batch, 1, rows, total]`
    /// of zeros and −∞; `None` where nothing is hidden.
    ///
    /// Padding sees itself, so that no row is without anything to see; what it computes is looked at by nobody.
    pub(super) fn mask(
        &self,
        window: Option<usize>,
        first: usize,
        rows: usize,
        total: usize,
    ) -> Result<Option<Tensor>> {
        let first = self.offset + first;
        let narrow = window.is_some_and(|window| total > window);
        if rows == 1 && first + 1 == total && !narrow && self.left_padding.is_none() {
            return Ok(None);
        }
        let key = (window, first, rows, total);
        if let Some(mask) = self.masks.borrow().get(&key) {
            return Ok(Some(mask.clone()));
        }
        let unpadded = [0];
        let padding = self.left_padding.as_deref().unwrap_or(&unpadded);
        let mut mask = Vec::with_capacity(padding.len() * rows * total);
        for padding in padding {
            for query in first..first + rows {
                let oldest = window.map_or(0, |window| (query + 1).saturating_sub(window)).max(*padding);
                mask.extend((0..total).map(|key| {
                    let visible = key == query || (key < query && key >= oldest);
                    if visible { 0f32 } else { f32::NEG_INFINITY }
                }));
            }
        }
        let mask = Tensor::from_vec(mask, (padding.len(), 1, rows, total), &self.device)?;
        let mask = mask.to_dtype(self.dtype)?;
        self.masks.borrow_mut().insert(key, mask.clone());
        Ok(Some(mask))
    }
}

/// Whether the loops that are written for the CPU in float32 can be used.
pub(super) fn on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}
