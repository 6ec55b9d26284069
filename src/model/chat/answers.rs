//! Where the answers of a conversation are in its text.
//!
//! A template that marks them says it itself, as for `return_assistant_tokens_mask` of transformers. For other templates
//! the conversation is rendered up to each answer and through it, and both texts must begin the whole text.

use serde_json::{Map, Value};

use super::error::ChatError;
use super::request::{Conversation, RenderedChat};
use super::{ChatTemplate, source};
use crate::Result;

/// Renders a conversation. A template is a program from a stranger, so the command line renders in another process.
pub type RenderChat<'a> = dyn Fn(&ChatTemplate, Conversation) -> Result<RenderedChat> + Sync + 'a;

/// Role of the messages that are answers.
pub(crate) const ASSISTANT: &str = "assistant";

/// The text of a conversation with its answers; `special` are the tokens that an answer without marks may end in.
///
/// # Errors
/// A conversation that the template does not render, and answers that cannot be found.
pub fn answered(
    template: &ChatTemplate,
    conversation: &Conversation,
    special: &[String],
    render: &RenderChat,
) -> Result<RenderedChat> {
    let rendered = render(template, conversation.clone())?;
    if !source::marks_answers(template.source_for(conversation)) {
        return by_prefixes(template, conversation, special, rendered, render);
    }
    // A mark within a macro or a `set` block is found at the wrong place, or nowhere.
    let found = rendered
        .answers
        .iter()
        .filter(|answer| !answer.is_empty())
        .count();
    let expected = answers(conversation)
        .filter(|number| says(&conversation.messages[*number]))
        .count();
    if found < expected {
        return Err(ChatError::NoMark {
            path: template.path.clone(),
            expected,
            found,
        }
        .into());
    }
    Ok(rendered)
}

/// Whether an answer has text that a template writes.
fn says(message: &Map<String, Value>) -> bool {
    message
        .get("content")
        .and_then(Value::as_str)
        .is_some_and(|text| !text.trim().is_empty())
}

/// The numbers of the messages that are answers.
fn answers(conversation: &Conversation) -> impl Iterator<Item = usize> {
    let messages = conversation.messages.iter().enumerate();
    messages
        .filter(|(_, message)| message.get("role").is_some_and(|role| role == ASSISTANT))
        .map(|(number, _)| number)
}

fn by_prefixes(
    template: &ChatTemplate,
    conversation: &Conversation,
    special: &[String],
    mut whole: RenderedChat,
    render: &RenderChat,
) -> Result<RenderedChat> {
    let beginning = |count: usize, add_generation_prompt| {
        let conversation = Conversation {
            messages: conversation.messages[..count].to_vec(),
            add_generation_prompt,
            ..conversation.clone()
        };
        Ok::<_, crate::Error>(render(template, conversation)?.text)
    };
    whole.answers.clear();
    for number in answers(conversation) {
        let before = beginning(number, true)?;
        let through = if number + 1 == conversation.messages.len() {
            whole.text.clone()
        } else {
            beginning(number + 1, false)?
        };
        let is_missing = through.len() <= before.len() && says(&conversation.messages[number]);
        if is_missing || !(through.starts_with(&before) && whole.text.starts_with(&through)) {
            return Err(ChatError::NoPrefix {
                path: template.path.clone(),
                message: number + 1,
            }
            .into());
        }
        let end = before.len() + end_of_turn(&through[before.len()..], special);
        whole.answers.push(before.len()..end);
    }
    Ok(whole)
}

/// Where an answer ends in the text up to the next message: after its last special token, if only white space follows.
fn end_of_turn(text: &str, special: &[String]) -> usize {
    let trimmed = text.trim_end();
    if special.iter().any(|token| trimmed.ends_with(token)) {
        trimmed.len()
    } else {
        text.len()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::super::RenderRequest;
    use super::*;

    const TURNS: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}\
                         {% if add_generation_prompt %}<assistant>{% endif %}";

    fn answered_by(source: &str) -> Result<Vec<String>> {
        let template = ChatTemplate {
            path: "t.jinja".into(),
            source: source.to_owned(),
            tool_use: None,
            special: Map::new(),
        };
        let mut conversation = Conversation::default();
        for (role, text) in [
            ("user", "One?"),
            ("assistant", " Two."),
            ("user", "More?"),
            ("assistant", "No."),
        ] {
            conversation.say(role, text);
        }
        let render = |template: &ChatTemplate, conversation| {
            let request: RenderRequest = template.request(conversation);
            request.rendered().map_err(|e| template.refused(&e))
        };
        let found = answered(&template, &conversation, &["</s>".to_owned()], &render)?;
        let text = |answer: Range<usize>| found.text[answer].to_owned();
        Ok(found.answers.into_iter().map(text).collect())
    }

    #[test]
    fn answers_are_found_by_prefixes_and_by_marks() {
        assert_eq!(answered_by(TURNS).unwrap(), [" Two.</s>", "No.</s>"]);
        let marked = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}\n\
                      {%- generation -%}\n{{ m.content }}{%- endgeneration %}\n{% endif %}{% endfor %}";
        assert_eq!(answered_by(marked).unwrap(), [" Two.", "No."]);
    }

    #[test]
    fn answers_that_change_with_what_follows_are_refused() {
        let source =
            "{% for m in messages %}{% if not loop.last %}>{% endif %}{{ m.content }}{% endfor %}";
        let error = answered_by(source).unwrap_err();
        assert!(
            matches!(
                error,
                crate::Error::Chat(ChatError::NoPrefix { message: 2, .. })
            ),
            "{error}"
        );
        // What a macro writes has no place yet when its marks are met.
        let source = "{% macro say(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}\
                      {% for m in messages %}{{ say(m) }}{% endfor %}";
        let error = answered_by(source).unwrap_err();
        assert!(
            matches!(error, crate::Error::Chat(ChatError::NoMark { .. })),
            "{error}"
        );
    }
}
