//! How a reader of the card runs the model.

use super::engines::ENGINES;
use crate::family::Architecture;

/// The heading of the section.
const HEADING: &str = "## Use\n\n";

/// What each engine that runs the model needs.
pub(super) fn section(architecture: &Architecture, has_tokenizer: bool) -> String {
    let texts = ENGINES
        .iter()
        .filter_map(|engine| engine.text(architecture, has_tokenizer));
    let texts: Vec<String> = texts.collect();
    format!("{HEADING}{}", texts.join("\n"))
}

/// The body of a card with the repository in the place of this folder.
pub(super) fn published(body: &str, repository: &str) -> String {
    ENGINES.iter().fold(body.to_owned(), |body, engine| {
        engine.published(&body, repository)
    })
}

/// The body of a card without its first section on use, which is about its own folder; `None` where it has none that this
/// program wrote.
pub(super) fn without_section(body: &str) -> Option<String> {
    let mut places = body.match_indices(HEADING).map(|(at, _)| at);
    let begin = places.find(|at| *at == 0 || body[..*at].ends_with('\n'))?;
    let mut rest = &body[begin + HEADING.len()..];
    for engine in &ENGINES {
        match engine.after(rest) {
            Some(after) => rest = after,
            None if engine.is_always => return None,
            None => {}
        }
    }
    let before = body[..begin].trim_end();
    let gap = if before.is_empty() || rest.is_empty() {
        ""
    } else {
        "\n\n"
    };
    Some(format!("{before}{gap}{rest}"))
}
