//! Conversations as a model was trained to read them: the checkpoint's chat template.
//!
//! The text is the one that `apply_chat_template` of transformers makes of the same template and conversation.
//! A template is a program from a stranger. [`RenderRequest::text`] bounds its steps and its output, but it can still exhaust
//! the stack or the memory. Render in a process that may die: the command line does.

mod render;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::json;
use crate::{Error, Result};

const FILE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Bytes of the longest template. Templates that models ship have at most some ten thousand.
const LONGEST_TEMPLATE: u64 = 1 << 20;

/// What a chat template lays out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Conversation {
    /// The turns, each with `role` and `content`, and what else the template reads, such as `tool_calls`.
    pub messages: Vec<Map<String, Value>>,
    /// JSON schemas of the functions that the model may call.
    pub tools: Option<Vec<Value>>,
    /// What the model may quote, each with `title` and `text`.
    pub documents: Option<Vec<Value>>,
    /// Whether the text ends where the assistant speaks next.
    pub add_generation_prompt: bool,
    /// Other variables of the template, such as `enable_thinking`. They replace special tokens of the same name.
    pub variables: Map<String, Value>,
}

impl Conversation {
    /// A user's question, perhaps after a system message, that the assistant answers next.
    pub fn question(system: Option<&str>, user: &str) -> Self {
        let turn = |role: &str, content: &str| {
            let pairs = [("role", role), ("content", content)];
            Map::from_iter(pairs.map(|(key, text)| (key.to_owned(), Value::from(text))))
        };
        let system = system.map(|text| turn("system", text));
        Self {
            messages: system.into_iter().chain([turn("user", user)]).collect(),
            add_generation_prompt: true,
            ..Self::default()
        }
    }
}

/// All that the text of a conversation depends on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenderRequest {
    source: String,
    special: Map<String, Value>,
    conversation: Conversation,
}

/// The chat template of a checkpoint.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    /// The template for conversations with tools, where the checkpoint has one.
    tool_use: Option<String>,
    special: Map<String, Value>,
}

impl ChatTemplate {
    /// The template of the checkpoint in `folder`: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`.
    pub fn load(folder: &Path) -> Result<Self> {
        let (config, special) = (object(folder, TOKENIZER_CONFIG)?, special_tokens(folder)?);
        let path = folder.join(FILE);
        if path.exists() {
            let source = String::from_utf8(json::read_bytes_up_to(&path, LONGEST_TEMPLATE)?)
                .map_err(|_| Error::file(&path, "expected text in UTF-8"))?;
            return Self::new(path, source, None, special);
        }
        let path = folder.join(TOKENIZER_CONFIG);
        match config.get("chat_template") {
            Some(Value::String(source)) => Self::new(path, source.clone(), None, special),
            Some(Value::Array(named)) => {
                let source = |name| named_template(named, name);
                let Some(default) = source("default") else {
                    let problem = "expected a template with the name `default`, found none";
                    return Err(Error::key(path, "chat_template", problem));
                };
                Self::new(path, default, source("tool_use"), special)
            }
            Some(Value::Null) | None => Err(Error::file(
                folder,
                format!(
                    "has no chat template: neither {FILE} nor chat_template in {TOKENIZER_CONFIG}"
                ),
            )
            .with_hint("a model that was not trained on conversations has none: leave out --chat")),
            Some(other) => {
                let problem = format!(
                    "expected a template or a list of named templates, found {}",
                    json::kind(other)
                );
                Err(Error::key(path, "chat_template", problem))
            }
        }
    }

    fn new(
        path: PathBuf,
        source: String,
        tool_use: Option<String>,
        special: Map<String, Value>,
    ) -> Result<Self> {
        let length = source.len().max(tool_use.as_ref().map_or(0, String::len));
        if length as u64 > LONGEST_TEMPLATE {
            let problem = format!(
                "expected a chat template of at most {LONGEST_TEMPLATE} bytes, found {length}"
            );
            return Err(Error::file(path, problem));
        }
        Ok(Self {
            path,
            source,
            tool_use,
            special,
        })
    }

    /// What to render for this conversation.
    pub fn request(&self, conversation: Conversation) -> RenderRequest {
        let for_tools = self
            .tool_use
            .as_ref()
            .filter(|_| conversation.tools.is_some());
        RenderRequest {
            source: for_tools.unwrap_or(&self.source).clone(),
            special: self.special.clone(),
            conversation,
        }
    }

    /// The error for a conversation that this template cannot render.
    pub fn refused(&self, problem: &str) -> Error {
        Error::file(
            &self.path,
            format!("the chat template cannot be rendered: {problem}"),
        )
    }
}

fn named_template(templates: &[Value], name: &str) -> Option<String> {
    let named = |template: &&Value| template.get("name").and_then(Value::as_str) == Some(name);
    let template = templates.iter().find(named)?;
    template.get("template")?.as_str().map(str::to_owned)
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
