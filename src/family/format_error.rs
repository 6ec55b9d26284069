//! What can be wrong with a format file, which describes a family: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use super::role::Role;
use crate::error::{ErrorPlace, nearest, one_of};

/// A rule that a format file breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A key that each family needs.
    #[error("{}: key `{key}`: is required, but is not there", path.display())]
    Required {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A mixture without names of its experts' tensors.
    #[error("{}: key `expert_tensors`: expected names, because this family is a mixture", path.display())]
    NoExpertNames {
        /// The file.
        path: PathBuf,
    },
    /// A key in the wrong section.
    #[error("{}: key `{key}`: belongs under `{section}`", path.display())]
    OtherSection {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its section.
        section: &'static str,
    },
    /// A key of configurations that has nothing to be read from.
    #[error("{}: key `{key}`: has neither a name nor a default", path.display())]
    NoNameOrDefault {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A tensor without a name.
    #[error("{}: key `{key}`: expected a name, because {}; found none", path.display(), tensor_reason(*role))]
    NoTensorName {
        /// The file.
        path: PathBuf,
        /// The key of the name.
        key: String,
        /// The role of the tensor.
        role: Role,
    },
    /// A tensor of experts among the tensors outside the experts.
    #[error("{}: key `{key}`: is a tensor of experts: name it under `expert_tensors`", path.display())]
    ExpertTensor {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A tensor outside the experts among the tensors of an expert.
    #[error("{}: key `{key}`: is no tensor of an expert", path.display())]
    NotOfExpert {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A pattern of names without the places that it needs.
    #[error("{}: key `{key}`: expected a name {expected}, found \"{found}\"", path.display())]
    Pattern {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The rule, as in “with {l} once”.
        expected: String,
        /// The pattern.
        found: String,
    },
    /// A section of GGUF names without the architecture.
    #[error("{}: key `gguf.architecture`: expected the name of a GGUF architecture, found none", path.display())]
    NoGgufArchitecture {
        /// The file.
        path: PathBuf,
    },
    /// A key that makes a parallel block sequential, in a family whose block is sequential.
    #[error("{}: key `keys.parallel_block`: expected a parallel `block`, which the key makes sequential where it is false; found `sequential`", path.display())]
    SequentialBlock {
        /// The file.
        path: PathBuf,
    },
    /// A file that, together with what it extends, cannot be read.
    #[error("{}: {problem}", path.display())]
    Merged {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// The name of a family to extend that is not known.
    #[error(
        "{}: key `extends`: expected a known family: {}; found `{found}`",
        path.display(), one_of(known.iter().map(String::as_str))
    )]
    UnknownParent {
        /// The file.
        path: PathBuf,
        /// The name.
        found: String,
        /// The known families.
        known: Vec<String>,
    },
    /// Families that extend each other.
    #[error("{}: key `extends`: is a circle: `{}`", path.display(), names.join("` extends `"))]
    Circle {
        /// The file.
        path: PathBuf,
        /// The families, of which the last is among the others.
        names: Vec<String>,
    },
    /// Families that extend too many others.
    #[error("{}: key `extends`: extends more than {most} families one through another", path.display())]
    LongChain {
        /// The file.
        path: PathBuf,
        /// The most families.
        most: usize,
    },
    /// A file in the program itself that cannot be read.
    #[error("{problem}")]
    Embedded {
        /// The error of the file.
        problem: String,
    },
    /// A second family of a user.
    #[error("the family `{name}` was brought before: a process reads one format file")]
    SecondFamily {
        /// The first family.
        name: String,
    },
}

/// Why a family needs a name for tensors of this role.
fn tensor_reason(role: Role) -> &'static str {
    if role == Role::FfnRouter {
        "this family is a mixture"
    } else {
        "the layout of this family has this tensor"
    }
}

impl FormatError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::UnknownParent { found, known, .. } => {
                nearest(found, known.iter().map(String::as_str))
                    .map(|near| format!("the nearest known one is `{near}`").into())
            }
            _ => None,
        }
    }

    /// The file and the key.
    pub fn place(&self) -> ErrorPlace<'_> {
        let (path, key) = match self {
            Self::Required { path, key }
            | Self::OtherSection { path, key, .. }
            | Self::NoNameOrDefault { path, key }
            | Self::NoTensorName { path, key, .. }
            | Self::ExpertTensor { path, key }
            | Self::NotOfExpert { path, key }
            | Self::Pattern { path, key, .. } => (path, key.as_str()),
            Self::NoExpertNames { path } => (path, "expert_tensors"),
            Self::NoGgufArchitecture { path } => (path, "gguf.architecture"),
            Self::SequentialBlock { path } => (path, "keys.parallel_block"),
            Self::UnknownParent { path, .. }
            | Self::Circle { path, .. }
            | Self::LongChain { path, .. } => (path, "extends"),
            Self::Merged { path, .. } => return ErrorPlace::of(path),
            Self::Embedded { .. } | Self::SecondFamily { .. } => return ErrorPlace::default(),
        };
        ErrorPlace::of(path).with_key(key)
    }
}
