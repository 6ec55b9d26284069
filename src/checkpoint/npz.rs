//! Writes a numpy archive: a zip file that stores one `NAME.npy` a tensor.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use super::ahead::for_each_piece;
use super::dtype::Dtype;
use super::npz_error::{ArrayRule, NpzError};
use super::writer::{TensorBytes, TensorLayout};
use crate::{Error, Result};

/// Length of the version 1 header of an array is a multiple of this, in bytes.
const ALIGNMENT: usize = 64;
/// Bytes before the text of an array's header: magic, version, and its length in two bytes.
const PREFIX: usize = 10;
/// Entries from this size on need the longer fields of zip64.
const LARGE: u64 = u32::MAX as u64;

/// The dtypes that numpy has, and its names for them, little-endian.
const DESCRS: [(Dtype, &str); 13] = [
    (Dtype::BOOL, "|b1"),
    (Dtype::U8, "|u1"),
    (Dtype::I8, "|i1"),
    (Dtype::U16, "<u2"),
    (Dtype::I16, "<i2"),
    (Dtype::U32, "<u4"),
    (Dtype::I32, "<i4"),
    (Dtype::U64, "<u8"),
    (Dtype::I64, "<i8"),
    (Dtype::F16, "<f2"),
    (Dtype::F32, "<f4"),
    (Dtype::F64, "<f8"),
    (Dtype::C64, "<c8"),
];

/// numpy's name for a dtype; `None` where numpy lacks it.
pub fn descr(dtype: Dtype) -> Option<&'static str> {
    let (_, name) = DESCRS.iter().find(|(known, _)| *known == dtype)?;
    Some(name)
}

/// The dtype that numpy calls `descr`; `None` for those that no tensor has.
pub(super) fn dtype_of(descr: &str) -> Option<Dtype> {
    let (dtype, _) = DESCRS.iter().find(|(_, known)| *known == descr)?;
    Some(*dtype)
}

/// Whether a tensor can have this name in an archive: one that unpacks below a folder, and that numpy finds again.
pub fn holds_name(name: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    // numpy leaves out `.npy` when it looks for a name, and zip has two bytes for its length.
    !name.ends_with(".npy")
        && name.len() + ".npy".len() <= usize::from(u16::MAX)
        && !name.contains(['\\', ':', '\0'])
        && name.split('/').all(plain)
}

/// Whether the file at `path` is an archive of numpy arrays and nothing else.
pub fn is_archive(path: &Path) -> bool {
    let archive = File::open(path)
        .ok()
        .and_then(|file| ZipArchive::new(file).ok());
    archive.is_some_and(|archive| {
        archive
            .file_names()
            .all(|name| name.is_ok_and(|name| name.ends_with(".npy")))
    })
}

/// Writes an archive of these tensors to the new `file`, which errors call `path`. The bytes of each tensor come from `source`
/// under the same number. `progress` is called with each number of bytes written.
///
/// # Errors
/// A tensor that numpy has no dtype for, what the source says, and a disk that refuses.
pub fn write<B: TensorBytes>(
    (file, path): (&mut File, &Path),
    tensors: &[TensorLayout],
    source: &B,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let fault = RefCell::new(None);
    let check = || {
        fault
            .take()
            .map_or(Ok(()), |e| Err(Error::io("write", path, e)))
    };
    let refused = |error: ZipError| NpzError::NotWritten {
        path: path.to_path_buf(),
        error,
    };
    let mut archive = ZipWriter::new(Sink {
        file: BufWriter::new(file),
        position: 0,
        fault: &fault,
    });
    for (number, tensor) in tensors.iter().enumerate() {
        let header = header(tensor).ok_or_else(|| NpzError::Array {
            path: path.to_path_buf(),
            tensor: tensor.name.clone(),
            rule: ArrayRule::NoNumpyDtype {
                dtype: tensor.dtype,
            },
        })?;
        let length = header.len() as u64 + tensor.length();
        archive
            .start_file(format!("{}.npy", tensor.name), options(length))
            .map_err(refused)?;
        let mut write = |bytes: &[u8]| {
            archive.write_all(bytes).map_err(|e| refused(e.into()))?;
            check()
        };
        write(&header)?;
        let width = tensor.dtype.bitsize() / 8;
        let make = |(first, count): (u64, usize), scratch: &mut B::Scratch| {
            let mut bytes = vec![0; count * width];
            source.fill(number, first * width as u64, &mut bytes, scratch)?;
            Ok(bytes)
        };
        for_each_piece::<B>(tensor.shape.iter().product(), make, |bytes| {
            write(bytes)?;
            progress(bytes.len() as u64);
            Ok(())
        })?;
    }
    let mut sink = archive.finish().map_err(refused)?;
    sink.flush().map_err(|e| Error::io("write", path, e))?;
    check()
}

/// The same for the same tensor, whenever and wherever it is written.
fn options(length: u64) -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        .large_file(length >= LARGE)
}

/// The bytes before the values of an array.
fn header(tensor: &TensorLayout) -> Option<Vec<u8>> {
    let extents: String = tensor
        .shape
        .iter()
        .map(|extent| format!("{extent}, "))
        .collect();
    // Python's tuple of one has a comma, its others have none at their end.
    let extents = if tensor.shape.len() == 1 {
        extents.trim_end()
    } else {
        extents.trim_end_matches(", ")
    };
    let descr = descr(tensor.dtype)?;
    let mut text =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}");
    let length = (PREFIX + text.len() + 1).next_multiple_of(ALIGNMENT) - PREFIX;
    text.push_str(&" ".repeat(length - text.len() - 1));
    text.push('\n');
    let length = u16::try_from(length).ok()?.to_le_bytes();
    Some([b"\x93NUMPY\x01\x00", &length[..], text.as_bytes()].concat())
}

/// A file that keeps its first error and takes everything from then on: the zip writer would report it with its own message.
struct Sink<'a, W> {
    file: W,
    position: u64,
    fault: &'a RefCell<Option<io::Error>>,
}

impl<W> Sink<'_, W> {
    fn keep(&self, done: io::Result<()>) {
        if let Err(e) = done {
            self.fault.borrow_mut().get_or_insert(e);
        }
    }
}

impl<W: Write> Write for Sink<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = self.file.write_all(bytes);
        self.keep(done);
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = self.file.flush();
        self.keep(done);
        Ok(())
    }
}

impl<W: Write + Seek> Seek for Sink<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        // Headers are written again at their place, and writing continues at the end.
        if to != SeekFrom::Current(0) {
            let done = self.file.seek(to);
            self.position = *done.as_ref().unwrap_or(&self.position);
            self.keep(done.map(drop));
        }
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_numpy_writes_them() {
        let header = |shape: &[u64]| {
            let layout = TensorLayout {
                name: "a".to_owned(),
                dtype: Dtype::F32,
                shape: shape.to_vec(),
            };
            String::from_utf8(header(&layout).unwrap()[PREFIX..].to_vec()).unwrap()
        };
        assert!(header(&[]).starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (), }"));
        assert!(header(&[3]).contains("(3,), }"));
        assert!(header(&[3, 4]).contains("(3, 4), }"));
        assert!(
            (PREFIX + header(&[3]).len()).is_multiple_of(ALIGNMENT)
                && header(&[3]).ends_with(" \n")
        );
    }

    #[test]
    fn names_that_unpack_elsewhere_are_none() {
        assert!(
            ["a", "a/b.weight", "...", "Ü"]
                .iter()
                .all(|name| holds_name(name))
        );
        for name in [
            "", "/a", "../a", "a/../b", "a//b", "a/", ".", "a\\b", "C:a", "a\0", "a.npy",
        ] {
            assert!(!holds_name(name), "{name}");
        }
        assert!(!holds_name(&"x".repeat(65_532)) && holds_name(&"x".repeat(65_531)));
    }
}
