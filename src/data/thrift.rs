//! The numbers in a parquet file's Thrift structures that decide how much memory reading it takes.
//!
//! The `parquet` crate allocates what these numbers say before it compares them with the file, and an allocation that
//! fails ends the process. So they are read here first, from the compact encoding of Thrift.

const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Structures within structures: parquet has some five.
const DEEPEST: usize = 32;

/// Types by field number: another type would make the crate read other numbers than we do.
type Types = [u8];
const FILE: &Types = &[I32, LIST, I64, LIST, LIST, BINARY, LIST, STRUCT, BINARY];
const COLUMN: &Types = &[I32, I32, I32, BINARY, I32, I32, I32, I32, I32, STRUCT];
const PAGE: &Types = &[I32, I32, I32];

/// The highest number of children that a column in the schema of this footer has, and the number of columns; `None`
/// where it is no footer.
pub(super) fn schema(footer: &[u8]) -> Option<(u64, u64)> {
    let (mut most, mut columns) = (0, 0);
    let mut compact = Compact(footer);
    compact.fields(FILE, &mut |compact, field, kind| {
        if field != 2 {
            return compact.skip(kind, 0);
        }
        let (count, kind) = compact.list()?;
        if count > 0 && kind != STRUCT {
            return None;
        }
        columns += count;
        for _ in 0..count {
            compact.fields(COLUMN, &mut |compact, field, kind| {
                if field != 5 {
                    return compact.skip(kind, 0);
                }
                most = most.max(u64::try_from(compact.signed()?).ok()?);
                Some(())
            })?;
        }
        Some(())
    })?;
    Some((most, columns))
}

/// The length of a page once unpacked and in the file, by its header; `None` where `header` does not hold a whole one.
///
/// The whole header is read. The crate skips the items of a list one by one, as many as the header says, and past the end
/// of the file, too. And of a field that is there twice, it takes the last.
pub(super) fn page(header: &[u8]) -> Option<(u64, u64)> {
    let mut compact = Compact(header);
    let mut numbers = [0; 3];
    for (at, number) in numbers.iter_mut().enumerate() {
        // Each writer puts the required fields 1 to 3 first.
        if compact.byte()? != 1 << 4 | PAGE[at] {
            return None;
        }
        *number = u64::try_from(compact.signed()?).ok()?;
    }
    let required = PAGE.len() as i64;
    compact.fields_after(required, &[], &mut |compact, field, kind| {
        (field > required).then_some(())?;
        compact.skip(kind, 0)
    })?;
    Some((numbers[1], numbers[2]))
}

/// The number of values that a section of delta-encoded values says it holds.
pub(super) fn delta_values(section: &[u8]) -> Option<u64> {
    let mut compact = Compact(section);
    // Before it are the values of a block, and the parts of a block.
    compact.varint()?;
    compact.varint()?;
    compact.varint()
}

/// Bytes of Thrift's compact encoding.
struct Compact<'a>(&'a [u8]);

impl Compact<'_> {
    /// Hands each field of a structure to `each`, which must read it.
    fn fields(
        &mut self,
        types: &Types,
        each: &mut dyn FnMut(&mut Self, i64, u8) -> Option<()>,
    ) -> Option<()> {
        self.fields_after(0, types, each)
    }

    /// The same for a structure whose fields up to number `field` are read.
    fn fields_after(
        &mut self,
        mut field: i64,
        types: &Types,
        each: &mut dyn FnMut(&mut Self, i64, u8) -> Option<()>,
    ) -> Option<()> {
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(());
            }
            let kind = head & 15;
            field = match head >> 4 {
                0 => self.signed()?,
                delta => field.checked_add(i64::from(delta))?,
            };
            let known = usize::try_from(field - 1).ok().and_then(|at| types.get(at));
            if known.is_some_and(|expected| *expected != kind) {
                return None;
            }
            each(self, field, kind)?;
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            // The truth is in the type.
            1 | 2 => Some(()),
            3 => self.take(1),
            4..=6 => self.varint().map(drop),
            7 => self.take(8),
            BINARY => {
                let length = self.varint()?;
                self.take(length)
            }
            LIST | 10 => {
                let (count, kind) = self.list()?;
                // A boolean in a list is a byte, but the crate skips none and would read on at another place than we do.
                if count > 0 && kind <= 2 {
                    return None;
                }
                (0..count).try_for_each(|_| self.skip(kind, depth + 1))
            }
            STRUCT => self.fields(&[], &mut |compact, _, kind| compact.skip(kind, depth + 1)),
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
