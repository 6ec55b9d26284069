//! The card of a model, as a copy of the model carries it.

use std::path::Path;

use serde_json::{Map, Value};

use super::front_matter;
use super::scores::MODEL_INDEX;
use super::source::card_of;
use super::usage;
use crate::checkpoint::card_text::{
    COPY, EVALUATION, PUBLISHED, RECIPE, without_seal, without_section,
};
use crate::checkpoint::folder::CARD;

/// The model that another is a copy of.
#[derive(Clone, Copy, Debug)]
pub struct CopyOf<'a> {
    /// Its folder, or its file.
    pub path: &'a Path,
    /// Whether the copy has the same values, so that scores of the model are also scores of the copy.
    pub same_values: bool,
}

/// A card without what is true of its own folder alone.
pub(super) struct CarriedCard {
    /// Lines of the front matter.
    pub(super) lines: String,
    /// Its keys.
    pub(super) keys: Map<String, Value>,
    /// The text below.
    pub(super) body: String,
    /// Whether the card had scores, which the copy does not have.
    pub(super) lost_scores: bool,
}

impl CarriedCard {
    /// The card of the model that `copy` is made of, if it has one.
    ///
    /// Front matter that is no YAML stays out of the new card, which could not be published with it.
    pub(super) fn of(copy: CopyOf) -> Option<Self> {
        let card = card_of(copy.path)?;
        let mut text = without_seal(&card).to_owned();
        for marks in [COPY, RECIPE, PUBLISHED] {
            text = without_section(&text, marks).unwrap_or(text);
        }

        let mut lost_scores = false;
        if !copy.same_values
            && let Some(without) = without_section(&text, EVALUATION)
        {
            (text, lost_scores) = (without, true);
        }
        let path = copy.path.join(CARD);
        let (lines, body) = front_matter::split(&path, &text).unwrap_or(("", &text));
        let (lines, mut keys) = match front_matter::keys(&path, lines) {
            Ok(keys) => (lines, keys),
            Err(_) => ("", Map::new()),
        };
        let mut lines: Vec<&str> = lines.lines().collect();
        if !copy.same_values && keys.shift_remove(MODEL_INDEX).is_some() {
            front_matter::remove(&mut lines, MODEL_INDEX);
            lost_scores = true;
        }
        let lines = lines.iter().map(|line| format!("{line}\n")).collect();
        let body = usage::without_section(body).unwrap_or_else(|| body.to_owned());
        Some(Self {
            lines,
            keys,
            body: body.trim_start_matches(['\r', '\n']).to_owned(),
            lost_scores,
        })
    }
}
