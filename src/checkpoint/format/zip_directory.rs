//! The list of entries at the end of a zip file, for archives whose entries are stored as they are.
//!
//! It is parsed here instead of by the `zip` crate. That crate reserves memory for as many entries as an archive claims to
//! have, and takes another list further up in the file where the last one is broken. Here every number is checked against the
//! file's length before it is used.

use std::path::Path;

use crate::checkpoint::header;
use crate::checkpoint::source_file::{ReadAt, SourceFile};
use crate::checkpoint::{ArrayRule, NpzError};
use crate::{Error, Result};

/// Signatures of zip: before an entry, of an entry in the directory, and of the three records after it.
pub(super) const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const LONG_END: &[u8] = b"PK\x06\x06";
const LONG_END_PLACE: &[u8] = b"PK\x06\x07";

/// Lengths of these records, without names and other variable parts.
const LOCAL_LENGTH: usize = 30;
const CENTRAL_LENGTH: usize = 46;
const END_LENGTH: usize = 22;
const LONG_END_LENGTH: usize = 56;
const LONG_END_PLACE_LENGTH: usize = 20;

/// The longest comment after the end record.
const LONGEST_COMMENT: u64 = u16::MAX as u64;

/// Where the list of entries is in the file.
pub(super) struct Directory {
    start: u64,
    length: u64,
    entries: u64,
}

/// One entry of the directory.
pub(super) struct Entry {
    /// With its suffix.
    pub(super) name: String,
    /// Where the record before its data begins.
    start: u64,
    /// Length of its data.
    length: u64,
}

impl Directory {
    /// Reads the record at the end of the file.
    pub(super) fn find(file: &SourceFile) -> Result<Self> {
        let path = file.path();
        let window = file.len().min(END_LENGTH as u64 + LONGEST_COMMENT);
        let mut tail = vec![0; window as usize];
        file.read_exact_at(&mut tail, file.len() - window)?;

        // A comment ends the file; its length must lead to the end exactly.
        let last = tail.len().saturating_sub(END_LENGTH);
        let ends_file = |at: &usize| {
            let record = &tail[*at..];
            record.starts_with(END)
                && u16_at(record, 20).map(usize::from) == record.len().checked_sub(END_LENGTH)
        };
        let at = (0..=last).rev().find(ends_file).ok_or_else(|| {
            let path = path.to_path_buf();
            NpzError::NoList { path }
        })?;

        let record = &tail[at..];
        let position = file.len() - window + at as u64;
        let short = || {
            Some(Self {
                entries: u16_at(record, 10)?.into(),
                length: u32_at(record, 12)?.into(),
                start: u32_at(record, 16)?.into(),
            })
        };
        let mut found = short().ok_or_else(|| broken(path))?;
        let mut limit = position;
        // A field that is full says that zip64 has the number.
        let is_full = found.entries == u64::from(u16::MAX)
            || [found.length, found.start].contains(&u32::MAX.into());
        if is_full {
            (found, limit) = Self::long(file, position)?;
        }

        found.check(path, limit)?;
        Ok(found)
    }

    /// Reads the longer record of zip64; its place is written before the end record at `position`. Returns its place, too.
    fn long(file: &SourceFile, position: u64) -> Result<(Self, u64)> {
        let path = file.path();
        let mut pointer = [0; LONG_END_PLACE_LENGTH];
        let before = position
            .checked_sub(pointer.len() as u64)
            .ok_or_else(|| broken(path))?;
        file.read_exact_at(&mut pointer, before)?;
        let place = u64_at(&pointer, 8)
            .filter(|place| {
                let end = place.checked_add(LONG_END_LENGTH as u64);
                pointer.starts_with(LONG_END_PLACE) && end.is_some_and(|end| end <= before)
            })
            .ok_or_else(|| broken(path))?;

        let mut record = [0; LONG_END_LENGTH];
        file.read_exact_at(&mut record, place)?;
        let read = || {
            Some(Self {
                entries: u64_at(&record, 32)?,
                length: u64_at(&record, 40)?,
                start: u64_at(&record, 48)?,
            })
        };
        let found = read().filter(|_| record.starts_with(LONG_END));
        Ok((found.ok_or_else(|| broken(path))?, place))
    }

    /// Refuses a directory that does not fit before `limit`, or whose entries do not fit in it.
    fn check(&self, path: &Path, limit: u64) -> Result<()> {
        let end = self.start.checked_add(self.length);
        if end.is_none_or(|end| end > limit) {
            return Err(broken(path));
        }
        if self.length > header::LONGEST {
            return Err(NpzError::LongList {
                path: path.to_path_buf(),
                most: header::LONGEST,
                found: self.length,
            }
            .into());
        }
        let least = self.entries.saturating_mul(CENTRAL_LENGTH as u64);
        if least > self.length {
            return Err(NpzError::ManyArrays {
                path: path.to_path_buf(),
                arrays: self.entries,
                least,
                found: self.length,
            }
            .into());
        }
        Ok(())
    }

    /// Reads the list.
    pub(super) fn entries(&self, file: &SourceFile) -> Result<Vec<Entry>> {
        let path = file.path();
        let mut bytes = vec![0; self.length as usize];
        file.read_exact_at(&mut bytes, self.start)?;

        let mut entries = Vec::new();
        let mut rest = &bytes[..];
        for _ in 0..self.entries {
            let fields = rest.get(..CENTRAL_LENGTH);
            let fields = fields.filter(|fields| fields.starts_with(CENTRAL));
            let fields = fields.ok_or_else(|| broken(path))?;
            let length = |at| u16_at(fields, at).map_or(0, usize::from);
            let (name, extra, comment) = (length(28), length(30), length(32));

            let variable = &rest[CENTRAL_LENGTH..];
            let whole = variable.get(..name + extra + comment);
            let whole = whole.ok_or_else(|| broken(path))?;
            entries.push(Entry::read(
                path,
                fields,
                &whole[..name],
                &whole[name..][..extra],
            )?);
            rest = &variable[whole.len()..];
        }
        Ok(entries)
    }

    /// Where the data of an entry begins and ends; `None` where the record before it is not the one that the list names.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub(super) fn data_of(&self, file: &SourceFile, entry: &Entry) -> Result<Option<(u64, u64)>> {
        let within = |end: Option<u64>| end.filter(|end| *end <= self.start);
        let length = LOCAL_LENGTH + entry.name.len();
        let Some(named) = within(entry.start.checked_add(length as u64)) else {
            return Ok(None);
        };

        let mut record = vec![0; length];
        file.read_exact_at(&mut record, entry.start)?;
        let (fields, name) = record.split_at(LOCAL_LENGTH);
        let has_name = u16_at(fields, 26).map(usize::from) == Some(name.len())
            && name == entry.name.as_bytes();
        if !fields.starts_with(LOCAL) || !has_name {
            return Ok(None);
        }

        let extra = u16_at(fields, 28).map_or(0, u64::from);
        let start = within(named.checked_add(extra));
        let end = start.and_then(|start| within(start.checked_add(entry.length)));
        Ok(start.zip(end))
    }
}

impl Entry {
    /// One entry from its fixed fields, its name and its further fields.
    fn read(path: &Path, fields: &[u8], name: &[u8], extra: &[u8]) -> Result<Self> {
        let name = std::str::from_utf8(name).map_err(|_| NpzError::NameNotUtf8 {
            path: path.to_path_buf(),
        })?;
        let Some(flags) = u16_at(fields, 8) else {
            return Err(broken(path));
        };
        if flags & 1 != 0 {
            return Err(refused(path, name, ArrayRule::Encrypted));
        }
        if u16_at(fields, 10) != Some(0) {
            return Err(refused(path, name, ArrayRule::Compressed));
        }

        let mut long = long_fields(extra);
        let mut length_at = |at| match u32_at(fields, at)? {
            u32::MAX => long.next(),
            short => Some(short.into()),
        };
        // In this order: zip64 has only those fields that do not fit in four bytes.
        let numbers = [length_at(24), length_at(20), length_at(42)];
        let [Some(length), Some(stored), Some(start)] = numbers else {
            return Err(broken(path));
        };
        if length != stored {
            return Err(refused(
                path,
                name,
                ArrayRule::TwoLengths { stored, length },
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            start,
            length,
        })
    }
}

/// The eight-byte numbers of the zip64 field among an entry's further fields.
fn long_fields(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while let (Some(kind), Some(length)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(field) = extra.get(4..4 + usize::from(length)) else {
            break;
        };
        if kind == 1 {
            found = field;
            break;
        }
        extra = &extra[4 + field.len()..];
    }
    found.chunks_exact(8).filter_map(|number| u64_at(number, 0))
}

/// The error for a list of arrays that does not fit the file.
fn broken(path: &Path) -> Error {
    let path = path.to_path_buf();
    NpzError::BrokenList { path }.into()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The error for the array `name` of the archive at `path`.
pub(super) fn refused(path: &Path, name: &str, rule: ArrayRule) -> Error {
    NpzError::Array {
        path: path.to_path_buf(),
        tensor: name.to_owned(),
        rule,
    }
    .into()
}
