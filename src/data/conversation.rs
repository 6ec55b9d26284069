//! Conversations in JSON lines: `messages`, `conversations` (`from` and `value`), or `prompt` and `completion`.

use serde_json::{Map, Value};

use crate::checkpoint::json;
use crate::model::chat::{ASSISTANT, Conversation};

/// The keys of a line that hold a conversation, in the order in which they are looked for.
const KEYS: [&str; 3] = ["messages", "conversations", "prompt"];
/// Keys of a line beside its conversation.
const BESIDE: [&str; 3] = ["tools", "documents", "chat_template_kwargs"];
/// Variables of a template that lines set by keys of their own.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];
/// Values within each other that a conversation may hold. The parser follows some more.
const DEEPEST: usize = 100;

/// Keys of messages by which other programs say whether an answer carries loss, and whether a value says that it does.
type Mark = (&'static str, fn(&Value) -> bool);
const MARKS: [Mark; 4] = [
    ("weight", |mark| mark.as_f64() == Some(1.0)),
    ("train", |mark| *mark == true),
    ("training", |mark| *mark == true),
    ("masked", |mark| *mark == false),
];

/// Names of speakers in `conversations`, and their roles.
const SPEAKERS: [(&str, &str); 6] = [
    ("system", "system"),
    ("human", "user"),
    ("user", "user"),
    ("gpt", ASSISTANT),
    ("assistant", ASSISTANT),
    ("tool", "tool"),
];

/// Why a line holds no conversation that can be trained on as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TurnProblem {
    /// None of the keys is there.
    NoConversation,
    /// A key holds something else.
    Wrong {
        key: String,
        expected: &'static str,
        found: String,
    },
}

/// Whether an object has a key that holds a conversation.
pub(super) fn has_key(has: impl Fn(&str) -> bool) -> bool {
    KEYS.into_iter().any(has)
}

/// Whether a column of a table with these columns is read: the first one that holds conversations, and what belongs to it.
pub(super) fn reads_column(columns: &[&str], column: &str) -> bool {
    let first = KEYS.into_iter().find(|key| columns.contains(key));
    first == Some(column)
        || first == Some("prompt") && column == "completion"
        || first.is_some() && (column == "system" || BESIDE.contains(&column))
}

/// The conversation of a line; `None` where the assistant says nothing in it.
pub(super) fn conversation(
    object: &Map<String, Value>,
) -> Result<Option<Conversation>, TurnProblem> {
    let given = |key: &str| object.get(key).filter(|value| !value.is_null());
    let messages = match KEYS.into_iter().find(|key| given(key).is_some()) {
        Some("messages") => messages("messages", &object["messages"])?,
        Some("conversations") => spoken(&object["conversations"])?,
        Some(_) => prompted(&object["prompt"], object.get("completion"))?,
        None if has_key(|key| object.contains_key(key)) => return Ok(None),
        None => return Err(TurnProblem::NoConversation),
    };
    if !messages.iter().any(is_answer) {
        return Ok(None);
    }
    if let Some(system) = given("system").filter(|system| **system != "") {
        let expected = "none beside the conversation: write it as its first message";
        return Err(wrong("system", expected, system));
    }
    for key in keys() {
        if object.get(key).is_some_and(|value| depth(value) > DEEPEST) {
            let expected = "at most 100 values within each other";
            return Err(TurnProblem::Wrong {
                key: key.to_owned(),
                expected,
                found: "more".to_owned(),
            });
        }
    }
    Ok(Some(Conversation {
        messages,
        tools: given("tools")
            .map(|value| list("tools", value))
            .transpose()?,
        documents: given("documents")
            .map(|value| list("documents", value))
            .transpose()?,
        add_generation_prompt: false,
        variables: match given("chat_template_kwargs") {
            Some(Value::Object(variables)) => {
                if let Some(key) = RESERVED
                    .into_iter()
                    .find(|key| variables.contains_key(*key))
                {
                    let expected = "other variables of the template";
                    let key = format!("chat_template_kwargs.{key}");
                    return Err(wrong(key, expected, &object["chat_template_kwargs"]));
                }
                variables.clone()
            }
            Some(other) => return Err(wrong("chat_template_kwargs", "an object", other)),
            None => Map::new(),
        },
    }))
}

/// How many values are within each other, this one counted.
fn depth(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(depth).max().unwrap_or(0),
        Value::Object(items) => items.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The keys of a line that are read.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter()
        .chain(["completion", "system"])
        .chain(BESIDE)
}

fn is_answer(message: &Map<String, Value>) -> bool {
    message.get("role").is_some_and(|role| role == ASSISTANT)
}

fn wrong(key: impl Into<String>, expected: &'static str, found: &Value) -> TurnProblem {
    let found = match found {
        Value::String(text) => format!("`{text}`"),
        other => json::kind(other),
    };
    TurnProblem::Wrong {
        key: key.into(),
        expected,
        found,
    }
}

/// A list, or a text that holds one as JSON: tables cannot hold schemas of every shape.
fn list(key: &str, value: &Value) -> Result<Vec<Value>, TurnProblem> {
    let problem = || wrong(key, "a list of objects", value);
    let items = match value {
        Value::Array(items) => items.clone(),
        Value::String(text) => serde_json::from_str(text).map_err(|_| problem())?,
        _ => return Err(problem()),
    };
    if items.iter().all(Value::is_object) {
        Ok(items)
    } else {
        Err(problem())
    }
}

/// Messages with `role`, and whatever else the template reads.
fn messages(key: &str, value: &Value) -> Result<Vec<Map<String, Value>>, TurnProblem> {
    let Value::Array(items) = value else {
        return Err(wrong(key, "a list of messages", value));
    };
    let mut messages = Vec::with_capacity(items.len());
    for (number, item) in items.iter().enumerate() {
        let key = format!("{key}.{number}");
        let Value::Object(message) = item else {
            return Err(wrong(key, "an object with `role` and `content`", item));
        };
        let role = message.get("role").unwrap_or(&Value::Null);
        if !role.is_string() {
            return Err(wrong(format!("{key}.role"), "a string", role));
        }
        // Every answer carries loss, so these would be ignored.
        for (name, is_usual) in MARKS {
            let mark = message.get(name).filter(|mark| !mark.is_null());
            if let Some(mark) = mark.filter(|mark| !is_usual(mark)) {
                let expected = "none: every answer carries loss";
                return Err(wrong(format!("{key}.{name}"), expected, mark));
            }
        }
        messages.push(message.clone());
    }
    Ok(messages)
}

/// Messages with `from` and `value`.
fn spoken(value: &Value) -> Result<Vec<Map<String, Value>>, TurnProblem> {
    let Value::Array(items) = value else {
        return Err(wrong("conversations", "a list of messages", value));
    };
    let mut messages = Vec::with_capacity(items.len());
    for (number, item) in items.iter().enumerate() {
        let key = format!("conversations.{number}");
        let Value::Object(turn) = item else {
            return Err(wrong(key, "an object with `from` and `value`", item));
        };
        // Other keys have meanings that differ between programs, such as a weight.
        let other = turn
            .iter()
            .find(|(key, value)| !matches!(key.as_str(), "from" | "value") && !value.is_null());
        if let Some((name, value)) = other {
            let expected = "`from` and `value` alone: write other keys as `messages`";
            return Err(wrong(format!("{key}.{name}"), expected, value));
        }
        let text = |name: &str| turn.get(name).unwrap_or(&Value::Null);
        let from = text("from");
        let role = SPEAKERS.into_iter().find(|(speaker, _)| from == *speaker);
        let Some((_, role)) = role else {
            let expected = "system, human, user, gpt, assistant or tool";
            return Err(wrong(format!("{key}.from"), expected, from));
        };
        let Value::String(content) = text("value") else {
            return Err(wrong(format!("{key}.value"), "a string", text("value")));
        };
        messages.push(message(role, content));
    }
    Ok(messages)
}

/// A prompt and its completion: texts, or messages.
fn prompted(
    prompt: &Value,
    completion: Option<&Value>,
) -> Result<Vec<Map<String, Value>>, TurnProblem> {
    let part = |key: &str, value: &Value, role| match value {
        Value::String(text) => Ok(vec![message(role, text)]),
        Value::Array(_) => messages(key, value),
        other => Err(wrong(key, "a string or a list of messages", other)),
    };
    let mut turns = part("prompt", prompt, "user")?;
    if let Some(number) = turns.iter().position(is_answer) {
        let expected = "no answer, which would carry loss: write the line as `messages`";
        let key = format!("prompt.{number}.role");
        return Err(wrong(key, expected, &turns[number]["role"]));
    }
    let completion = completion.unwrap_or(&Value::Null);
    turns.extend(part("completion", completion, ASSISTANT)?);
    Ok(turns)
}

fn message(role: &str, content: &str) -> Map<String, Value> {
    let pairs = [("role", role), ("content", content)];
    pairs
        .map(|(key, text)| (key.to_owned(), Value::from(text)))
        .into_iter()
        .collect()
}

/// A conversation as it is written between two passes.
pub(super) fn read(text: &str) -> crate::Result<Conversation> {
    serde_json::from_str(text).map_err(|e| crate::Error::compute("read a conversation", e))
}

/// What a conversation says, by which duplicates are found: each key on a line, and its text below.
pub(super) fn words(conversation: &Conversation) -> String {
    let mut words = String::new();
    let mut add = |key: &str, value: &Value| {
        words.push_str(key);
        words.push('\n');
        match value {
            Value::String(text) => words.push_str(text),
            other => words.push_str(&other.to_string()),
        }
        words.push('\n');
    };
    let messages = conversation.messages.iter().flatten();
    messages.for_each(|(key, value)| add(key, value));
    let beside = [
        ("tools", &conversation.tools),
        ("documents", &conversation.documents),
    ];
    for (key, values) in beside {
        values.iter().flatten().for_each(|value| add(key, value));
    }
    conversation
        .variables
        .iter()
        .for_each(|(key, value)| add(key, value));
    words
}

/// What users and the assistant say in a conversation, by which near-duplicates are found. Many conversations share tools
/// and what the system says.
pub(super) fn said(conversation: &Conversation) -> String {
    let is_said = |message: &&Map<String, Value>| {
        let role = message.get("role").and_then(Value::as_str);
        matches!(role, Some("user" | ASSISTANT))
    };
    let messages = conversation.messages.iter().filter(is_said);
    let contents = messages.filter_map(|message| message.get("content"));
    let texts = contents.map(|content| match content {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    texts.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Result<Option<Conversation>, TurnProblem> {
        conversation(value.as_object().unwrap())
    }

    fn key_of(value: Value) -> String {
        match of(value) {
            Err(TurnProblem::Wrong { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn three_forms_are_one_conversation() {
        let messages = json!([
            {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}
        ]);
        let expected = of(json!({"messages": messages, "prompt": "other"})).unwrap();
        assert_eq!(expected.as_ref().unwrap().messages.len(), 2);
        let spoken = json!([
            {"from": "human", "value": "One?"}, {"from": "gpt", "value": "Two.", "weight": null}
        ]);
        for line in [
            json!({"conversations": spoken, "messages": null}),
            json!({"prompt": "One?", "completion": "Two."}),
            json!({"prompt": [messages[0]], "completion": [messages[1]]}),
        ] {
            assert_eq!(of(line).unwrap(), expected);
        }
    }

    #[test]
    fn lines_that_would_be_read_otherwise_are_refused() {
        assert_eq!(of(json!({"text": "a"})), Err(TurnProblem::NoConversation));
        assert_eq!(of(json!({"messages": null})), Ok(None));
        assert_eq!(of(json!({"messages": []})), Ok(None));
        let user = json!({"role": "user", "content": "a"});
        let answer = json!({"role": "assistant", "content": "a", "weight": 0});
        assert_eq!(of(json!({"messages": [user]})), Ok(None));
        assert_eq!(
            key_of(json!({"messages": [user, answer]})),
            "messages.1.weight"
        );
        let counted = json!({"role": "assistant", "content": "a", "weight": 1, "train": true});
        assert!(matches!(
            of(json!({"messages": [user, counted]})),
            Ok(Some(_))
        ));
        for (beside, key) in [
            (json!({"system": "Be brief."}), "system"),
            (
                json!({"chat_template_kwargs": {"tools": []}}),
                "chat_template_kwargs.tools",
            ),
        ] {
            let mut line = json!({"prompt": "a", "completion": "b"});
            line.as_object_mut()
                .unwrap()
                .extend(beside.as_object().unwrap().clone());
            assert_eq!(key_of(line), key);
        }
        let deep = (0..110).fold(json!({}), |inner, _| json!({"a": inner}));
        assert_eq!(
            key_of(json!({"prompt": "a", "completion": "b", "tools": [deep]})),
            "tools"
        );
        assert_eq!(
            key_of(json!({"messages": [{"content": "a"}]})),
            "messages.0.role"
        );
        let turns = json!([{"from": "bing", "value": "a"}]);
        assert_eq!(
            key_of(json!({"conversations": turns})),
            "conversations.0.from"
        );
        let turns = json!([{"from": "gpt", "value": "a", "weight": 0}]);
        assert_eq!(
            key_of(json!({"conversations": turns})),
            "conversations.0.weight"
        );
        assert_eq!(key_of(json!({"prompt": "a"})), "completion");
        let prompt = json!([user, {"role": "assistant", "content": "b"}]);
        assert_eq!(
            key_of(json!({"prompt": prompt, "completion": "c"})),
            "prompt.1.role"
        );
        assert_eq!(
            key_of(json!({"prompt": "a", "completion": "c", "tools": [1]})),
            "tools"
        );
    }
}
