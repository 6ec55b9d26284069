//! `tokenize --chat` of hostile parquet tables: lists of a few bytes that would fill the memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use crate::chat::tokenizer;
use crate::common::{Run, bam};

const SCHEMA: &str = "message t { optional group messages (LIST) { repeated group list { \
                      optional group element { optional binary role (UTF8); optional binary content (UTF8); } } } }";
/// Definition levels of an item without the field, and with it.
const NULL: i16 = 3;
const HELD: i16 = 4;

/// A table of one row with so many items, whose fields are null or empty.
fn table(path: PathBuf, items: usize, level: i16) -> PathBuf {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(parquet::basic::Compression::UNCOMPRESSED)
        .set_data_page_row_count_limit(usize::MAX)
        .set_write_batch_size(items)
        .build();
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let levels = vec![level; items];
    let mut repeated = vec![1; items];
    repeated[0] = 0;
    let values = vec![ByteArray::from(""); if level == HELD { items } else { 0 }];
    while let Some(mut column) = group.next_column().unwrap() {
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), Some(&repeated))
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    path
}

fn tokenized(work: &TempDir, table: &Path) -> Run {
    bam!(
        "tokenize",
        table,
        "--chat",
        "--tokenizer",
        tokenizer(work, "plain"),
        "--out",
        work.path().join("out")
    )
}

#[test]
fn lists_that_would_fill_the_memory_are_refused() {
    let work = TempDir::new().unwrap();
    for (items, level, part) in [
        (40_000, NULL, "has 40000 items; expected at most 32768"),
        (40_000, HELD, "has 40000 items; expected at most 32768"),
        ((1 << 20) + 1, NULL, "its lists have 1048577 items in a row"),
    ] {
        let table = table(work.path().join("a.parquet"), items, level);
        let length = std::fs::metadata(&table).unwrap().len();
        assert!(length < 20_000, "{items} items take {length} bytes");
        tokenized(&work, &table).refused(2, &["a.parquet", part]);
        assert!(!work.path().join("out").exists());
    }
}
