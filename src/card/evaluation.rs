//! Scores that were measured after a model was made: in the front matter of its card, and in a section of their own.

use std::path::Path;

use super::front_matter::{self, FrontMatter};
use super::scores::{DataScore, replace_results};
use crate::Result;
use crate::checkpoint::card_text::{EVALUATION, sealed, unsealed, with_section, without_seal};
use crate::checkpoint::folder::CARD;
use crate::checkpoint::yaml;
use crate::markdown;

/// The card of a folder with these scores, and with the tables that show them; `name` is what to call the model.
///
/// Scores on other data stay. A card that this program wrote still counts as unedited.
///
/// # Errors
/// A card that is not UTF-8, or whose front matter is no YAML.
pub fn with_evaluation(
    folder: &Path,
    name: &str,
    scores: &[DataScore],
    tables: &str,
) -> Result<String> {
    let path = folder.join(CARD);
    let text = if path.exists() {
        yaml::read_text(&path)?
    } else {
        format!("# {}\n", markdown::text(name))
    };
    let is_ours = !path.exists() || unsealed(&text).is_some();
    let (lines, body) = front_matter::split(&path, without_seal(&text))?;
    let known = front_matter::keys(&path, lines)?;
    let mut lines: Vec<&str> = lines.lines().collect();
    let mut added = FrontMatter::default();
    replace_results(name, scores, (&known, is_ours), &mut lines, &mut added);
    let kept: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let card = front_matter::joined(&format!("{kept}{}", added.lines()?), &put(body, tables));
    Ok(if is_ours { sealed(&card) } else { card })
}

/// Refuses a folder whose card cannot be edited.
///
/// # Errors
/// As [`with_evaluation`].
pub fn check_card(folder: &Path) -> Result<()> {
    with_evaluation(folder, "", &[], "").map(drop)
}

/// The body of a card with a section of these tables, in the place of an earlier one.
pub(super) fn put(body: &str, tables: &str) -> String {
    with_section(body, EVALUATION, &format!("## Evaluation\n\n{tables}"))
}
