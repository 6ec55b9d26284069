//! Which expressions are too much work to compute again.

use crate::checkpoint::expression::Expression;

/// Largest orthogonal matrix that is drawn again: it is held whole, and drawing it takes rows² · columns steps.
const LARGEST_ORTHOGONAL: u64 = 1 << 22;

/// Most parts of an expression: each is read or drawn as often as the tensor is, so that a small manifest could ask for
/// years of work.
const MOST_PARTS: usize = 1 << 10;

/// Why an expression would take too long to compute, if it would.
pub(super) fn too_much(expression: &Expression, shape: &[u64]) -> Option<String> {
    let (parts, orthogonal) = (
        count(expression, &|_| true),
        count(expression, &is_orthogonal),
    );
    if parts > MOST_PARTS || orthogonal > 1 {
        return Some(format!(
            "is made of {parts} parts, {orthogonal} of them orthogonal matrices; at most {MOST_PARTS} and one are computed again"
        ));
    }
    if nests(expression, false) {
        return Some(
            "has a part that reads its whole tensor inside another one; no merge does so"
                .to_owned(),
        );
    }
    let elements = shape.iter().product::<u64>();
    (orthogonal == 1 && elements > LARGEST_ORTHOGONAL).then(|| {
        format!(
            "is an orthogonal matrix of {elements} values; at most {LARGEST_ORTHOGONAL} are drawn again"
        )
    })
}

/// How many of an expression's parts, itself among them, match.
fn count(expression: &Expression, matches: &dyn Fn(&Expression) -> bool) -> usize {
    // Each step of an adapter reads the tensor's values once more.
    let steps = match expression {
        Expression::Adapted { steps, .. } => steps.len(),
        _ => 0,
    };
    let parts = expression.parts().iter();
    let parts: usize = parts.map(|part| count(part, matches)).sum();
    usize::from(matches(expression)) * (1 + steps) + parts
}

/// Whether an expression that reads whole tensors or rows several times has one of its kind inside, which would multiply the
/// readings at every level.
fn nests(expression: &Expression, is_inside: bool) -> bool {
    let reads_again = matches!(
        expression,
        Expression::Slerp { .. }
            | Expression::Trim { .. }
            | Expression::Thin { .. }
            | Expression::ThinByRank { .. }
            | Expression::ModelStock { .. }
    );
    is_inside && reads_again
        || expression
            .parts()
            .iter()
            .any(|part| nests(part, is_inside || reads_again))
}

fn is_orthogonal(expression: &Expression) -> bool {
    matches!(expression, Expression::Orthogonal { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_that_multiply_at_every_level_are_refused() {
        let nested = |levels: usize| {
            (0..levels).fold(Expression::copy("a", "x"), |of, _| Expression::ThinByRank {
                of: Box::new(of),
                density: 0.5,
                epsilon: 0.1,
                seed: 0,
                key: String::new(),
                rescale: false,
            })
        };
        assert!(too_much(&nested(1), &[4]).is_none());
        assert!(too_much(&nested(2), &[4]).is_some());
        let trimmed = Expression::Trim {
            of: Box::new(Expression::Mean {
                of: vec![Expression::copy("a", "x"), nested(1)],
            }),
            density: 0.5,
            rescale: true,
        };
        assert!(too_much(&trimmed, &[4]).is_some());
    }
}
