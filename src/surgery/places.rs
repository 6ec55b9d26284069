//! Entries of an axis that are drawn, and the working space of a thread, which keeps random orders.

use std::collections::VecDeque;
use std::sync::Arc;

use super::random::Draws;
use crate::checkpoint::expression::Drawn;

/// Drawn entries of an axis of `extent` entries, each of them `inner` elements in a row.
pub(super) struct Places<'a> {
    pub(super) drawn: &'a Drawn,
    pub(super) extent: u64,
    pub(super) inner: u64,
}

impl Places<'_> {
    /// The random order of the whole axis.
    pub(super) fn order(&self) -> Arc<[u32]> {
        Draws::new(self.drawn.seed, &self.drawn.key)
            .order(self.extent as u32)
            .into()
    }

    /// For each entry whether it is drawn.
    pub(super) fn mask(&self, scratch: &mut Scratch) -> Vec<bool> {
        let order = scratch.order(self);
        let mut mask = vec![false; self.extent as usize];
        let (start, length) = (self.drawn.start as usize, self.drawn.length as usize);
        for entry in &order[start..start + length] {
            mask[*entry as usize] = true;
        }
        mask
    }

    /// Calls `draw` with each drawn element of `first..` that is in `out`, and its standard normal draw.
    pub(super) fn draw(
        &self,
        draws: &Draws,
        first: u64,
        out: &mut [f64],
        scratch: &mut Scratch,
        draw: impl Fn(&mut f64, f64),
    ) {
        let mask = self.mask(scratch);
        if self.inner == 1 {
            let wanted = |element: u64| mask[(element % self.extent) as usize];
            draws.normal_where(first, out.len(), wanted, |at, drawn| {
                draw(&mut out[at], drawn)
            });
            return;
        }
        let mut normals = scratch.free.pop().unwrap_or_default();
        let (mut position, mut rest) = (first, out);
        while !rest.is_empty() {
            let length = (self.inner - position % self.inner).min(rest.len() as u64);
            let (piece, others) = rest.split_at_mut(length as usize);
            if mask[(position / self.inner % self.extent) as usize] {
                normals.resize(piece.len(), 0.0);
                draws.normal(position, &mut normals);
                piece
                    .iter_mut()
                    .zip(&normals)
                    .for_each(|(value, drawn)| draw(value, *drawn));
            }
            (position, rest) = (position + length, others);
        }
        scratch.free.push(normals);
    }
}

/// Working space of one thread.
#[derive(Default)]
pub struct Scratch {
    pub(super) raw: Vec<u8>,
    pub(super) values: Vec<f64>,
    pub(super) free: Vec<Vec<f64>>,
    /// The random orders last used: chunks of one tensor, and the matrices of one expert, share theirs.
    orders: VecDeque<Order>,
}

/// A random order: seed, key, entries.
type Order = ((u64, String, u64), Arc<[u32]>);

/// Random orders that a thread keeps.
const MOST_ORDERS: usize = 3;

impl Scratch {
    /// The random order of an axis.
    pub(super) fn order(&mut self, places: &Places) -> Arc<[u32]> {
        let (seed, key, extent) = (places.drawn.seed, &places.drawn.key, places.extent);
        if let Some((_, order)) = self
            .orders
            .iter()
            .find(|((s, k, e), _)| *s == seed && k == key && *e == extent)
        {
            return order.clone();
        }
        if self.orders.len() == MOST_ORDERS {
            self.orders.pop_front();
        }
        let order = places.order();
        self.orders
            .push_back(((seed, key.clone(), extent), order.clone()));
        order
    }
}
