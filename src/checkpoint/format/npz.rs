//! Archives of numpy (`.npz`): a zip file whose entries are arrays, `NAME.npy`.
//!
//! Arrays are read whose bytes are the same in the file and in memory, as `numpy.savez` and `convert --to npz` write them: not
//! compressed, little-endian, in C order.

use std::collections::BTreeMap;

use super::zip_directory::{Directory, Entry, LOCAL, refused, u16_at, u32_at};
use super::{WeightFile, WeightFormat};
use crate::Result;
use crate::checkpoint::encoding::{Encoding, TensorEntry, overlapping};
use crate::checkpoint::source_file::{ReadAt, SourceFile};
use crate::checkpoint::{ArrayRule, Dtype, NpzError, dtype, npz};

/// An archive of numpy.
#[derive(Debug)]
pub(super) struct NumpyArchive;

impl WeightFormat for NumpyArchive {
    fn name(&self) -> &'static str {
        "archive of numpy (.npz)"
    }

    fn recognises(&self, head: &[u8]) -> bool {
        // PyTorch's files are archives too, but of other entries.
        head.starts_with(LOCAL)
            && head
                .windows(SUFFIX.len())
                .any(|part| part == SUFFIX.as_bytes())
    }

    fn read(&self, file: &SourceFile, number: usize) -> Result<WeightFile> {
        let path = file.path();
        let directory = Directory::find(file)?;

        let mut tensors = BTreeMap::new();
        for entry in directory.entries(file)? {
            let (name, tensor) = array(file, &directory, &entry, number)?;
            if tensors.contains_key(&name) {
                return Err(refused(path, &name, ArrayRule::Repeated));
            }
            tensors.insert(name, tensor);
        }

        if let Some([(first, _), (second, _)]) = overlapping(&tensors) {
            let other = first.clone();
            return Err(refused(path, second, ArrayRule::SharedBytes { other }));
        }
        Ok(WeightFile {
            tensors,
            description: None,
        })
    }
}

/// What the names of arrays end with in an archive.
const SUFFIX: &str = ".npy";

/// The longest description of an array; numpy itself refuses more than 10,000 bytes.
const LONGEST_DESCRIPTION: u64 = 1 << 16;

/// The array of an entry: its name without suffix, and its place.
fn array(
    file: &SourceFile,
    directory: &Directory,
    entry: &Entry,
    number: usize,
) -> Result<(String, TensorEntry)> {
    let path = file.path();
    let name = entry.name.strip_suffix(SUFFIX);
    let Some(name) = name.filter(|name| npz::holds_name(name)) else {
        return Err(NpzError::NotArray {
            path: path.to_path_buf(),
            name: entry.name.clone(),
        }
        .into());
    };
    let fault = |rule| refused(path, name, rule);

    let (start, end) = directory
        .data_of(file, entry)?
        .ok_or_else(|| fault(ArrayRule::Elsewhere))?;

    let (text, begin) =
        description(file, start, end)?.ok_or_else(|| fault(ArrayRule::NoDescription))?;
    let described = Description::parse(&text).map_err(fault)?;

    let length = end - begin;
    let expected = described
        .shape
        .iter()
        .try_fold(1_u64, |product, extent| product.checked_mul(*extent))
        .and_then(|elements| dtype::byte_length(described.dtype, elements));
    if expected != Some(length) {
        return Err(fault(ArrayRule::WrongLength {
            shape: described.shape,
            dtype: described.dtype,
            length,
        }));
    }

    let tensor = TensorEntry {
        file: number,
        offset: begin,
        length,
        encoding: Encoding::Plain(described.dtype),
        shape: described.shape,
        runs: None,
    };
    Ok((name.to_owned(), tensor))
}

/// The text that describes the array from `start` to `end`, and where its values begin; `None` where this is no array.
fn description(file: &SourceFile, start: u64, end: u64) -> Result<Option<(String, u64)>> {
    let mut prefix = vec![0; 12.min(end - start) as usize];
    file.read_exact_at(&mut prefix, start)?;
    let (length, begin) = match prefix.get(..8) {
        Some(b"\x93NUMPY\x01\x00") => (u16_at(&prefix, 8).map(u64::from), start + 10),
        Some(b"\x93NUMPY\x02\x00" | b"\x93NUMPY\x03\x00") => {
            (u32_at(&prefix, 8).map(u64::from), start + 12)
        }
        _ => return Ok(None),
    };
    let Some(length) = length.filter(|length| {
        *length <= LONGEST_DESCRIPTION && begin.checked_add(*length).is_some_and(|to| to <= end)
    }) else {
        return Ok(None);
    };

    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, begin)?;
    Ok(String::from_utf8(text)
        .ok()
        .map(|text| (text, begin + length)))
}

/// What numpy says of an array: `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
#[derive(Debug, PartialEq)]
struct Description {
    dtype: Dtype,
    shape: Vec<u64>,
}

impl Description {
    /// Parses a Python dictionary of these three keys.
    fn parse(text: &str) -> Result<Self, ArrayRule> {
        let unreadable = || ArrayRule::Description {
            // A text of up to 64 KiB, which a message would only repeat.
            found: text.trim_end().chars().take(60).collect(),
        };
        let mut literal = Literal(text);
        let (mut descr, mut fortran, mut shape) = (None, None, None);

        literal.eat('{').ok_or_else(unreadable)?;
        while literal.eat('}').is_none() {
            let key = literal.quoted().ok_or_else(unreadable)?;
            literal.eat(':').ok_or_else(unreadable)?;
            match key {
                "descr" => {
                    descr = Some(literal.quoted().ok_or(ArrayRule::Fields)?);
                }
                "fortran_order" => fortran = Some(literal.boolean().ok_or_else(unreadable)?),
                "shape" => shape = Some(literal.extents().ok_or_else(unreadable)?),
                _ => return Err(unreadable()),
            }
            if literal.eat(',').is_none() {
                literal.eat('}').ok_or_else(unreadable)?;
                break;
            }
        }
        let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return Err(unreadable());
        };

        if !literal.0.trim().is_empty() {
            return Err(unreadable());
        }
        if fortran && shape.len() > 1 {
            return Err(ArrayRule::FortranOrder);
        }
        let dtype = npz::dtype_of(descr).ok_or_else(|| ArrayRule::UnknownDtype {
            found: descr.to_owned(),
        })?;
        Ok(Self { dtype, shape })
    }
}

/// The rest of a Python literal.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    /// Skips white space, then `expected` where it follows.
    fn eat(&mut self, expected: char) -> Option<()> {
        self.0 = self.0.trim_start();
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// A string without escapes.
    fn quoted(&mut self) -> Option<&'a str> {
        let quote = ['\'', '"']
            .into_iter()
            .find(|quote| self.eat(*quote).is_some())?;
        let (text, rest) = self.0.split_once(quote)?;
        self.0 = rest;
        (!text.contains('\\')).then_some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        self.0 = self.0.trim_start();
        for (name, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.0.strip_prefix(name) {
                self.0 = rest;
                return Some(value);
            }
        }
        None
    }

    /// A tuple of whole numbers.
    fn extents(&mut self) -> Option<Vec<u64>> {
        let mut extents = Vec::new();
        self.eat('(')?;
        while self.eat(')').is_none() {
            self.0 = self.0.trim_start();
            let digits = self.0.find(|c: char| !c.is_ascii_digit())?;
            extents.push(self.0[..digits].parse().ok()?);
            self.0 = &self.0[digits..];
            if self.eat(',').is_none() {
                self.eat(')')?;
                break;
            }
        }
        Some(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_read_as_numpy_writes_them() {
        let parse = |text: &str| Description::parse(text).map(|found| (found.dtype, found.shape));
        for (text, expected) in [
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (), }  \n",
                (Dtype::F32, vec![]),
            ),
            (
                "{'descr': '|i1', 'fortran_order': True, 'shape': (3,), }",
                (Dtype::I8, vec![3]),
            ),
            (
                "{\"shape\": (3, 4), \"descr\": \"<f2\", \"fortran_order\": False}",
                (Dtype::F16, vec![3, 4]),
            ),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        let unknown = |found: &str| ArrayRule::UnknownDtype {
            found: found.to_owned(),
        };
        for (text, rule) in [
            (
                "{'descr': '>f4', 'fortran_order': False, 'shape': (), }",
                unknown(">f4"),
            ),
            (
                "{'descr': '|O', 'fortran_order': False, 'shape': (), }",
                unknown("|O"),
            ),
            (
                "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (), }",
                ArrayRule::Fields,
            ),
            (
                "{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }",
                ArrayRule::FortranOrder,
            ),
        ] {
            assert_eq!(parse(text), Err(rule), "{text}");
        }
        for text in [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3",
            "{'descr': '<f4', 'fortran_order': False, }",
            "{'descr': '<f4', 'fortran_order': 1, 'shape': (), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (), } x",
            "__import__('os')",
            "",
        ] {
            let refused = parse(text).unwrap_err();
            assert!(
                matches!(refused, ArrayRule::Description { .. }),
                "{text}: {refused}"
            );
        }
    }
}
