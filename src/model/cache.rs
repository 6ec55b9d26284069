//! Keys and values of the positions that a model has seen.

use candle_core::{Device, Result, Tensor};

/// The keys and values of all layers, for decoding token by token.
///
/// A layer keeps one pair of `[batch · key heads, capacity, head_dim]`. Attention experts with shared keys and values need
/// the memory of the dense seed. Experts with their own need it once per expert.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    pub(super) batch: usize,
    pub(super) length: usize,
    pub(super) left_padding: Option<Vec<usize>>,
    /// The token ids `[batch, length or more]`, kept where a longer text makes the keys stale.
    seen: Option<Tensor>,
    /// How many rotations of the model have switched to their frequencies of long texts.
    pub(super) switched: usize,
}

impl KvCache {
    /// An empty cache; the first pass that it is given to fills it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions seen, padding included.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no position has been seen.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Forgets all positions from `length` on; memory is kept.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        if self.length == 0 {
            self.left_padding = None;
        }
    }

    /// The token ids of all positions and of these.
    pub(super) fn with_seen(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.seen {
            Some(seen) if self.length > 0 => {
                Tensor::cat(&[&seen.narrow(1, 0, self.length)?, tokens], 1)
            }
            _ => Ok(tokens.clone()),
        }
    }

    /// Keeps the token ids of new positions, before [`Self::length`] counts them.
    pub(super) fn remember(&mut self, tokens: &Tensor) -> Result<()> {
        self.seen = Some(self.with_seen(tokens)?);
        Ok(())
    }

    /// Size of its tensors in bytes.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().filter_map(|layer| layer.pair.as_ref());
        layers
            .flat_map(|(k, v)| [k, v])
            .map(|t| t.elem_count() * t.dtype().size_in_bytes())
            .sum()
    }
}

/// Keys and values of one layer.
#[derive(Debug, Clone, Default)]
pub(super) struct LayerCache {
    pair: Option<(Tensor, Tensor)>,
}

impl LayerCache {
    /// Writes keys and values `[rows, seq, head_dim]` at `offset`, and returns all up to their end.
    pub(super) fn append(
        &mut self,
        keys: &Tensor,
        values: &Tensor,
        offset: usize,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, seq, head_dim) = keys.dims3()?;
        let end = offset + seq;
        let (old_keys, old_values) = match self.pair.take() {
            Some((k, v)) if k.dim(1)? >= end && (k.dim(0)?, k.dim(2)?) == (rows, head_dim) => {
                (k, v)
            }
            old => {
                // Growing by halves keeps the copying of old positions a constant share of the work.
                let capacity = end.max(offset + offset / 2).next_multiple_of(64);
                let grown = |old: Option<&Tensor>| -> Result<Tensor> {
                    let new = Tensor::zeros(
                        (rows, capacity, head_dim),
                        keys.dtype(),
                        keys.device() as &Device,
                    )?;
                    if let Some(old) = old.filter(|_| offset > 0) {
                        new.slice_set(&old.narrow(1, 0, offset)?.contiguous()?, 1, 0)?;
                    }
                    Ok(new)
                };
                (
                    grown(old.as_ref().map(|pair| &pair.0))?,
                    grown(old.as_ref().map(|pair| &pair.1))?,
                )
            }
        };
        old_keys.slice_set(&keys.contiguous()?, 1, offset)?;
        old_values.slice_set(&values.contiguous()?, 1, offset)?;
        let seen = (old_keys.narrow(1, 0, end)?, old_values.narrow(1, 0, end)?);
        self.pair = Some((old_keys, old_values));
        Ok(seen)
    }
}
