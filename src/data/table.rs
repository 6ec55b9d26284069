//! The texts of a parquet table, one row at a time.
//!
//! A few hundred bytes of parquet can unpack to terabytes. Pages are compressed, one number repeats a value any number
//! of times, and the crate that reads pages allocates what their headers say. So a table is read page by page, each
//! page is checked before the crate sees it, and rows and text are bounded by the length of the file.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parquet::basic::{Compression, ConvertedType, Encoding, Type as PhysicalType};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::error::{DataError, DocumentPlace};
use super::limits::{LARGEST, TABLE, most_text};
use super::thrift;
use crate::caught::caught;
use crate::checkpoint::SourceFile;
use crate::{Error, Result};

/// Bytes of a page that need no justification: a text of the largest size, and others beside it.
const PAGE: u64 = 2 * LARGEST;
/// Unpacked bytes for each byte of a larger page in the file. Text packs to about a tenth.
const UNPACKED: u64 = 64;
/// Values of a page that need no justification: writers make pages of some 20,000.
const VALUES: u64 = 1 << 20;
/// Rows that need no justification, and further rows for each byte of the file.
const ROWS: u64 = 1 << 16;
const ROWS_BY_BYTE: u64 = 100;
/// Values of lists that need no justification, and further ones for each byte of the file.
const ITEMS: u64 = 1 << 20;
const ITEMS_BY_BYTE: u64 = 100;
/// Bytes of a page's header. Writers leave out statistics of more than 4 KiB.
const HEADER: u64 = 1 << 16;
/// Bytes that hold most headers.
const SHORT_HEADER: u64 = 256;

/// The rows of the column that holds the text.
pub(super) struct TableTexts {
    path: PathBuf,
    table: OpenTable,
    column: usize,
    /// The next row group.
    group: usize,
    rows: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows left in the row group that is read.
    left: u64,
    number: u64,
    /// Bytes of text that the file may still hold.
    text_left: u64,
    levels: Vec<i16>,
    values: Vec<ByteArray>,
}

/// A table whose rows its length justifies.
pub(super) struct OpenTable {
    pub file: Arc<TableFile>,
    pub metadata: ParquetMetaData,
}

impl OpenTable {
    /// Opens a table.
    pub fn open(path: &Path) -> Result<Self> {
        // Refuses folders and pipes.
        let length = SourceFile::open(path)?.len();
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let metadata = guarded(path, || {
            check_footer(&file, length)?;
            ParquetMetaDataReader::new().parse_and_finish(&file)
        })?;
        let rows = metadata.row_groups().iter().try_fold(0u64, |sum, group| {
            sum.checked_add(u64::try_from(group.num_rows()).ok()?)
        });
        let most = ROWS + ROWS_BY_BYTE * length;
        if rows.is_none_or(|rows| rows > most) {
            return Err(DataError::ManyRows {
                path: path.to_path_buf(),
                most,
                length,
                found: rows,
            }
            .into());
        }
        let file = TableFile {
            file,
            length,
            unpacked: AtomicU64::new(0),
            items: AtomicU64::new(0),
        };
        Ok(Self {
            file: Arc::new(file),
            metadata,
        })
    }
}

impl TableTexts {
    /// Opens a table; `text_key` is the column that holds the text.
    pub fn open(path: &Path, text_key: &str) -> Result<Self> {
        let table = OpenTable::open(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            column: text_column(path, &table.metadata, text_key)?,
            group: 0,
            rows: None,
            left: 0,
            number: 0,
            text_left: most_text(TABLE, table.file.length),
            levels: Vec::new(),
            values: Vec::new(),
            table,
        })
    }

    /// The text of the next row, empty where it has none.
    pub fn next_text(&mut self) -> Result<Option<String>> {
        let path = self.path.clone();
        let Some(value) = guarded(&path, || self.read())? else {
            return Ok(None);
        };
        self.number += 1;
        let place = DocumentPlace::Row(self.number);
        // A row without text is no document.
        let Some(value) = value else {
            return Ok(Some(String::new()));
        };
        let bytes = value.data();
        let found = bytes.len() as u64;
        if found > LARGEST {
            return Err(DataError::LongDocument { path, place, found }.into());
        }
        let Some(left) = self.text_left.checked_sub(found) else {
            return Err(DataError::UnpacksTooFar {
                path,
                most: most_text(TABLE, self.table.file.length),
                length: self.table.file.length,
            }
            .into());
        };
        self.text_left = left;
        let text = String::from_utf8(bytes.to_vec()).map_err(|e| DataError::NotUtf8 {
            path,
            place,
            byte: e.utf8_error().valid_up_to(),
        })?;
        Ok(Some(text))
    }

    /// The value of the next row, if there is one.
    fn read(&mut self) -> ParquetResult<Option<Option<ByteArray>>> {
        while self.left == 0 {
            let Some(group) = self.table.metadata.row_groups().get(self.group) else {
                return Ok(None);
            };
            self.group += 1;
            // Not negative, since their sum could be taken.
            self.left = group.num_rows() as u64;
            let pages = Pages::open(&self.table.file, group.column(self.column), self.left)?;
            let column = group.column(self.column).column_descr_ptr();
            self.rows = Some(ColumnReaderImpl::new(column, Box::new(pages)));
        }
        self.levels.clear();
        self.values.clear();
        let read = match &mut self.rows {
            // One at a time: values can be prefixes of the one before, so that a batch of them has no bound.
            Some(rows) => {
                rows.read_records(1, Some(&mut self.levels), None, &mut self.values)?
                    .0
            }
            None => 0,
        };
        if read == 0 {
            let problem = format!("row group {} has {} rows too few", self.group, self.left);
            return Err(ParquetError::General(problem));
        }
        self.left -= 1;
        Ok(Some(self.values.pop()))
    }
}

/// The number of the column that holds the text.
fn text_column(path: &Path, metadata: &ParquetMetaData, text_key: &str) -> Result<usize> {
    let schema = metadata.file_metadata().schema_descr();
    let fields = schema.root_schema().get_fields();
    let Some(field) = fields.iter().find(|field| field.name() == text_key) else {
        return Err(DataError::NoColumn {
            path: path.to_path_buf(),
            key: text_key.to_owned(),
            columns: fields.iter().map(|field| field.name().to_owned()).collect(),
        }
        .into());
    };
    let column = (0..schema.num_columns())
        .find(|column| schema.column(*column).path().parts() == [text_key]);
    let column = column.filter(|column| {
        let column = schema.column(*column);
        field.is_primitive()
            && column.physical_type() == PhysicalType::BYTE_ARRAY
            && column.converted_type() != ConvertedType::DECIMAL
            && column.max_rep_level() == 0
    });
    Ok(column.ok_or_else(|| DataError::NotStrings {
        path: path.to_path_buf(),
        key: text_key.to_owned(),
    })?)
}

/// Refuses a footer whose numbers its length does not justify.
fn check_footer(file: &File, length: u64) -> ParquetResult<()> {
    let tail = length
        .checked_sub(8)
        .map(|at| file.get_bytes(at, 8))
        .transpose()?;
    // What is no footer at all the crate refuses.
    let Some(size) = tail.and_then(|tail| tail.first_chunk::<4>().copied()) else {
        return Ok(());
    };
    let size = u64::from(u32::from_le_bytes(size));
    let Some(start) = (length - 8).checked_sub(size) else {
        return Ok(());
    };
    let footer = file.get_bytes(start, size as usize)?;
    match thrift::schema(&footer) {
        Some((most, columns)) if most <= columns => Ok(()),
        Some((most, columns)) => Err(ParquetError::General(format!(
            "a schema of {columns} columns has one with {most} children"
        ))),
        None => Err(ParquetError::General(
            "the footer cannot be read".to_owned(),
        )),
    }
}

/// The file, whose pages the crate reads through here.
pub(super) struct TableFile {
    file: File,
    pub length: u64,
    /// Bytes of all pages so far. Row groups may share a page, which is unpacked for each.
    unpacked: AtomicU64,
    /// Values of all pages of lists so far.
    items: AtomicU64,
}

impl Length for TableFile {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for TableFile {
    type T = BufReader<File>;

    /// A reader at the header of a page, which is checked before.
    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let mut header = Vec::new();
        let mut reader = self.file.get_read(start)?;
        reader
            .by_ref()
            .take(SHORT_HEADER)
            .read_to_end(&mut header)?;
        let mut lengths = thrift::page(&header);
        if lengths.is_none() {
            reader
                .take(HEADER - SHORT_HEADER)
                .read_to_end(&mut header)?;
            lengths = thrift::page(&header);
        }
        let Some((unpacked, packed)) = lengths else {
            let problem = format!("a page has no header within {HEADER} bytes");
            return Err(ParquetError::General(problem));
        };
        if unpacked > most_of_page(packed) {
            let problem = format!("a page of {packed} bytes unpacks to {unpacked}");
            return Err(ParquetError::General(problem));
        }
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        if start
            .checked_add(length as u64)
            .is_none_or(|end| end > self.length)
        {
            return Err(ParquetError::EOF("a page ends after the file".to_owned()));
        }
        self.file.get_bytes(start, length)
    }
}

/// Bytes that a page of so many bytes in the file may have once unpacked.
fn most_of_page(packed: u64) -> u64 {
    PAGE.max(UNPACKED.saturating_mul(packed))
}

/// The pages of a column, each checked.
pub(super) struct Pages {
    file: Arc<TableFile>,
    pages: SerializedPageReader<TableFile>,
    /// Whether pages are unpacked here: the crate unpacks gzip without a bound.
    gzip: bool,
    nullable: bool,
    /// Whether values may be prefixes of the one before. Values that are read together would then have no bound.
    pub allows_prefixes: bool,
    is_repeated: bool,
    /// Values of pages of lists since whoever reads the column has set it to 0: while a row is read, all go to memory.
    pub items: Arc<AtomicU64>,
}

impl Pages {
    pub fn open(
        file: &Arc<TableFile>,
        column: &parquet::file::metadata::ColumnChunkMetaData,
        rows: u64,
    ) -> ParquetResult<Self> {
        let gzip = matches!(column.compression(), Compression::GZIP(_));
        let mut chunk = column.clone();
        if gzip {
            chunk = chunk
                .into_builder()
                .set_compression(Compression::UNCOMPRESSED)
                .build()?;
        }
        Ok(Self {
            file: file.clone(),
            pages: SerializedPageReader::new(file.clone(), &chunk, rows as usize, None)?,
            gzip,
            nullable: column.column_descr().max_def_level() > 0,
            allows_prefixes: true,
            is_repeated: column.column_descr().max_rep_level() > 0,
            items: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Refuses values that the length of the page does not justify: the crate makes room for them first.
    fn check(&self, page: &Page) -> ParquetResult<()> {
        let length = page.buffer().len() as u64;
        if page.encoding() == Encoding::DELTA_BYTE_ARRAY && !self.allows_prefixes {
            let problem = "expected lists of strings that are no prefixes of each other";
            return Err(ParquetError::General(problem.to_owned()));
        }
        let (values, most) = match page {
            Page::DictionaryPage { num_values, .. } => (
                u64::from(*num_values),
                (length / 4).min(VALUES.max(length / 16)),
            ),
            Page::DataPage {
                encoding,
                buf,
                def_level_encoding,
                ..
            } => {
                // Other levels do not say how long they are; no writer has them beside delta-encoded values.
                let sized = *def_level_encoding == Encoding::RLE;
                let levels = match buf.first_chunk::<4>() {
                    _ if !self.nullable => 0,
                    Some(size) if sized => 4 + u32::from_le_bytes(*size) as usize,
                    _ => usize::MAX,
                };
                (
                    delta_values(*encoding, buf, levels)?,
                    VALUES.max(length / 4),
                )
            }
            Page::DataPageV2 {
                encoding,
                buf,
                def_levels_byte_len,
                rep_levels_byte_len,
                ..
            } => {
                let levels = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
                (
                    delta_values(*encoding, buf, levels)?,
                    VALUES.max(length / 4),
                )
            }
        };
        if values > most {
            let problem = format!("a page of {length} bytes has {values} values");
            return Err(ParquetError::General(problem));
        }
        Ok(())
    }

    /// Refuses more values of lists than a row can have, and than the file justifies. A few bytes repeat a level any number
    /// of times, and a row is read with all its values.
    fn check_items(&self, page: &Page) -> ParquetResult<()> {
        let values = match page {
            Page::DictionaryPage { .. } => return Ok(()),
            Page::DataPage { .. } | Page::DataPageV2 { .. } => u64::from(page.num_values()),
        };
        let since = self.items.fetch_add(values, Relaxed) + values;
        let all = self.file.items.fetch_add(values, Relaxed) + values;
        let most = ITEMS + ITEMS_BY_BYTE * self.file.length;
        if since > ITEMS || all > most {
            let problem = format!(
                "its lists have {since} items in a row, or {all} in all; expected at most {ITEMS} and {most}"
            );
            return Err(ParquetError::General(problem));
        }
        Ok(())
    }
}

impl Iterator for Pages {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        let Some(mut page) = self.pages.get_next_page()? else {
            return Ok(None);
        };
        if self.gzip {
            unpack(&mut page)?;
        }
        self.check(&page)?;
        if self.is_repeated {
            self.check_items(&page)?;
        }

        let length = page.buffer().len() as u64;
        let most = most_text(PAGE, self.file.length);
        if self.file.unpacked.fetch_add(length, Relaxed) + length > most {
            let problem = format!("its pages unpack to more than {most} bytes");
            return Err(ParquetError::General(problem));
        }
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.pages.skip_next_page()
    }
}

/// The number of values in a page after its levels, if the encoding stores that number.
fn delta_values(encoding: Encoding, page: &[u8], levels: usize) -> ParquetResult<u64> {
    let delta = [
        Encoding::DELTA_LENGTH_BYTE_ARRAY,
        Encoding::DELTA_BYTE_ARRAY,
    ];
    if !delta.contains(&encoding) {
        return Ok(0);
    }
    let count = if encoding == Encoding::DELTA_BYTE_ARRAY {
        // The lengths of prefixes, then the lengths of suffixes.
        thrift::two_delta_values
    } else {
        thrift::delta_values
    };
    page.get(levels..)
        .and_then(count)
        .ok_or_else(|| ParquetError::EOF("a page ends before its values".to_owned()))
}

/// Unpacks a page of gzip; the levels before the values are not packed in pages of the second version.
fn unpack(page: &mut Page) -> ParquetResult<()> {
    let (buf, levels) = match page {
        Page::DictionaryPage { buf, .. } | Page::DataPage { buf, .. } => (buf, 0),
        Page::DataPageV2 {
            is_compressed: false,
            ..
        } => return Ok(()),
        Page::DataPageV2 {
            buf,
            def_levels_byte_len,
            rep_levels_byte_len,
            ..
        } => (
            buf,
            *def_levels_byte_len as usize + *rep_levels_byte_len as usize,
        ),
    };
    let most = most_of_page(buf.len() as u64);
    let Some((levels, packed)) = buf.split_at_checked(levels) else {
        return Err(ParquetError::EOF(
            "a page ends before its values".to_owned(),
        ));
    };
    let mut unpacked = levels.to_vec();
    flate2::read::MultiGzDecoder::new(packed)
        .take(most + 1)
        .read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > most {
        let problem = format!("a page of {} bytes unpacks to more than {most}", buf.len());
        return Err(ParquetError::General(problem));
    }
    *buf = unpacked.into();
    Ok(())
}

/// What reading a table gives; where the `parquet` crate panics over a damaged one, that is an error like any other.
pub(super) fn guarded<T>(path: &Path, read: impl FnOnce() -> ParquetResult<T>) -> Result<T> {
    let problem = match caught(read) {
        Ok(Ok(read)) => return Ok(read),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it is damaged".to_owned(),
    };
    let path = path.to_path_buf();
    Err(DataError::NotParquet { path, problem }.into())
}
