//! How fresh routers start.
//!
//! The paper does not say (docs/design/paper.md). N(0, 0.02²) is our
//! default: with normed inputs of width d the logits then have a standard deviation of about 0.02·√d.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::SurgeryError;
use super::expert_name::ReservedName;
use super::plan_error::PlanError;
use crate::Result;
use crate::arguments::{ArgumentRole, ArgumentValue};
use crate::card::PromptsOfExpert;
use crate::checkpoint::expression::Expression;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::nearest;
use crate::surgery::execute::{Content, OutputFile};
use crate::surgery::plan::{Source, as_dtype};

/// An initialiser of router weights `[experts, hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub enum RouterInit {
    /// N(0, std²).
    Normal(f64),
    /// Uniform with mean 0 and this standard deviation.
    Uniform(f64),
    /// All zeros: every expert ties.
    Zeros,
    /// Orthonormal rows times a gain.
    Orthogonal(f64),
    /// Rows from a safetensors file: a tensor of the router's own name, or one `router` for all layers.
    File(PathBuf),
    /// Rows that a model computed from the prompts in this file, handed over as
    /// [`PromptRows`].
    Prompts(PathBuf),
}

/// The kinds that hold the path of a file.
const FILE: &str = "file";
const PROMPTS: &str = "prompts";

/// Name under which plans know the file of [`RouterInit::File`].
pub const ROUTER_SOURCE: &str = "router file";
/// The same name, which no expert may have.
pub(super) const ROUTER_NAME: ReservedName = ReservedName {
    name: ROUTER_SOURCE,
    meaning: "the rows of routers",
};

/// Name of the file that an output keeps the rows in. Its content is safetensors; its name is not, because readers take
/// every file of that name in a folder for weights.
pub const PROMPT_ROWS: &str = "router-rows.st";

/// Rows that a model computed from prompts.
#[derive(Clone, Debug)]
pub struct PromptRows {
    /// A file named [`PROMPT_ROWS`] of float32 tensors by the names of routers, which the output keeps.
    pub path: PathBuf,
    /// How prompts became rows.
    pub mode: String,
    /// SHA-256 of the file of prompts.
    pub prompts_sha256: String,
    /// The prompts of each expert.
    pub prompts: Vec<PromptsOfExpert>,
    /// What a user should know of the rows.
    pub notes: Vec<String>,
}

impl FromStr for RouterInit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, argument) = text
            .split_once(':')
            .map_or((text, None), |(kind, argument)| (kind, Some(argument)));
        let number = |default: f64| match argument {
            None => Ok(default),
            Some(argument) => match argument.parse::<f64>() {
                Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
                _ => Err(format!(
                    "expected a positive number after `{kind}:`, found `{argument}`"
                )),
            },
        };
        match (kind, argument) {
            ("normal", _) => Ok(Self::Normal(number(0.02)?)),
            ("uniform", _) => Ok(Self::Uniform(number(0.02)?)),
            ("orthogonal", _) => Ok(Self::Orthogonal(number(1.0)?)),
            ("zeros", None) => Ok(Self::Zeros),
            ("zeros", Some(_)) => Err("`zeros` takes no argument".to_owned()),
            (FILE, Some(path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            (PROMPTS, Some(path)) if !path.is_empty() => Ok(Self::Prompts(PathBuf::from(path))),
            (FILE | PROMPTS, _) => Err(format!("expected a path after `{kind}:`")),
            _ => {
                let known = ["normal", "uniform", "zeros", "orthogonal", FILE, PROMPTS];
                let near = nearest(kind, known)
                    .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                Err(format!(
                    "expected normal[:STD], uniform[:STD], zeros, orthogonal[:GAIN], file:PATH or prompts:PATH, found `{text}`{near}"
                ))
            }
        }
    }
}

impl ArgumentValue for RouterInit {
    const ROLE: ArgumentRole = ArgumentRole::Input;

    fn read(text: &OsStr) -> Result<Self, String> {
        text.to_str().ok_or("expected UTF-8")?.parse()
    }

    fn form() -> String {
        "KIND[:PATH]".to_owned()
    }

    fn places(text: &str) -> Vec<&str> {
        match text.split_once(':') {
            Some((FILE | PROMPTS, path)) => vec![path],
            _ => Vec::new(),
        }
    }
}

impl std::fmt::Display for RouterInit {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Normal(std) => write!(f, "normal:{std}"),
            Self::Uniform(std) => write!(f, "uniform:{std}"),
            Self::Zeros => f.write_str("zeros"),
            Self::Orthogonal(gain) => write!(f, "orthogonal:{gain}"),
            // The path is recorded among the sources, relative to the output.
            Self::File(path) => write!(
                f,
                "{FILE}:{}",
                path.file_name().unwrap_or_default().to_string_lossy()
            ),
            Self::Prompts(path) => write!(
                f,
                "{PROMPTS}:{}",
                path.file_name().unwrap_or_default().to_string_lossy()
            ),
        }
    }
}

impl RouterInit {
    /// Whether a model must run to compute the rows.
    pub fn computes(&self) -> bool {
        matches!(self, Self::Prompts(_))
    }

    /// The one file of prompts that these need, if any does.
    pub fn prompts(inits: [Option<&Self>; 2]) -> Result<Option<&Path>> {
        let mut files = inits.into_iter().flatten().filter_map(|init| match init {
            Self::Prompts(path) => Some(path.as_path()),
            _ => None,
        });
        let first = files.next();
        match files.next() {
            Some(second) if Some(second) != first => Err(SurgeryError::TwoPromptFiles.into()),
            _ => Ok(first),
        }
    }

    /// The expression of the router called `name`; `file` is the opened file of [`RouterInit::File`], or of the rows
    /// computed for [`RouterInit::Prompts`].
    pub fn expression(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        seed: u64,
        file: Option<&Source>,
    ) -> Result<Expression> {
        Ok(match self {
            Self::Normal(std) => Expression::Normal { std: *std, seed },
            Self::Uniform(std) => Expression::Uniform { std: *std, seed },
            Self::Zeros => Expression::Constant { value: 0.0 },
            Self::Orthogonal(gain) => match shape {
                [rows, columns] if rows <= columns => Expression::Orthogonal { gain: *gain, seed },
                _ => {
                    let shape = shape.to_vec();
                    return Err(SurgeryError::NotOrthogonal { shape }.into());
                }
            },
            Self::File(path) | Self::Prompts(path) => {
                let file =
                    file.ok_or_else(|| SurgeryError::RouterFileClosed { path: path.clone() })?;
                let tensors = &file.checkpoint.tensors;
                let Some(tensor) = [name, "router"]
                    .into_iter()
                    .find(|tensor| tensors.contains_key(*tensor))
                else {
                    return Err(SurgeryError::NoRouterRows {
                        path: path.clone(),
                        tensor: name.to_owned(),
                    }
                    .into());
                };
                let found = &tensors[tensor].shape;
                if found != shape {
                    return Err(PlanError::SourceShape {
                        path: path.clone(),
                        tensor: tensor.to_owned(),
                        found: found.as_slice().into(),
                        reader: name.to_owned(),
                        expected: shape.into(),
                    }
                    .into());
                }
                as_dtype(file, tensor, dtype)?
            }
        })
    }
}

/// Opens the file that these initialisers take rows from, if they do; `rows` are the rows computed for [`RouterInit::Prompts`].
pub fn open_file(inits: [&RouterInit; 2], rows: Option<&PromptRows>) -> Result<Option<Source>> {
    let mut files: Vec<(&Path, bool)> = Vec::new();
    for init in inits {
        match init {
            RouterInit::File(path) => files.push((path, false)),
            RouterInit::Prompts(path) => match rows {
                Some(rows) => files.push((&rows.path, true)),
                None => {
                    return Err(SurgeryError::PromptsOnly { path: path.clone() }.into());
                }
            },
            RouterInit::Normal(_)
            | RouterInit::Uniform(_)
            | RouterInit::Zeros
            | RouterInit::Orthogonal(_) => {}
        }
    }
    match files[..] {
        [] => Ok(None),
        [(path, kept), ref others @ ..] if others.iter().all(|(other, _)| *other == path) => {
            Ok(Some(Source {
                name: ROUTER_SOURCE.to_owned(),
                checkpoint: Checkpoint::open(path)?,
                side_files: Vec::new(),
                kept,
            }))
        }
        _ => Err(SurgeryError::TwoRowFiles.into()),
    }
}

/// The opened file as a file of the output, where that keeps it.
pub(super) fn kept_rows(file: Option<&Source>) -> Option<OutputFile> {
    let rows = file.filter(|file| file.kept)?;
    Some(OutputFile {
        name: PROMPT_ROWS.to_owned(),
        content: Content::CopyOf(rows.checkpoint.path.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_round_trips() {
        for text in ["normal:0.02", "uniform:0.1", "zeros", "orthogonal:1"] {
            assert_eq!(text.parse::<RouterInit>().unwrap().to_string(), text);
        }
        assert_eq!("normal".parse(), Ok(RouterInit::Normal(0.02)));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(
            "normall"
                .parse::<RouterInit>()
                .unwrap_err()
                .contains("`normal`")
        );
        assert!(
            "normal:-1"
                .parse::<RouterInit>()
                .unwrap_err()
                .contains("positive")
        );
        assert!("file:".parse::<RouterInit>().unwrap_err().contains("path"));
    }
}
