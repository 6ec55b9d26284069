//! Whether a planned mixture has a shared expert that is there for its format alone.

use super::plan::{PlannedTensor, Source};
use crate::Result;
use crate::card;
use crate::checkpoint::expression::Expression;
use crate::family::Architecture;

/// Whether the shared expert of a planned mixture adds nothing.
pub(super) fn has_neutral_shared_expert<'a>(
    architecture: &Architecture,
    tensors: &[PlannedTensor],
    sources: impl IntoIterator<Item = &'a Source>,
) -> Result<bool> {
    let sources: Vec<&Source> = sources.into_iter().collect();
    card::has_neutral_shared_expert(architecture, |name| {
        let planned = tensors.iter().find(|tensor| tensor.layout.name == name);
        planned.is_some_and(|tensor| is_zero(&tensor.expression, &sources))
    })
}

fn is_zero(expression: &Expression, sources: &[&Source]) -> bool {
    match expression {
        Expression::Constant { value } => *value == 0.0,
        Expression::Copy { source, tensor } => sources
            .iter()
            .find(|known| known.name == *source)
            .and_then(|known| Some((&known.checkpoint, known.checkpoint.tensors.get(tensor)?)))
            .is_some_and(|(checkpoint, entry)| checkpoint.holds_zeros(entry)),
        Expression::AddNoise { .. }
        | Expression::Redraw { .. }
        | Expression::Adapted { .. }
        | Expression::BlockScaled { .. }
        | Expression::Trained { .. } => false,
        // All others make zeros of zeros, or have no parts and are no zeros.
        other => {
            let parts = other.parts();
            !parts.is_empty() && parts.iter().all(|part| is_zero(part, sources))
        }
    }
}
