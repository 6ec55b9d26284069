//! Text as it comes, token by token.

use super::tokenizer::Tokenizer;
use crate::Result;

/// Generated text: whole characters only, up to the first stop string.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    ids: Vec<u32>,
    /// Tokens from here on are decoded again, because what a token says depends on those before it.
    context: usize,
    /// Tokens up to here are in `text`.
    read: usize,
    text: String,
    shown: usize,
    stopped: bool,
}

/// Tokens of the prompt that are decoded together with the first new one.
const CONTEXT: usize = 8;

impl<'a> TextStream<'a> {
    /// The text after `prompt`, which ends where one of `stops` begins.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let read = ids.len();
        Self {
            tokenizer,
            stops,
            ids,
            context: 0,
            read,
            text: String::new(),
            shown: 0,
            stopped: false,
        }
    }

    /// Takes a token; returns what can be shown now.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.advance(false)
    }

    /// What was held back: characters that never became whole, and beginnings of stop strings.
    pub fn finish(&mut self) -> Result<String> {
        self.advance(true)
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// All text that could be shown so far.
    pub fn text(&self) -> &str {
        &self.text[..self.shown]
    }

    fn advance(&mut self, end: bool) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let before = self.tokenizer.decode(&self.ids[self.context..self.read])?;
        let after = self.tokenizer.decode(&self.ids[self.context..])?;
        // A character that is not whole yet decodes as U+FFFD.
        if end || !after.ends_with('\u{fffd}') {
            let common = before
                .bytes()
                .zip(after.bytes())
                .take_while(|(a, b)| a == b)
                .count();
            let common = (0..=common)
                .rev()
                .find(|at| after.is_char_boundary(*at))
                .unwrap_or(0);
            self.text.push_str(&after[common..]);
            (self.context, self.read) = (self.read, self.ids.len());
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = (0..=self.shown.saturating_sub(longest))
            .rev()
            .find(|at| self.text.is_char_boundary(*at))
            .unwrap_or(0);
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        let mut until = self.text.len();
        if let Some(at) = stops
            .clone()
            .filter_map(|stop| self.text[from..].find(stop.as_str()))
            .min()
        {
            until = from + at;
            self.stopped = true;
        } else if !end {
            let held = |stop: &String| {
                (1..stop.len())
                    .rev()
                    .filter(|at| stop.is_char_boundary(*at))
                    .find(|at| self.text.ends_with(&stop[..*at]))
            };
            until -= stops.filter_map(held).max().unwrap_or(0);
        }
        let until = until.max(self.shown);
        let piece = self.text[self.shown..until].to_owned();
        self.shown = until;
        Ok(piece)
    }
}
