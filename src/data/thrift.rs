//! The numbers in a parquet file's Thrift structures that decide how much work and memory reading it takes.
//!
//! The `parquet` crate allocates what these numbers say before it compares them with the file, and skips as many items of a
//! list as the list says it has. It reads a field that it knows by the field's number, whatever type the file gives. So all
//! is read here first, from the compact encoding of Thrift, and a field of another type than parquet's is refused.

/// What a field holds. parquet.thrift in the parquet-format repository numbers the fields.
enum Shape {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    Double,
    Binary,
    List(&'static Shape),
    /// The fields by number, beginning with 1.
    Struct(&'static [Shape]),
    /// A number that no field has.
    Unused,
}

use Shape::{Binary, Bool, Byte, Double, I16, I32, I64, List, Struct, Unused};

const FILE: &[Shape] = &[
    I32,
    List(&Struct(COLUMN)),
    I64,
    List(&Struct(ROW_GROUP)),
    List(&Struct(KEY_VALUE)),
    Binary,
    List(&Struct(&[EMPTY, EMPTY])),
    EMPTY,
    Binary,
];
const COLUMN: &[Shape] = &[
    I32,
    I32,
    I32,
    Binary,
    I32,
    I32,
    I32,
    I32,
    I32,
    Struct(LOGICAL_TYPE),
];
const LOGICAL_TYPE: &[Shape] = &[
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    Struct(&[I32, I32]),
    EMPTY,
    Struct(&[Bool, Struct(&[EMPTY, EMPTY, EMPTY])]),
    Struct(&[Bool, Struct(&[EMPTY, EMPTY, EMPTY])]),
    Unused,
    Struct(&[Byte, Bool]),
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    Struct(&[Byte]),
    Struct(&[Binary]),
    Struct(&[Binary, I32]),
];
const ROW_GROUP: &[Shape] = &[
    List(&Struct(CHUNK)),
    I64,
    I64,
    List(&Struct(&[I32, Bool, Bool])),
    I64,
    I64,
    I16,
];
const CHUNK: &[Shape] = &[
    Binary,
    I64,
    Struct(CHUNK_METADATA),
    I64,
    I32,
    I64,
    I32,
    EMPTY,
    Binary,
];
const CHUNK_METADATA: &[Shape] = &[
    I32,
    List(&I32),
    List(&Binary),
    I32,
    I64,
    I64,
    I64,
    List(&Struct(KEY_VALUE)),
    I64,
    I64,
    I64,
    Struct(STATISTICS),
    List(&Struct(&[I32, I32, I32])),
    I64,
    I32,
    Struct(&[I64, List(&I64), List(&I64)]),
    Struct(&[Struct(BOUNDS), List(&I32)]),
];
const STATISTICS: &[Shape] = &[Binary, Binary, I64, I64, Binary, Binary, Bool, Bool];
const BOUNDS: &[Shape] = &[
    Double, Double, Double, Double, Double, Double, Double, Double,
];
const KEY_VALUE: &[Shape] = &[Binary, Binary];
/// A structure without fields that are known here.
const EMPTY: Shape = Struct(&[]);

const PAGE: &[Shape] = &[
    I32,
    I32,
    I32,
    I32,
    Struct(&[I32, I32, I32, I32, Struct(STATISTICS)]),
    EMPTY,
    Struct(&[I32, I32, Bool]),
    Struct(&[I32, I32, I32, I32, I32, I32, Bool, Struct(STATISTICS)]),
];
/// The fields that every page header begins with: its kind, and its length unpacked and in the file.
const PAGE_REQUIRED: usize = 3;

/// Structures within structures that parquet does not know: it has some five of its own.
const DEEPEST: usize = 32;
/// Columns within columns. The crate makes the tree of a schema by recursion, and a stack that overflows ends the process.
const DEEPEST_COLUMN: usize = 100;

/// The highest number of children that a column in the schema of this footer has, and the number of columns. `None` where
/// it is no footer, or columns are nested deeper than [`DEEPEST_COLUMN`].
pub(super) fn schema(footer: &[u8]) -> Option<(u64, u64)> {
    Compact(footer).fields(FILE, 0)?;
    let (mut most, mut columns) = (0, 0);
    // The children that each open column still lacks; a column comes directly before its children.
    let mut open: Vec<u64> = Vec::new();
    let mut compact = Compact(footer);
    let mut last = 0;
    while let Some((field, kind)) = compact.field(&mut last)? {
        if field != 2 {
            compact.skip(kind, 0)?;
            continue;
        }
        let (count, _) = compact.list()?;
        columns += count;
        for _ in 0..count {
            let (mut last, mut children) = (0, 0);
            while let Some((field, kind)) = compact.field(&mut last)? {
                if field == 5 {
                    children = u64::try_from(compact.signed()?).ok()?;
                } else {
                    compact.skip(kind, 0)?;
                }
            }
            most = most.max(children);

            while open.pop_if(|left| *left == 0).is_some() {}
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            open.push(children);
            if open.len() > DEEPEST_COLUMN {
                return None;
            }
        }
    }
    Some((most, columns))
}

/// The length of a page once unpacked and in the file, by its header; `None` where `header` does not hold a whole one.
pub(super) fn page(header: &[u8]) -> Option<(u64, u64)> {
    let mut compact = Compact(header);
    let mut numbers = [0; PAGE_REQUIRED];
    for number in &mut numbers {
        if compact.byte()? != 1 << 4 | I32.kind() {
            return None;
        }
        *number = u64::try_from(compact.small::<i32>()?).ok()?;
    }
    compact.fields(PAGE, PAGE_REQUIRED as i64)?;
    Some((numbers[1], numbers[2]))
}

/// The number of values that a section of delta-encoded numbers says it holds.
pub(super) fn delta_values(section: &[u8]) -> Option<u64> {
    let mut compact = Compact(section);
    // Before it are the values of a block, and the parts of a block.
    compact.varint()?;
    compact.varint()?;
    compact.varint()
}

/// The larger number of values that two sections of delta-encoded numbers say they hold, one directly after the other.
pub(super) fn two_delta_values(sections: &[u8]) -> Option<u64> {
    let mut compact = Compact(sections);
    let block = compact.varint()?;
    let parts = compact.varint()?;
    let values = compact.varint()?;
    let in_part = block.checked_div(parts).filter(|values| *values > 0)?;
    compact.signed()?;

    // The first value is in the header.
    let mut left = values.saturating_sub(1);
    while left > 0 {
        compact.signed()?;
        let widths = compact.0.get(..usize::try_from(parts).ok()?)?;
        compact.take(parts)?;
        for width in widths {
            if left == 0 {
                break;
            }
            compact.take(u64::from(*width).checked_mul(in_part)? / 8)?;
            left = left.saturating_sub(in_part);
        }
    }
    Some(values.max(delta_values(compact.0)?))
}

impl Shape {
    /// The type in the compact encoding; a boolean has one for each value.
    fn kind(&self) -> u8 {
        match self {
            Unused => 0,
            Bool => 1,
            Byte => 3,
            I16 => 4,
            I32 => 5,
            I64 => 6,
            Double => 7,
            Binary => 8,
            List(_) => 9,
            Struct(_) => 12,
        }
    }
}

/// Bytes of Thrift's compact encoding.
struct Compact<'a>(&'a [u8]);

impl Compact<'_> {
    /// Reads the fields of a structure after field number `last`; `None` where one has another shape.
    fn fields(&mut self, shapes: &[Shape], mut last: i64) -> Option<()> {
        while let Some((field, kind)) = self.field(&mut last)? {
            let known = usize::try_from(field - 1)
                .ok()
                .and_then(|at| shapes.get(at));
            match known {
                None | Some(Unused) => self.skip(kind, 0)?,
                Some(Bool) => (kind == 1 || kind == 2).then_some(())?,
                Some(shape) => self.value(shape, kind)?,
            }
        }
        Some(())
    }

    /// Reads a value of this shape that has type `kind` in the file.
    fn value(&mut self, shape: &Shape, kind: u8) -> Option<()> {
        if kind != shape.kind() {
            return None;
        }
        match shape {
            Struct(shapes) => self.fields(shapes, 0),
            List(item) => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.value(item, kind))
            }
            // The crate cuts larger numbers to these sizes, and would read another number than we do.
            I16 => self.small::<i16>().map(drop),
            I32 => self.small::<i32>().map(drop),
            _ => self.skip(kind, 0),
        }
    }

    /// The number and type of the next field of a structure whose last field was number `last`; none at the end.
    ///
    /// Numbers rise. A writer spells a number out only where it is more than 15 above the last one, and the crate relies
    /// on that for some structures.
    fn field(&mut self, last: &mut i64) -> Option<Option<(i64, u8)>> {
        let head = self.byte()?;
        if head == 0 {
            return Some(None);
        }
        let field = match head >> 4 {
            0 => self.signed().filter(|field| *field > *last + 15)?,
            delta => *last + i64::from(delta),
        };
        // The crate cuts a larger number to 16 bits, which could be the number of another field.
        i16::try_from(field).ok()?;
        *last = field;
        Some(Some((field, head & 15)))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            // The value is in the type.
            1 | 2 => Some(()),
            3 => self.take(1),
            4..=6 => self.varint().map(drop),
            7 => self.take(8),
            8 => {
                let length = self.varint()?;
                self.take(length)
            }
            9 | 10 => {
                let (count, kind) = self.list()?;
                // A boolean in a list is a byte, but the crate skips none and would read on at another place than we do.
                if count > 0 && kind <= 2 {
                    return None;
                }
                (0..count).try_for_each(|_| self.skip(kind, depth + 1))
            }
            12 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
                Some(())
            }
            _ => None,
        }
    }

    /// The count and type of a list; each item takes a byte or more.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        (count <= self.0.len() as u64).then_some((count, head & 15))
    }

    /// A number of a smaller type.
    fn small<T: TryFrom<i64>>(&mut self) -> Option<T> {
        T::try_from(self.signed()?).ok()
    }

    fn signed(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }
}
