//! `shell`: a stage that is a command of the shell, with what it reads and makes.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use super::expand::Scope;
use super::lines::{Setting, text};
use super::program::SHELL;
use super::recipe_error::RecipeError;
use super::yaml::{Node, unknown_key, wrong_kind};
use crate::Result;
use crate::arguments::{ArgumentKind, OutputPath, TextsPath};
use crate::checkpoint::yaml::place;

/// The keys of a shell stage.
pub(super) const KEYS: [&str; 3] = ["command", "inputs", "outputs"];

/// The settings of a stage.
pub(super) struct Shell {
    /// A text for `sh -c`.
    pub(super) command: String,
    /// Files and folders that it reads.
    pub(super) inputs: Vec<String>,
    /// Files and folders that it makes.
    pub(super) outputs: Vec<PathBuf>,
}

impl Shell {
    /// As the recipe says them, names replaced.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let outputs: Vec<String> = self
            .outputs
            .iter()
            .map(|output| output.to_string_lossy().into_owned())
            .collect();
        let [command, inputs, made] = KEYS;
        let mut settings = vec![
            Setting::new(command, None, std::slice::from_ref(&self.command)),
            Setting::new(inputs, Some(ArgumentKind::of::<TextsPath>()), &self.inputs),
            Setting::new(made, Some(ArgumentKind::of::<OutputPath>()), &outputs),
        ];
        settings.retain(|setting| !setting.values.is_empty());
        settings
    }

    /// Reads the settings, names replaced.
    pub(super) fn read(recipe: &Path, settings: &Spanned<Node>, scope: &Scope) -> Result<Self> {
        let Node::Map(entries) = &settings.value else {
            let expected = format!("the settings of `{SHELL}`");
            return Err(wrong_kind(recipe, settings, expected));
        };
        let (mut command, mut inputs, mut outputs) = (None, Vec::new(), Vec::new());
        for (key, value) in entries {
            match key.value.as_str() {
                "inputs" => inputs = texts(recipe, value, scope)?,
                "outputs" => {
                    outputs = texts(recipe, value, scope)?
                        .into_iter()
                        .map(PathBuf::from)
                        .collect()
                }
                "command" => match <[String; 1]>::try_from(texts(recipe, value, scope)?) {
                    Ok([text]) => command = Some(text),
                    Err(_) => {
                        let at = place(recipe, value.referenced);
                        return Err(RecipeError::ShellTexts { at }.into());
                    }
                },
                _ => return Err(unknown_key(recipe, key, &format!("`{SHELL}`"), &KEYS)),
            }
        }
        match command {
            Some(command) => Ok(Self {
                command,
                inputs,
                outputs,
            }),
            None => {
                let at = place(recipe, settings.referenced);
                Err(RecipeError::NoShellCommand { at }.into())
            }
        }
    }
}

/// One text, or a list of them.
fn texts(recipe: &Path, value: &Spanned<Node>, scope: &Scope) -> Result<Vec<String>> {
    match &value.value {
        Node::Scalar(None) => Ok(Vec::new()),
        Node::Scalar(Some(words)) => Ok(vec![text(recipe, value.referenced, words, scope)?]),
        Node::List(items) => {
            let parts: Vec<Vec<String>> = items
                .iter()
                .map(|item| texts(recipe, item, scope))
                .collect::<Result<_>>()?;
            Ok(parts.concat())
        }
        Node::Map(_) => Err(wrong_kind(recipe, value, "a text or a list")),
    }
}
