//! Token ids against the rows of the embedding.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::report::{FindingPlace, Running, ValidationReport};
use super::subject::Subject;
use crate::Result;
use crate::checkpoint::json;
use crate::family::each_token_id;

const TOKENIZER: &str = "tokenizer.json";
const GENERATION: &str = "generation_config.json";
/// Tokenizers in formats that are carried along but not read.
const OTHERS: [&str; 6] = [
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "tokenizer.tiktoken",
    "vocab.json",
    "vocab.txt",
];
/// Keys that hold the id of a special token, or a list of ids.
const SPECIAL: [&str; 4] = [
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
];

/// Adds the rows `tokenizer` and `special ids`.
pub(super) fn check(report: &mut ValidationReport, subject: &Subject) -> Result<()> {
    let described = subject.described();
    let is_inside = described.is_some() && !subject.path.join(TOKENIZER).exists();
    if !subject.is_folder() || is_inside {
        let reason = described.map_or("a single file".to_owned(), |described| {
            format!("inside the {}", described.name)
        });
        report.skip("tokenizer", reason.clone());
        report.skip("special ids", reason);
        return Ok(());
    }
    let vocab_size = subject.vocab_size();
    tokenizer(report, subject, vocab_size)?;
    special_ids(report, subject, vocab_size)
}

fn tokenizer(
    report: &mut ValidationReport,
    subject: &Subject,
    vocab_size: Option<u64>,
) -> Result<()> {
    let mut check = report.check("tokenizer");
    let path = subject.path.join(TOKENIZER);
    if !path.exists() {
        let other = OTHERS
            .into_iter()
            .find(|name| subject.path.join(name).is_file());
        match other {
            Some(name) => check.done(format!("{name} is there; its ids are not read")),
            None => {
                check.warn(
                    FindingPlace::file(TOKENIZER),
                    "is missing: the checkpoint cannot turn text into tokens",
                );
                check.done("no tokenizer");
            }
        }
        return Ok(());
    }
    let ids = match json::read_object(&path) {
        Ok(object) => highest_id(&mut check, &object),
        Err(error) => {
            check.fault_of(error)?;
            None
        }
    };
    let detail = match (ids, vocab_size) {
        (Some((tokens, highest)), Some(rows)) => {
            if highest >= rows {
                let problem = format!(
                    "has the token id {highest}, but the embedding has {rows} rows (vocab_size)"
                );
                check.fault(FindingPlace::file(TOKENIZER), problem);
            }
            format!("{tokens} tokens, highest id {highest}, vocabulary {rows}")
        }
        (Some((tokens, highest)), None) => {
            format!("{tokens} tokens, highest id {highest}, vocabulary unknown")
        }
        (None, _) => TOKENIZER.to_owned(),
    };
    check.done(detail);
    Ok(())
}

/// Number of ids and the highest among them; added tokens often stand in the vocabulary too.
fn highest_id(check: &mut Running, object: &Map<String, Value>) -> Option<(u64, u64)> {
    let mut ids = BTreeSet::new();
    let vocab = object.get("model").and_then(|model| model.get("vocab"));
    if !vocab.is_some_and(|vocab| vocab.is_object() || vocab.is_array()) {
        check.fault(
            FindingPlace::key(TOKENIZER, "model.vocab"),
            "expected the tokens with their ids, found none",
        );
    }
    each_token_id(object, &mut |key, _, id| match id {
        Some(id) => _ = ids.insert(id),
        None => check.fault(
            FindingPlace::key(TOKENIZER, key),
            "expected a token id, found something else",
        ),
    });
    ids.last().map(|highest| (ids.len() as u64, *highest))
}

fn special_ids(
    report: &mut ValidationReport,
    subject: &Subject,
    vocab_size: Option<u64>,
) -> Result<()> {
    let mut check = report.check("special ids");
    let path = subject.path.join(GENERATION);
    let generation = if path.exists() {
        match json::read_object(&path) {
            Ok(object) => Some(object),
            Err(error) => {
                check.fault_of(error)?;
                None
            }
        }
    } else {
        None
    };
    let config = subject.config.as_ref().map(|config| &config.json);
    let mut seen = 0;
    for (file, object) in [("config.json", config), (GENERATION, generation.as_ref())] {
        let Some(object) = object else { continue };
        for key in SPECIAL {
            let ids = match object.get(key) {
                None | Some(Value::Null) => continue,
                Some(Value::Array(ids)) => ids.as_slice(),
                Some(id) => std::slice::from_ref(id),
            };
            for id in ids {
                seen += 1;
                match (id.as_u64(), vocab_size) {
                    (Some(id), Some(rows)) if id >= rows => {
                        let problem =
                            format!("is {id}, but the embedding has {rows} rows (vocab_size)");
                        check.fault(FindingPlace::key(file, key), problem);
                    }
                    (Some(_), _) => {}
                    // −1 was an early spelling of "none".
                    (None, _) if id.is_i64() => check.warn(
                        FindingPlace::key(file, key),
                        format!("is {id}, no token id"),
                    ),
                    (None, _) => {
                        check.fault(
                            FindingPlace::key(file, key),
                            format!("expected a token id, found {}", json::kind(id)),
                        );
                    }
                }
            }
        }
    }
    check.done(format!("{seen} ids in config.json and {GENERATION}"));
    Ok(())
}
