//! Event files as TensorBoard reads them: scalars in TFRecords.
//!
//! A record is its length (u64), the masked CRC-32C of the length, the bytes, and their masked CRC-32C, all
//! little-endian. The bytes are a protobuf `Event`: wall_time (1, double), step (2, varint), and either file_version
//! (3, string) or summary (5). A summary is a list of values (1) of tag (1, string) and simple_value (2, float).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// TensorBoard looks for files with this in their names.
const NAME: &str = "events.out.tfevents.0.bam-convert";

/// An event file, being written.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins the event file of `folder` anew.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        // A new file, so that a reader that has the old one open does not read on in the middle of a record.
        if let Err(e) = fs::remove_file(&path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Error::io("remove", &path, e));
        }
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut events = Self { path, file };
        let mut event = wall_time(0.0);
        bytes(&mut event, 3, b"brain.Event:2");
        events.write(&event)?;
        Ok(events)
    }

    /// Adds scalars of a step at a time in seconds since 1970.
    pub(super) fn add(&mut self, time: f64, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        if scalars.is_empty() {
            return Ok(());
        }
        let mut event = wall_time(time);
        event.push(2 << 3);
        varint(&mut event, step);
        let mut summary = Vec::new();
        for (tag, number) in scalars {
            let mut value = Vec::new();
            bytes(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | 5);
            value.extend((*number as f32).to_le_bytes());
            bytes(&mut summary, 1, &value);
        }
        bytes(&mut event, 5, &summary);
        self.write(&event)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(event);
        record.extend(masked(event).to_le_bytes());
        self.file
            .write_all(&record)
            .map_err(|e| Error::io("write", &self.path, e))
    }
}

fn wall_time(time: f64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time.to_le_bytes());
    event
}

/// A field of bytes: key, length, content.
fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, content.len() as u64);
    out.extend(content);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// CRC-32C, rotated and shifted, because records may hold checksums themselves.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_checksums_and_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path()).unwrap();
        events
            .add(1.5, 300, &[("loss/nll".to_owned(), 2.5)])
            .unwrap();
        let file = fs::read(folder.path().join(NAME)).unwrap();
        let (mut rest, mut records) = (&file[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]).to_le_bytes());
            let content = &rest[12..12 + length];
            assert_eq!(
                rest[12 + length..16 + length],
                masked(content).to_le_bytes()
            );
            records.push(content);
            rest = &rest[16 + length..];
        }
        assert!(records[0].ends_with(b"brain.Event:2"));
        let mut expected = vec![9];
        expected.extend(1.5f64.to_le_bytes());
        // Step 300 is the varint ac 02; the value of 15 bytes is in a summary of 17.
        expected.extend([0x10, 0xac, 0x02, 0x2a, 17, 0x0a, 15, 0x0a, 8]);
        expected.extend(b"loss/nll");
        expected.push(0x15);
        expected.extend(2.5f32.to_le_bytes());
        assert_eq!(records[1], expected);
    }
}
