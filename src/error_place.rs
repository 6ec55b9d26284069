//! Where an error is: a file, a position in it, a tensor, a key.

use std::fmt;
use std::path::{Path, PathBuf};

/// A position in a text file. Lines and columns count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            line: number(location.line()),
            column: number(location.column()),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A file, and where in it; written `FILE:LINE:COLUMN`, which editors open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub path: PathBuf,
    /// The position, where it is known.
    pub position: Option<Position>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)?;
        match self.position {
            Some(position) => write!(f, ":{position}"),
            None => Ok(()),
        }
    }
}

impl<P: AsRef<Path>> From<P> for Location {
    fn from(path: P) -> Self {
        Self {
            path: path.as_ref().to_path_buf(),
            position: None,
        }
    }
}

/// Where an error is, as far as the error knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorPlace<'a> {
    /// The file or folder.
    pub path: Option<&'a Path>,
    /// The position in the file.
    pub position: Option<Position>,
    /// The tensor.
    pub tensor: Option<&'a str>,
    /// The key.
    pub key: Option<&'a str>,
}

impl<'a> ErrorPlace<'a> {
    /// A place in a file or folder.
    pub fn of(at: impl Into<ErrorPlace<'a>>) -> Self {
        at.into()
    }

    /// The same place, at this tensor.
    #[must_use]
    pub fn with_tensor(self, tensor: &'a str) -> Self {
        Self {
            tensor: Some(tensor),
            ..self
        }
    }

    /// The same place, at this key.
    #[must_use]
    pub fn with_key(self, key: &'a str) -> Self {
        Self {
            key: Some(key),
            ..self
        }
    }
}

impl<'a> From<&'a PathBuf> for ErrorPlace<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self {
            path: Some(path),
            ..Self::default()
        }
    }
}

impl<'a> From<&'a Location> for ErrorPlace<'a> {
    fn from(at: &'a Location) -> Self {
        Self {
            position: at.position,
            ..Self::from(&at.path)
        }
    }
}

impl fmt::Display for ErrorPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(path) = self.path else {
            return Ok(());
        };
        path.display().fmt(f)?;
        if let Some(position) = self.position {
            write!(f, ":{position}")?;
        }
        if let Some(tensor) = self.tensor {
            write!(f, ": tensor `{tensor}`")?;
        }
        match self.key {
            Some(key) => write!(f, ": key `{key}`"),
            None => Ok(()),
        }
    }
}
