//! Conversations as a model was trained to read them: the checkpoint's chat template.
//!
//! Rendered as transformers renders it: Jinja with `trim_blocks` and `lstrip_blocks`, the variables `messages`,
//! `add_generation_prompt` and the special tokens, and the functions `raise_exception` and `strftime_now`. A template is
//! input like any other: it has no files, and a bounded number of steps. With the clock it may say what day it is.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::checkpoint::json;
use crate::{Error, Result};

const FILE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Steps that a template may take; real ones take some thousand. Texts count by their length, so that this bounds the memory.
const STEPS: u64 = 2_000_000;
/// Time that it may take; real ones take some milliseconds.
const LONGEST: Duration = Duration::from_secs(5);
/// Bytes that it may write: the context of a model holds less.
const LARGEST: usize = 16 << 20;
/// Bytes of stack to render it on.
const STACK: usize = 8 << 20;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// The chat template of a checkpoint.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    special: Map<String, Value>,
}

impl ChatTemplate {
    /// The template of the checkpoint in `folder`: `chat_template.jinja`, or what `tokenizer_config.json` holds.
    pub fn load(folder: &Path) -> Result<Self> {
        let (config, special) = (object(folder, TOKENIZER_CONFIG)?, special_tokens(folder)?);
        let path = folder.join(FILE);
        if path.exists() {
            let source = String::from_utf8(json::read_bytes(&path)?)
                .map_err(|_| Error::file(&path, "expected text in UTF-8"))?;
            return Ok(Self {
                path,
                source,
                special,
            });
        }
        let path = folder.join(TOKENIZER_CONFIG);
        let source = match config.get("chat_template") {
            Some(Value::String(source)) => Some(source.clone()),
            Some(Value::Array(named)) => named
                .iter()
                .find(|template| template.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|template| template.get("template")?.as_str())
                .map(str::to_owned),
            _ => None,
        };
        match source {
            Some(source) => Ok(Self {
                path,
                source,
                special,
            }),
            None => Err(Error::file(
                folder,
                format!(
                    "has no chat template: neither {FILE} nor chat_template in {TOKENIZER_CONFIG}"
                ),
            )
            .with_hint("a model that was not trained on conversations has none: leave out --chat")),
        }
    }

    /// The text of a conversation, up to where the assistant speaks next with `add_generation_prompt`.
    ///
    /// It holds its special tokens itself: encode it without adding any.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let failed = |e: minijinja::Error| {
            let mut problem = format!("the chat template cannot be rendered: {e}");
            let mut source = std::error::Error::source(&e);
            while let Some(cause) = source {
                problem.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            Error::file(&self.path, problem)
        };
        // In a thread of its own, which is left behind where the time is over: some operations, such as counting a list of
        // lists, are one step however long they take.
        let (template, messages) = (self.clone(), messages.to_vec());
        let (sender, receiver) = std::sync::mpsc::channel();
        let spawned = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || {
                // Nobody listens any more where the time is over.
                let _ = sender.send(template.text(&messages, add_generation_prompt));
            });
        spawned.map_err(|e| Error::compute("render the chat template", e))?;
        match receiver.recv_timeout(LONGEST) {
            Ok(text) => text.map_err(failed),
            Err(_) => {
                let problem = format!(
                    "the chat template is not rendered after {} seconds",
                    LONGEST.as_secs()
                );
                Err(Error::file(&self.path, problem))
            }
        }
    }

    fn text(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(STEPS));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", now);
        let special = minijinja::Value::from(Serde(&self.special));
        let messages = Serde(messages);
        let variables = context! { messages, add_generation_prompt, ..special };
        let mut text = Bounded(Vec::new());
        environment
            .template_from_str(&self.source)?
            .render_captured_to(variables, &mut text)?;
        // The engine writes text.
        Ok(String::from_utf8_lossy(&text.0).into_owned())
    }
}

/// Text up to [`LARGEST`] bytes.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST {
            return Err(std::io::Error::other(format!(
                "more than {LARGEST} bytes of text"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The local time in a format of C's `strftime`.
fn now(format: &str) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: `{format}` is no format of a time"),
        )
    })?;
    Ok(text)
}

/// The special tokens of the checkpoint in `folder` by the names that templates know them by, such as `bos_token`.
pub fn special_tokens(folder: &Path) -> Result<Map<String, Value>> {
    let mut special = named_tokens(&object(folder, SPECIAL_TOKENS)?);
    special.extend(named_tokens(&object(folder, TOKENIZER_CONFIG)?));
    Ok(special)
}

/// A JSON file of the folder; nothing where it has none.
fn object(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    if path.exists() {
        json::read_object(&path)
    } else {
        Ok(Map::new())
    }
}

fn named_tokens(object: &Map<String, Value>) -> Map<String, Value> {
    let named = object.iter().filter(|(key, _)| key.ends_with("_token"));
    let tokens = named.filter_map(|(key, value)| {
        // A token is a string, or an object that also says how it is stripped.
        let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some((key.clone(), Value::from(token)))
    });
    tokens.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let special = serde_json::json!({"bos_token": "<s>"})
            .as_object()
            .unwrap()
            .clone();
        ChatTemplate {
            path: PathBuf::from(FILE),
            source: source.to_owned(),
            special,
        }
    }

    fn user(content: &str) -> Message {
        Message {
            role: "user".to_owned(),
            content: content.to_owned(),
        }
    }

    /// Golden: `apply_chat_template` of transformers 5.23.0 on the same template and messages.
    #[test]
    fn blocks_are_trimmed_and_python_methods_known() {
        let source = "{{ bos_token }}\n{% for message in messages %}\n    {% if message['role'] == 'user' %}\n\
                      [INST] {{ message.content.strip() }} [/INST]\n    {% endif %}\n{% endfor %}\n\
                      {% if add_generation_prompt %}\n>\n{% endif %}\n";
        let text = template(source).render(&[user(" a <b> ")], true).unwrap();
        assert_eq!(text, "<s>\n[INST] a <b> [/INST]\n>\n");
    }

    #[test]
    fn a_template_can_refuse() {
        let error = template("{{ raise_exception('no system, please') }}")
            .render(&[user("a")], true)
            .unwrap_err();
        assert!(error.to_string().contains("no system, please"), "{error}");
    }

    #[test]
    fn a_template_knows_the_day() {
        let source = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('no time') }}";
        let text = template(source).render(&[user("a")], true).unwrap();
        let [day, date, plain] = text.split('|').collect::<Vec<_>>()[..] else {
            panic!("{text}")
        };
        let read = |text, format| chrono::NaiveDate::parse_from_str(text, format).unwrap();
        let today = chrono::Local::now().date_naive();
        // Midnight may pass between two calls.
        assert!(
            (today - read(day, "%d %b %Y")).num_days() <= 1
                && (today - read(date, "%Y-%m-%d")).num_days() <= 1
        );
        assert_eq!(plain, "no time");
        let error = template("{{ strftime_now('%Q') }}")
            .render(&[user("a")], true)
            .unwrap_err();
        assert!(
            error.to_string().contains("`%Q` is no format of a time"),
            "{error}"
        );
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let source =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let error = template(source).render(&[user("a")], true).unwrap_err();
        assert!(error.to_string().contains("fuel"), "{error}");
    }
}
