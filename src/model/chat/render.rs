//! One conversation through one template.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};

use super::bounds::LONGEST;
use super::marks::Marks;
use super::request::{RenderRequest, RenderedChat};
use super::{filters, methods, python, source};

/// Steps that a template may take; real ones take some thousand. Texts count by their length.
const STEPS: u64 = 2_000_000;
/// Bytes of an error that are printed: a template can raise one with any text.
const LONGEST_PROBLEM: usize = 500;

impl RenderRequest {
    /// The text, or the reason why it cannot be rendered.
    ///
    /// It holds its special tokens itself: encode it without adding any. A hostile template can end the process.
    pub fn text(&self) -> Result<String, String> {
        Ok(self.rendered()?.text)
    }

    /// The text, and the answers that the template marks in it.
    ///
    /// # Errors
    /// As of [`text`](Self::text).
    pub fn rendered(&self) -> Result<RenderedChat, String> {
        let source = source::prepared(&self.source)?;
        self.render(&source).map_err(|error| problem(&error))
    }

    fn render(&self, source: &str) -> Result<RenderedChat, minijinja::Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(STEPS));
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python::text(value)?)?));
        filters::extend(&mut environment);
        let marks = Marks::default();
        marks.watch(&mut environment);

        let conversation = &self.conversation;
        let special = minijinja::Value::from(Serde(&self.special));
        let others = minijinja::Value::from(Serde(&conversation.variables));
        let variables = context! {
            messages => Serde(&conversation.prepared_messages()),
            tools => Serde(&conversation.tools),
            documents => Serde(&conversation.documents),
            add_generation_prompt => conversation.add_generation_prompt,
            ..context! { ..others, ..special }
        };
        let mut text = Bounded(Vec::new(), marks.clone());
        environment
            .template_from_str(source)?
            .render_captured_to(variables, &mut text)?;
        Ok(RenderedChat {
            // The engine writes text.
            text: String::from_utf8_lossy(&text.0).into_owned(),
            answers: marks.answers(),
        })
    }
}

/// Text up to [`LONGEST`] bytes.
struct Bounded(Vec<u8>, Marks);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(std::io::Error::other(format!(
                "more than {LONGEST} bytes of text"
            )));
        }
        self.0.extend_from_slice(bytes);
        self.1.wrote(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the engine says, and why, cut to what a terminal shows.
fn problem(error: &minijinja::Error) -> String {
    let mut problem = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        problem.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    if problem.len() > LONGEST_PROBLEM {
        let mut end = LONGEST_PROBLEM;
        while !problem.is_char_boundary(end) {
            end -= 1;
        }
        let left_out = problem.len() - end;
        problem.truncate(end);
        problem.push_str(&format!("… ({left_out} more bytes)"));
    }
    problem
}

#[cfg(test)]
mod tests {
    use crate::model::chat::Conversation;

    use super::*;

    fn text(source: &str) -> Result<String, String> {
        let special = serde_json::json!({"bos_token": "<s>"});
        let request = RenderRequest {
            source: source.to_owned(),
            special: special.as_object().unwrap().clone(),
            conversation: Conversation::question(None, " a <b> "),
        };
        request.text()
    }

    /// Golden: `apply_chat_template` of transformers 5.23.0 on the same template and messages.
    #[test]
    fn blocks_are_trimmed_and_python_methods_known() {
        let source = "{{ bos_token }}\n{% for message in messages %}\n    {% if message['role'] == 'user' %}\n\
                      [INST] {{ message.content.strip() }} [/INST]\n    {% endif %}\n{% endfor %}\n\
                      {% if add_generation_prompt %}\n>\n{% endif %}\n";
        assert_eq!(text(source).unwrap(), "<s>\n[INST] a <b> [/INST]\n>\n");
    }

    #[test]
    fn a_template_can_refuse() {
        let problem = text("{{ raise_exception('no system, please') }}").unwrap_err();
        assert!(problem.contains("no system, please"), "{problem}");
    }

    #[test]
    fn a_template_knows_the_day() {
        let source = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('no time') }}";
        let text_of_day = text(source).unwrap();
        let [day, date, plain] = text_of_day.split('|').collect::<Vec<_>>()[..] else {
            panic!("{text_of_day}")
        };
        let read = |text, format| chrono::NaiveDate::parse_from_str(text, format).unwrap();
        let today = chrono::Local::now().date_naive();
        // Midnight may pass between two calls.
        assert!(
            (today - read(day, "%d %b %Y")).num_days() <= 1
                && (today - read(date, "%Y-%m-%d")).num_days() <= 1
        );
        assert_eq!(plain, "no time");
        let problem = text("{{ strftime_now('%Q') }}").unwrap_err();
        assert!(problem.contains("`%Q` is no format of a time"), "{problem}");
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let source =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let problem = text(source).unwrap_err();
        assert!(problem.contains("fuel"), "{problem}");
    }
}
