//! What a chat template lays out.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The names of a message's reasoning, by which it is looked up in this order.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation, and what else a chat template reads.
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
        let mut conversation = Self::begin(system);
        conversation.say("user", user);
        conversation
    }

    /// A conversation that begins, perhaps with a system message, and that the assistant continues.
    pub fn begin(system: Option<&str>) -> Self {
        let mut conversation = Self {
            add_generation_prompt: true,
            ..Self::default()
        };
        if let Some(text) = system {
            conversation.say("system", text);
        }
        conversation
    }

    /// Adds a turn: what `user` or `assistant` says.
    pub fn say(&mut self, role: &str, content: &str) {
        let pairs = [("role", role), ("content", content)];
        let pairs = pairs.map(|(key, text)| (key.to_owned(), Value::from(text)));
        self.messages.push(Map::from_iter(pairs));
    }

    /// The messages as transformers hands them to a template.
    pub(super) fn prepared_messages(&self) -> Vec<Map<String, Value>> {
        self.messages.iter().map(prepared).collect()
    }
}

/// The message without the keys that hold null, and with its reasoning under the names that templates know.
fn prepared(message: &Map<String, Value>) -> Map<String, Value> {
    let given = message.iter().filter(|(_, value)| !value.is_null());
    let given: Map<_, _> = given
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let Some(reasoning) = REASONING.iter().find_map(|name| given.get(*name)).cloned() else {
        return given;
    };
    let mut message = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    message.extend(given);
    message.insert("reasoning_content".to_owned(), reasoning);
    message
}

/// A conversation as its template lays it out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedChat {
    /// The text. It holds its special tokens itself: encode it without adding any.
    pub text: String,
    /// Where the assistant's answers are, in bytes of the text, in order.
    pub answers: Vec<Range<usize>>,
}

/// All that the text of a conversation depends on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenderRequest {
    pub(super) source: String,
    pub(super) special: Map<String, Value>,
    pub(super) conversation: Conversation,
}
