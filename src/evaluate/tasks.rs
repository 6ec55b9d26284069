//! Tasks with right answers: multiple choice, and text that must match.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::EvaluateError;
use super::perplexity::{rows, token_scores};
use crate::data::documents::JsonLines;
use crate::model::generate::{Flow, Settings, generate};
use crate::model::text_stream::TextStream;
use crate::model::tokenizer::Tokenizer;
use crate::model::{CausalLm, Forward, KvCache, Overrides};
use crate::{Error, Result};

/// What ends a generated answer, beside the model.
const STOP: &str = "\n";
/// What separates the examples before a question.
const BETWEEN: &str = "\n\n";

/// A file of examples.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its name in tables.
    pub name: String,
    path: PathBuf,
    examples: Vec<Example>,
}

#[derive(Debug, Clone, PartialEq)]
struct Example {
    prompt: String,
    answer: Answer,
}

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    /// The number of the right one among these.
    Choice(usize, Vec<String>),
    /// One of these texts.
    Text(Vec<String>),
}

/// How a task is run.
#[derive(Debug, Clone, Copy)]
pub struct TaskSettings<'a> {
    /// Other examples of the file, with their answers, before each question: the first ones.
    pub shots: usize,
    /// Most tokens of a generated answer.
    pub max_tokens: usize,
    /// Tokens that end a text.
    pub eos: &'a [u32],
    /// Changes to the routing.
    pub overrides: &'a Overrides,
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The task.
    pub task: String,
    /// Questions.
    pub examples: usize,
    /// Share of right answers. A choice is the one whose log-likelihood is highest by its characters; a text must match,
    /// white space around it aside.
    pub accuracy: f64,
    /// The same by log-likelihood as it is, for multiple choice alone.
    pub accuracy_unnormalised: Option<f64>,
}

impl Task {
    /// Reads JSON lines: `{"prompt" or "question", "choices": […], "answer": number}` or `{"prompt", "answer": text or
    /// texts}`.
    ///
    /// A `prompt` is used as it is; a `question` becomes `Question: …\nAnswer:`. A space separates prompt and answer, unless
    /// one side has white space already.
    pub fn read(name: &str, path: &Path) -> Result<Self> {
        let lines = JsonLines::open(path)?
            .map(|line| line.and_then(|(line, object)| example(path, line, &object)));
        let examples: Vec<Example> = lines.collect::<Result<_>>()?;
        if examples.is_empty() {
            let path = path.to_path_buf();
            return Err(EvaluateError::NoExamples { path }.into());
        }
        Ok(Self {
            name: name.to_owned(),
            path: path.to_path_buf(),
            examples,
        })
    }

    /// Number of questions.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is no question.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Asks every question.
    pub fn run(
        &self,
        model: &CausalLm,
        tokenizer: &Tokenizer,
        settings: &TaskSettings,
    ) -> Result<TaskScore> {
        if settings.shots >= self.examples.len() {
            return Err(EvaluateError::FewExamples {
                path: self.path.clone(),
                examples: self.examples.len(),
                shots: settings.shots,
            }
            .into());
        }
        let (mut right, mut right_unnormalised, mut choices) = (0usize, 0usize, 0usize);
        for (number, example) in self.examples.iter().enumerate() {
            let prompt = self.prompt(number, settings.shots);
            match &example.answer {
                Answer::Choice(answer, texts) => {
                    let scores =
                        self.choice_scores(model, tokenizer, &prompt, texts, settings.overrides)?;
                    let by_length = scores
                        .iter()
                        .zip(texts)
                        .map(|(score, text)| score / text.trim().chars().count().max(1) as f64);
                    right += usize::from(best(by_length) == *answer);
                    right_unnormalised += usize::from(best(scores.iter().copied()) == *answer);
                    choices += 1;
                }
                Answer::Text(texts) => {
                    let found = answer_text(model, tokenizer, &prompt, settings)?;
                    right += usize::from(texts.iter().any(|text| text.trim() == found.trim()));
                }
            }
        }
        let share = |count: usize| count as f64 / self.examples.len() as f64;
        Ok(TaskScore {
            task: self.name.clone(),
            examples: self.examples.len(),
            accuracy: share(right),
            accuracy_unnormalised: (choices == self.examples.len())
                .then_some(share(right_unnormalised)),
        })
    }

    fn prompt(&self, number: usize, shots: usize) -> String {
        let others = self
            .examples
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != number)
            .take(shots);
        let mut text = String::new();
        for (_, example) in others {
            let answer = match &example.answer {
                Answer::Choice(answer, texts) => &texts[*answer],
                Answer::Text(texts) => &texts[0],
            };
            text.push_str(&joined(&example.prompt, answer));
            text.push_str(BETWEEN);
        }
        text + &self.examples[number].prompt
    }

    /// The log-likelihood of each choice after the prompt, in nats.
    fn choice_scores(
        &self,
        model: &CausalLm,
        tokenizer: &Tokenizer,
        prompt: &str,
        choices: &[String],
        overrides: &Overrides,
    ) -> Result<Vec<f64>> {
        // White space at its end belongs to the first token of the answer.
        let context = tokenizer.prompt_ids(prompt.trim_end())?;
        // Without the tokens that the tokenizer appends to a text: they are not part of the answer.
        let encode = |choice: &String| tokenizer.prompt_ids(&joined(prompt, choice));
        let all: Vec<Vec<u32>> = choices.iter().map(encode).collect::<Result<_>>()?;
        if context.is_empty() || all.iter().any(|ids| ids.len() <= context.len()) {
            return Err(EvaluateError::EmptyChoice {
                path: self.path.clone(),
                prompt: prompt.to_owned(),
            }
            .into());
        }
        // What all of them share is read once; the last shared token again, because it predicts the first new one.
        let shared = (0..context.len())
            .take_while(|at| all.iter().all(|ids| ids[*at] == all[0][*at]))
            .count();
        let shared = shared.saturating_sub(1);
        let mut cache = KvCache::new();
        let forward = Forward {
            overrides: overrides.clone(),
            ..Forward::default()
        };
        let pass = |ids: &[u32], cache: &mut KvCache, last_only: bool| {
            let tokens = Tensor::new(ids, &Device::Cpu).and_then(|tokens| tokens.unsqueeze(0));
            let tokens = tokens.map_err(|e| Error::compute("hold the token ids", e))?;
            model.forward(
                &tokens,
                Some(cache),
                &Forward {
                    last_only,
                    ..forward.clone()
                },
            )
        };
        if shared > 0 {
            pass(&all[0][..shared], &mut cache, true)?;
        }
        let mut scores = Vec::with_capacity(all.len());
        for ids in &all {
            let logits = rows(&pass(&ids[shared..ids.len() - 1], &mut cache, false)?.logits)?;
            cache.truncate(shared);
            let first = context.len() - 1 - shared;
            scores.push(
                -token_scores(model, &logits[first..], &ids[context.len()..])?
                    .iter()
                    .sum::<f64>(),
            );
        }
        Ok(scores)
    }
}

/// The number of the highest score, the lowest among equals.
fn best(scores: impl Iterator<Item = f64>) -> usize {
    let better = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    scores.enumerate().fold((0, f64::NEG_INFINITY), better).0
}

fn answer_text(
    model: &CausalLm,
    tokenizer: &Tokenizer,
    prompt: &str,
    settings: &TaskSettings,
) -> Result<String> {
    let ids = tokenizer.prompt_ids(prompt.trim_end())?;
    let stops = [STOP.to_owned()];
    let mut stream = TextStream::new(tokenizer, &ids, &stops);
    let settings = Settings {
        max_tokens: settings.max_tokens,
        eos: settings.eos.to_vec(),
        overrides: settings.overrides.clone(),
        ..Settings::default()
    };
    generate(model, &[ids], &settings, &mut |_, id| {
        stream.push(id)?;
        Ok(if stream.stopped() {
            Flow::Stop
        } else {
            Flow::Continue
        })
    })?;
    stream.finish()?;
    Ok(stream.text().to_owned())
}

/// A prompt and its answer, with white space between them.
fn joined(prompt: &str, answer: &str) -> String {
    let space = prompt.ends_with(char::is_whitespace) || answer.starts_with(char::is_whitespace);
    format!("{prompt}{}{answer}", if space { "" } else { " " })
}

fn example(path: &Path, line: usize, object: &Map<String, Value>) -> Result<Example> {
    let wrong = |key: &'static str, expected: Cow<'static, str>| {
        Error::from(EvaluateError::Example {
            path: path.to_path_buf(),
            key,
            line,
            expected,
        })
    };
    let prompt = match (object.get("prompt"), object.get("question")) {
        (Some(Value::String(prompt)), _) => prompt.clone(),
        (None, Some(Value::String(question))) => format!("Question: {question}\nAnswer:"),
        _ => return Err(wrong("prompt", "a text, or a `question`".into())),
    };

    let answer = object.get("answer");
    let Some(choices) = object.get("choices") else {
        let texts = match answer {
            Some(Value::String(answer)) => Some(vec![answer.clone()]),
            Some(Value::Array(answers)) => strings(answers),
            _ => None,
        };
        let texts = texts.filter(|texts| !texts.is_empty());
        let texts = texts.ok_or_else(|| wrong("answer", "a text or several".into()))?;
        let answer = Answer::Text(texts);
        return Ok(Example { prompt, answer });
    };

    let choices = choices
        .as_array()
        .and_then(|choices| strings(choices))
        .filter(|choices| {
            choices.len() > 1 && choices.iter().all(|choice| !choice.trim().is_empty())
        })
        .ok_or_else(|| wrong("choices", "two texts or more".into()))?;
    let number = answer.and_then(Value::as_u64).map(|number| number as usize);
    let number = number
        .filter(|number| *number < choices.len())
        .ok_or_else(|| {
            let last = choices.len() - 1;
            wrong(
                "answer",
                format!("the number of a choice, from 0 to {last}").into(),
            )
        })?;
    let answer = Answer::Choice(number, choices);
    Ok(Example { prompt, answer })
}

/// The texts of a list that holds nothing else.
fn strings(values: &[Value]) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    values.iter().map(text).collect()
}
