//! Blending (BTX, Sukhbaatar et al. 2024, section 4.3): expert n is the n-th chunk of every network, side by side.

use super::{Context, Part, cut, shard};
use crate::Result;
use crate::checkpoint::expression::Expression;

/// The width of a chunk of each of `networks` networks.
pub(super) fn chunk(width: u64, networks: u64) -> Result<u64> {
    cut(width, networks, "--blend")
}

/// The chunks of all networks along the axis of neurons; a bias of the output is their mean, each chunk's share added up.
pub(super) fn expression(part: &Part, context: &Context, of: Vec<Expression>) -> Expression {
    let width = context.width / of.len().max(1) as u64;
    match part.neurons() {
        Some(axis) => {
            let of = of
                .into_iter()
                .map(|network| shard(network, part, part.expert, width, context))
                .collect();
            Expression::Concat { of, axis }
        }
        None => Expression::Mean { of },
    }
}
