//! Planned tensors put together into the tensors that the files of a family have in their place.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::PlannedTensor;
use super::plan_error::PlanError;
use crate::Result;
use crate::checkpoint::FusedTensor;
use crate::checkpoint::expression::Expression;
use crate::family::Architecture;

/// The tensors of `architecture` as its files have them, where some hold several projections.
pub(super) fn as_stored(
    architecture: &Architecture,
    tensors: Vec<PlannedTensor>,
) -> Result<Vec<PlannedTensor>> {
    let fused = architecture.fused_projections(&architecture.tensors()?)?;
    if fused.is_empty() {
        return Ok(tensors);
    }
    put_together(&fused, tensors)
}

/// The same tensors, where each fused tensor replaces its parts, at the place of the first of them.
pub(super) fn put_together(
    fused: &[FusedTensor],
    tensors: Vec<PlannedTensor>,
) -> Result<Vec<PlannedTensor>> {
    let mut whole: BTreeMap<&str, &FusedTensor> = BTreeMap::new();
    let mut by_name: BTreeMap<String, PlannedTensor> = BTreeMap::new();
    for fused in fused {
        whole.extend(
            fused
                .parts
                .first()
                .map(|(first, _)| (first.as_str(), fused)),
        );
    }
    let parts: BTreeSet<&str> = fused
        .iter()
        .flat_map(|fused| fused.parts.iter().map(|(name, _)| name.as_str()))
        .collect();
    let mut order = Vec::new();
    for tensor in tensors {
        order.push(tensor.layout.name.clone());
        by_name.insert(tensor.layout.name.clone(), tensor);
    }
    let mut made = Vec::new();
    for name in &order {
        match whole.get(name.as_str()) {
            Some(fused) => made.push(together(fused, &mut by_name)?),
            None if parts.contains(name.as_str()) => {}
            None => made.extend(by_name.remove(name)),
        }
    }
    Ok(made)
}

fn together(
    fused: &FusedTensor,
    by_name: &mut BTreeMap<String, PlannedTensor>,
) -> Result<PlannedTensor> {
    let parts: Vec<PlannedTensor> = fused
        .parts
        .iter()
        .filter_map(|(name, _)| by_name.remove(name))
        .collect();
    let Some(first) = parts.first() else {
        let tensor = fused.name.clone();
        return Err(PlanError::Nothing { tensor }.into());
    };
    let dtype = first.layout.dtype;
    if let Some(other) = parts.iter().find(|part| part.layout.dtype != dtype) {
        return Err(PlanError::MixedDtypes {
            part: other.layout.name.clone(),
            found: other.layout.dtype,
            tensor: fused.name.clone(),
            expected: dtype,
        }
        .into());
    }
    let entries = if fused.is_stack() {
        fused.shape[0] as usize
    } else {
        0
    };
    let mut of = parts.into_iter().map(|part| part.expression);
    let expression = match (entries, fused.parts.len().checked_div(entries)) {
        (_, None) => joined(of.collect(), fused.blocks),
        (_, Some(1)) => Expression::Stack { of: of.collect() },
        (_, Some(in_one)) => {
            let mut stacked = Vec::with_capacity(entries);
            for _ in 0..entries {
                stacked.push(Expression::Concat {
                    of: of.by_ref().take(in_one).collect(),
                    axis: 0,
                    blocks: 1,
                });
            }
            Expression::Stack { of: stacked }
        }
    };
    Ok(PlannedTensor::new(
        fused.name.clone(),
        dtype,
        fused.shape.clone(),
        expression,
    ))
}

/// The rows of `parts` one after another in each block.
pub(super) fn joined(mut parts: Vec<Expression>, blocks: u64) -> Expression {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let references: Vec<&Expression> = parts.iter().collect();
    whole(&references, blocks).unwrap_or(Expression::Concat {
        of: parts,
        axis: 0,
        blocks,
    })
}

/// The one expression that `parts` are the rows of, if there is one, so that nothing is cut only to be joined again. An average of
/// whole tensors has the values of the averages of their parts.
fn whole(parts: &[&Expression], blocks: u64) -> Option<Expression> {
    let all_of = |parts: &[&Expression]| -> Option<Vec<Expression>> {
        let number = parts.first()?.parts().len();
        if parts.iter().any(|part| part.parts().len() != number) {
            return None;
        }
        let each = (0..number).map(|at| {
            let column: Vec<&Expression> = parts.iter().map(|part| &part.parts()[at]).collect();
            whole(&column, blocks)
        });
        each.collect()
    };
    let first = *parts.first()?;
    let alike = |is_alike: &dyn Fn(&Expression) -> bool| parts.iter().all(|part| is_alike(part));
    match first {
        Expression::Slice { of, .. } => {
            let mut next = 0;
            let follows = parts.iter().all(|part| {
                let Expression::Slice {
                    of: other,
                    axis: 0,
                    start,
                    length,
                    blocks: others,
                } = part
                else {
                    return false;
                };
                let follows = other == of && *others == blocks && *start == next;
                next = start + length;
                follows
            });
            // The check of the plan compares its shape with the shape of all parts.
            follows.then(|| (**of).clone())
        }
        Expression::Mean { .. } if alike(&|part| matches!(part, Expression::Mean { .. })) => {
            Some(Expression::Mean { of: all_of(parts)? })
        }
        Expression::Weighted { weights, .. }
            if alike(
                &|part| matches!(part, Expression::Weighted { weights: others, .. } if others == weights),
            ) =>
        {
            Some(Expression::Weighted {
                of: all_of(parts)?,
                weights: weights.clone(),
            })
        }
        Expression::Sum { weights, .. }
            if alike(
                &|part| matches!(part, Expression::Sum { weights: others, .. } if others == weights),
            ) =>
        {
            Some(Expression::Sum {
                of: all_of(parts)?,
                weights: weights.clone(),
            })
        }
        Expression::Cast { .. } if alike(&|part| matches!(part, Expression::Cast { .. })) => {
            let of = Box::new(all_of(parts)?.pop()?);
            Some(Expression::Cast { of })
        }
        Expression::Dequantise { .. }
            if alike(&|part| matches!(part, Expression::Dequantise { .. })) =>
        {
            let of = Box::new(all_of(parts)?.pop()?);
            Some(Expression::Dequantise { of })
        }
        Expression::Normal { .. } | Expression::Constant { .. } => {
            alike(&|part| part == first).then(|| first.clone())
        }
        _ => None,
    }
}
