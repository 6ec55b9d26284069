//! The conversations of a parquet table, one row at a time, as the objects that JSON lines would hold.
//!
//! A column of messages is a list of structures of strings, as the `datasets` library writes it. Its leaves are read side
//! by side. `table.rs` bounds what is read; in addition, a row has at most the bytes of one document, and so many values.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parquet::basic::{ConvertedType, Repetition, Type as PhysicalType};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::schema::types::{ColumnDescriptor, Type};
use serde_json::{Map, Value};

use super::conversation;
use super::error::{DataError, DocumentPlace};
use super::limits::{LARGEST, TABLE, most_text};
use super::table::{OpenTable, Pages, TableFile, guarded};
use crate::Result;

/// Most values in the lists of a row, of all fields together.
const MOST_VALUES: usize = 1 << 16;

/// The rows of the columns that hold conversations.
pub(super) struct TableChats {
    path: PathBuf,
    table: OpenTable,
    leaves: Vec<Leaf>,
    /// The next row group.
    group: usize,
    /// Rows left in the row group that is read.
    left: u64,
    number: u64,
    /// Bytes of text that the file may still hold.
    text_left: u64,
}

/// A column of strings: a field of the rows, or of the structures of a list.
struct Leaf {
    /// Number of the column.
    column: usize,
    /// The field of the row.
    field: String,
    /// The field of the structures, where the row's is a list of them.
    key: Option<String>,
    /// Definition levels: of a list that is there, above which entries are its items; and of a value.
    list_level: i16,
    value_level: i16,
    rows: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Values of the pages that were opened for the row that is read.
    items: Arc<AtomicU64>,
}

/// What a leaf holds of a row.
struct LeafRow {
    /// Whether the row's field is there at all.
    is_there: bool,
    values: Vec<Option<ByteArray>>,
}

impl TableChats {
    /// Opens a table.
    ///
    /// # Errors
    /// A table without conversations, or one whose conversations hold more than strings.
    pub fn open(path: &Path) -> Result<Self> {
        let table = OpenTable::open(path)?;
        let schema = table.metadata.file_metadata().schema_descr();
        let fields = schema.root_schema().get_fields();
        let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        if !conversation::has_key(|key| names.contains(&key)) {
            return Err(DataError::NoConversation {
                path: path.to_path_buf(),
                place: DocumentPlace::File,
                keys: names.into_iter().map(str::to_owned).collect(),
            }
            .into());
        }
        let mut leaves = Vec::new();
        for number in 0..schema.num_columns() {
            let column = schema.column(number);
            let name = column.path().parts()[0].as_str();
            let field = fields.iter().find(|field| field.name() == name);
            if let Some(field) = field.filter(|_| conversation::reads_column(&names, name)) {
                let leaf = Leaf::of(number, &column, field).ok_or_else(|| DataError::NotTurns {
                    path: path.to_path_buf(),
                    key: column.path().string(),
                });
                leaves.push(leaf?);
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            leaves,
            group: 0,
            left: 0,
            number: 0,
            text_left: most_text(TABLE, table.file.length),
            table,
        })
    }

    /// The next row as an object.
    pub fn next_row(&mut self) -> Result<Option<Map<String, Value>>> {
        let path = self.path.clone();
        let Some(rows) = guarded(&path, || self.read())? else {
            return Ok(None);
        };
        self.number += 1;
        let place = DocumentPlace::Row(self.number);
        let values = rows.iter().flat_map(|row| row.values.iter().flatten());
        let found = values.map(|value| value.len() as u64).sum::<u64>();
        if found > LARGEST {
            return Err(DataError::LongDocument { path, place, found }.into());
        }
        let Some(left) = self.text_left.checked_sub(found) else {
            let length = self.table.file.length;
            let most = most_text(TABLE, length);
            return Err(DataError::UnpacksTooFar { path, most, length }.into());
        };
        self.text_left = left;

        let text = |value: &ByteArray| {
            let text = String::from_utf8(value.data().to_vec());
            text.map(Value::String).map_err(|e| DataError::NotUtf8 {
                path: path.clone(),
                place,
                byte: e.utf8_error().valid_up_to(),
            })
        };
        let mut object = Map::new();
        for (leaf, row) in self.leaves.iter().zip(rows) {
            let mut values = Vec::with_capacity(row.values.len());
            for value in &row.values {
                values.push(value.as_ref().map_or(Ok(Value::Null), text)?);
            }
            leaf.add(&mut object, row.is_there, values)
                .map_err(|problem| DataError::NotParquet {
                    path: path.clone(),
                    problem,
                })?;
        }
        Ok(Some(object))
    }

    /// What all leaves hold of the next row.
    fn read(&mut self) -> ParquetResult<Option<Vec<LeafRow>>> {
        while self.left == 0 {
            let Some(group) = self.table.metadata.row_groups().get(self.group) else {
                return Ok(None);
            };
            self.group += 1;
            // Not negative, since their sum could be taken.
            self.left = group.num_rows() as u64;
            for leaf in &mut self.leaves {
                leaf.open(&self.table.file, group.column(leaf.column), self.left)?;
            }
        }
        let most = MOST_VALUES / self.leaves.len().max(1);
        let rows = self.leaves.iter_mut().map(|leaf| leaf.read(most));
        let rows = rows.collect::<ParquetResult<Vec<_>>>()?;
        self.left -= 1;
        Ok(Some(rows))
    }
}

impl Leaf {
    /// The leaf of a column, if it has a form that is read.
    fn of(column: usize, descriptor: &ColumnDescriptor, field: &Type) -> Option<Self> {
        let is_text = descriptor.physical_type() == PhysicalType::BYTE_ARRAY
            && descriptor.converted_type() != ConvertedType::DECIMAL;
        let parts = descriptor.path().parts();
        let key = match (descriptor.max_rep_level(), parts) {
            (0, [_]) => None,
            // The list, its repeated group and the item are above the leaf.
            (1, [_, _, _, key]) => Some(key.clone()),
            _ => return None,
        };
        is_text.then(|| Self {
            column,
            field: parts[0].clone(),
            key,
            list_level: i16::from(field.get_basic_info().repetition() == Repetition::OPTIONAL),
            value_level: descriptor.max_def_level(),
            rows: None,
            items: Arc::default(),
        })
    }

    fn open(
        &mut self,
        file: &Arc<TableFile>,
        column: &parquet::file::metadata::ColumnChunkMetaData,
        rows: u64,
    ) -> ParquetResult<()> {
        let mut pages = Pages::open(file, column, rows)?;
        // All values of a row are read at once.
        pages.allows_prefixes = self.key.is_none();
        self.items = pages.items.clone();
        let descriptor = column.column_descr_ptr();
        self.rows = Some(ColumnReaderImpl::new(descriptor, Box::new(pages)));
        Ok(())
    }

    /// The next row, which has at most so many items.
    fn read(&mut self, most: usize) -> ParquetResult<LeafRow> {
        self.items.store(0, Relaxed);
        let (mut levels, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let read = match &mut self.rows {
            Some(rows) => {
                rows.read_records(1, Some(&mut levels), Some(&mut repeated), &mut values)?
                    .0
            }
            None => 0,
        };
        if read == 0 {
            let problem = format!("column `{}` has too few rows", self.field);
            return Err(ParquetError::General(problem));
        }
        let found = levels.len().max(values.len());
        if found > most {
            let field = &self.field;
            let problem = format!("a list in `{field}` has {found} items; expected at most {most}");
            return Err(ParquetError::General(problem));
        }
        // A column that is required throughout has no levels.
        if levels.is_empty() {
            levels.resize(values.len(), self.value_level);
        }
        let mut values = values.into_iter();
        let items = levels.iter().filter(|level| match self.key {
            None => true,
            Some(_) => **level > self.list_level,
        });
        let items = items.map(|level| {
            if *level == self.value_level {
                values.next()
            } else {
                None
            }
        });
        let items: Vec<Option<ByteArray>> = items.collect();
        Ok(LeafRow {
            is_there: self.list_level == 0 || levels.iter().any(|level| *level > 0),
            values: items,
        })
    }

    /// Adds what this leaf holds of a row to the row's object.
    fn add(
        &self,
        object: &mut Map<String, Value>,
        is_there: bool,
        values: Vec<Value>,
    ) -> Result<(), String> {
        let Some(key) = &self.key else {
            let value = values.into_iter().next().unwrap_or(Value::Null);
            object.insert(self.field.clone(), value);
            return Ok(());
        };
        if !is_there {
            object.entry(self.field.clone()).or_insert(Value::Null);
            return Ok(());
        }
        let new = || Value::Array(vec![Value::Object(Map::new()); values.len()]);
        let items = object.entry(self.field.clone()).or_insert_with(new);
        match items {
            Value::Array(items) if items.len() == values.len() => {
                for (item, value) in items.iter_mut().zip(values) {
                    item[key] = value;
                }
                Ok(())
            }
            _ => Err(format!("the fields of `{}` have other lengths", self.field)),
        }
    }
}
