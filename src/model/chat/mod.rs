//! Conversations as a model was trained to read them: the checkpoint's chat template.
//!
//! The text is the one that `apply_chat_template` of transformers makes of the same template and conversation.
//! What the template engine cannot do as Jinja2 does is refused, such as `%` after a text that is no literal. Known exceptions print
//! otherwise: ranges and the groups of `groupby` as lists, and floats that Python writes with an exponent before or after `~`.
//! Values of several types compare, where Python raises an error.
//!
//! A template is a program from a stranger. [`RenderRequest::text`] bounds its steps and its output, but it can still exhaust
//! the stack or the memory. Render in a process that may die: the command line does.

mod answers;
mod bounds;
mod error;
mod filters;
mod marks;
mod methods;
mod percent;
mod python;
mod render;
mod request;
mod source;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::json;
use crate::error::InputError;
use crate::{Error, Result};

pub(crate) use answers::ASSISTANT;
pub use answers::{RenderChat, answered};
pub use error::ChatError;
pub use request::{Conversation, RenderRequest, RenderedChat};

/// Name of the file of a chat template.
pub(crate) const FILE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Name of the file of special tokens.
pub(crate) const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Name of the template for conversations with tools, where the usual one is a file of its own.
pub(crate) const TOOL_USE: &str = "additional_chat_templates/tool_use.jinja";
/// Bytes of the longest template. Templates that models ship have at most some ten thousand.
const LONGEST_TEMPLATE: u64 = 1 << 20;

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
            let mut template = Self::read(path, special)?;
            let tool_use = folder.join(TOOL_USE);
            if tool_use.exists() {
                let tool_use = Self::read(tool_use, Map::new())?;
                template.tool_use = Some(tool_use.source);
            }
            return Ok(template);
        }
        let path = folder.join(TOKENIZER_CONFIG);
        match config.get("chat_template") {
            Some(Value::String(source)) => Self::new(path, source.clone(), None, special),
            Some(Value::Array(named)) => {
                let source = |name| named_template(named, name);
                let Some(default) = source("default") else {
                    return Err(ChatError::NoDefault { path }.into());
                };
                Self::new(path, default, source("tool_use"), special)
            }
            Some(Value::Null) | None => {
                let path = folder.to_path_buf();
                Err(ChatError::NoTemplate { path }.into())
            }
            Some(other) => Err(InputError::WrongValue {
                at: path.into(),
                key: "chat_template".into(),
                expected: "a template or a list of named templates".into(),
                found: json::kind(other).to_owned(),
            }
            .into()),
        }
    }

    /// The template in a file of its own, with the special tokens of the checkpoint in `folder`.
    pub fn from_file(path: &Path, folder: &Path) -> Result<Self> {
        Self::read(path.to_path_buf(), special_tokens(folder)?)
    }

    fn read(path: PathBuf, special: Map<String, Value>) -> Result<Self> {
        let source = String::from_utf8(json::read_bytes_up_to(&path, LONGEST_TEMPLATE)?)
            .map_err(|_| ChatError::NotUtf8 { path: path.clone() })?;
        Self::new(path, source, None, special)
    }

    fn new(
        path: PathBuf,
        source: String,
        tool_use: Option<String>,
        special: Map<String, Value>,
    ) -> Result<Self> {
        let length = source.len().max(tool_use.as_ref().map_or(0, String::len));
        if length as u64 > LONGEST_TEMPLATE {
            return Err(ChatError::LongTemplate {
                path,
                most: LONGEST_TEMPLATE,
                length,
            }
            .into());
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
        RenderRequest {
            source: self.source_for(&conversation).to_owned(),
            special: self.special.clone(),
            conversation,
        }
    }

    /// The templates: the usual one, and the one for conversations with tools, where there is one.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.source.as_str()).chain(self.tool_use.as_deref())
    }

    /// Whether the text depends on the day.
    pub fn reads_clock(&self) -> bool {
        self.sources().any(|source| source.contains("strftime_now"))
    }

    fn source_for(&self, conversation: &Conversation) -> &str {
        let for_tools = self.tool_use.as_deref();
        let for_tools = for_tools.filter(|_| conversation.tools.is_some());
        for_tools.unwrap_or(&self.source)
    }

    /// The error for a conversation that this template cannot render.
    pub fn refused(&self, problem: &str) -> Error {
        ChatError::Render {
            path: self.path.clone(),
            problem: problem.to_owned(),
        }
        .into()
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
