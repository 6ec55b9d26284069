//! Models of an upcycling with the same bytes: their experts start alike, which is seldom what the user wants.

use super::model::Model;
use crate::Result;
use crate::family::Role;

/// A sentence for each group of names whose models are the same bytes; the first model is the seed.
///
/// `members` are names with the numbers of their models. Models that differ are read up to the first difference.
pub(super) fn notes(models: &[Model], members: &[(&str, usize)]) -> Result<Vec<String>> {
    let mut groups: Vec<(usize, Vec<&str>)> = Vec::new();
    for (name, number) in members {
        let mut found = None;
        for (at, (first, _)) in groups.iter().enumerate() {
            if first == number || are_equal(&models[*first], &models[*number])? {
                found = Some(at);
                break;
            }
        }
        match found {
            Some(at) => groups[at].1.push(name),
            None => groups.push((*number, vec![name])),
        }
    }
    let several = groups.iter().filter(|(_, names)| names.len() > 1);
    let notes = several.map(|(_, names)| {
        format!(
            "{}: have the same weights, byte for byte, so these experts start alike",
            names.join(", ")
        )
    });
    Ok(notes.collect())
}

/// Whether all tensors of two models are the same bytes.
fn are_equal(a: &Model, b: &Model) -> Result<bool> {
    if a.specs.len() != b.specs.len() {
        return Ok(false);
    }
    // Training changes these first of all, so one piece is enough to see that models differ.
    let is_early = |number: &usize| a.specs[*number].role == Role::Down;
    let (early, late): (Vec<usize>, Vec<usize>) = (0..a.specs.len()).partition(is_early);
    for number in early.into_iter().chain(late) {
        let (one, other) = (a.entry(&a.specs[number])?, b.entry(&b.specs[number])?);
        let is_same = one.encoding == other.encoding && one.shape == other.shape;
        let (a, b) = (&a.source.checkpoint, &b.source.checkpoint);
        // What outlines hold is no weights yet.
        if !is_same
            || a.is_hole(one, 0, one.length)
            || !a.same_beginning(one, b, other, one.length)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}
