//! The interpreter of pickles: a stack, marks, and a memo of values that were kept.

use std::collections::HashMap;
use std::rc::Rc;

use super::pickle_value::{
    MOST_VALUES, Name, Outcome, PickleRule, PickleValue, Storage, StoredTensor, ValueId, known,
};

/// Arguments of a call, and extents of a tensor, at most. They are copied, while a pickle can name them again and again.
const MOST_ARGUMENTS: usize = 64;
/// Bytes of a storage's name at most.
const LONGEST_KEY: usize = 128;

/// The interpreter.
pub(super) struct PickleMachine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<PickleValue>,
    stack: Vec<ValueId>,
    /// Heights of the stack that the pickle has marked.
    marks: Vec<usize>,
    memo: HashMap<u32, ValueId>,
    /// Values that were copied, each of 8 bytes or more.
    copied: usize,
}

impl<'a> PickleMachine<'a> {
    /// The values of the pickle at the beginning of `bytes`, the one that it leaves, and how many bytes it takes.
    pub(super) fn run(bytes: &'a [u8]) -> Outcome<(Vec<PickleValue>, ValueId, usize)> {
        let mut machine = Self {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            copied: 0,
        };
        let root = machine.finish()?;
        Ok((machine.values, root, machine.at))
    }

    fn finish(&mut self) -> Outcome<ValueId> {
        loop {
            let code = self.take(1)?[0];
            match code {
                // PROTO, FRAME: how the pickle is written.
                0x80 => self.skip(1)?,
                0x95 => self.skip(8)?,
                b'.' => return self.pop(),
                b'(' => self.mark()?,
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.since_mark()?;
                }
                b'2' => {
                    let top = self.pop()?;
                    self.stack.push(top);
                    self.push_id(top)?;
                }
                b'q' | b'r' | 0x94 | b'h' | b'j' => self.memorise(code)?,
                b')' | b'\x85' | b'\x86' | b'\x87' | b't' | b'l' | b']' | b'a' | b'e' => {
                    self.sequence(code)?;
                }
                b'}' | b'd' | b's' | b'u' => self.dict(code)?,
                b'c' | 0x93 => self.name(code)?,
                b'R' => self.call()?,
                b'b' => self.build()?,
                b'Q' => self.persistent()?,
                _ => self.scalar(code)?,
            }
        }
    }

    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or(PickleRule::Truncated)?;
        let found = self.bytes.get(self.at..end).ok_or(PickleRule::Truncated)?;
        self.at = end;
        Ok(found)
    }

    fn skip(&mut self, count: usize) -> Outcome<()> {
        self.take(count).map(|_| ())
    }

    /// A little-endian number of so many bytes.
    fn number(&mut self, count: usize) -> Outcome<u64> {
        let bytes = self.take(count)?;
        let mut whole = [0; 8];
        whole[..count].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(whole))
    }

    fn push_id(&mut self, id: ValueId) -> Outcome<()> {
        if self.stack.len() >= MOST_VALUES {
            return Err(PickleRule::ManyValues);
        }
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: PickleValue) -> Outcome<()> {
        let id = u32::try_from(self.values.len()).map_err(|_| PickleRule::ManyValues)?;
        if self.values.len() >= MOST_VALUES {
            return Err(PickleRule::ManyValues);
        }
        self.values.push(value);
        self.push_id(ValueId(id))
    }

    fn pop(&mut self) -> Outcome<ValueId> {
        // Values below a mark belong to what comes after it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(PickleRule::Stack);
        }
        self.stack.pop().ok_or(PickleRule::Stack)
    }

    fn top(&self) -> Outcome<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.last().filter(|_| self.stack.len() > floor);
        top.map(|id| id.0 as usize).ok_or(PickleRule::Stack)
    }

    fn mark(&mut self) -> Outcome<()> {
        if self.marks.len() >= MOST_VALUES {
            return Err(PickleRule::ManyValues);
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The values since the last mark, which they leave.
    fn since_mark(&mut self) -> Outcome<Vec<ValueId>> {
        let mark = self.marks.pop().ok_or(PickleRule::Stack)?;
        Ok(self.stack.split_off(mark))
    }

    /// What a value is.
    fn value(&self, id: ValueId) -> &PickleValue {
        &self.values[id.0 as usize]
    }

    fn memorise(&mut self, code: u8) -> Outcome<()> {
        let key = match code {
            b'q' | b'h' => self.number(1)? as u32,
            b'r' | b'j' => self.number(4)? as u32,
            _ => u32::try_from(self.memo.len()).map_err(|_| PickleRule::ManyValues)?,
        };
        if matches!(code, b'h' | b'j') {
            let id = *self.memo.get(&key).ok_or(PickleRule::Stack)?;
            return self.push_id(id);
        }
        if self.memo.len() >= MOST_VALUES {
            return Err(PickleRule::ManyValues);
        }
        let top = self.top()?;
        self.memo.insert(key, ValueId(top as u32));
        Ok(())
    }

    fn sequence(&mut self, code: u8) -> Outcome<()> {
        let items = match code {
            b')' | b']' => Vec::new(),
            b't' | b'l' => self.since_mark()?,
            b'a' | b'e' => {
                let items = if code == b'a' {
                    vec![self.pop()?]
                } else {
                    self.since_mark()?
                };
                let top = self.top()?;
                let PickleValue::Sequence(list) = &mut self.values[top] else {
                    return Err(PickleRule::Stack);
                };
                list.extend(items);
                return Ok(());
            }
            _ => {
                let count = usize::from(code) - 0x84;
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                items
            }
        };
        self.push(PickleValue::Sequence(items))
    }

    fn dict(&mut self, code: u8) -> Outcome<()> {
        let items = match code {
            b'}' => Vec::new(),
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        if items.len() % 2 != 0 {
            return Err(PickleRule::Stack);
        }
        let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        if matches!(code, b'}' | b'd') {
            return self.push(PickleValue::Dict(pairs.collect()));
        }
        let top = self.top()?;
        match &mut self.values[top] {
            PickleValue::Dict(dict) => dict.extend(pairs),
            _ => return Err(PickleRule::Stack),
        }
        Ok(())
    }

    /// A line of the protocol's text.
    fn line(&mut self) -> Outcome<&'a str> {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = &rest[..end.ok_or(PickleRule::Truncated)?];
        self.at += line.len() + 1;
        std::str::from_utf8(line).map_err(|_| PickleRule::Text)
    }

    fn name(&mut self, code: u8) -> Outcome<()> {
        /// Bytes of a name that an error repeats.
        const MOST: usize = 60;
        let (module, name) = if code == b'c' {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            (self.text(module)?, self.text(name)?)
        };
        let found = known(module, name).ok_or_else(|| PickleRule::UnknownName {
            name: format!("{module}.{name}").chars().take(MOST).collect(),
        })?;
        self.push(PickleValue::Name(found))
    }

    fn text(&self, id: ValueId) -> Outcome<&'a str> {
        match self.value(id) {
            PickleValue::Text(from, to) => {
                std::str::from_utf8(&self.bytes[*from..*to]).map_err(|_| PickleRule::Text)
            }
            _ => Err(PickleRule::Stack),
        }
    }

    fn scalar(&mut self, code: u8) -> Outcome<()> {
        let value = match code {
            b'N' => PickleValue::Other,
            0x88 | 0x89 => PickleValue::Bool(code == 0x88),
            b'J' => PickleValue::Int(i64::from(self.number(4)? as u32 as i32)),
            b'K' => PickleValue::Int(self.number(1)? as i64),
            b'M' => PickleValue::Int(self.number(2)? as i64),
            0x8a => self.long()?,
            b'G' => {
                self.skip(8)?;
                PickleValue::Other
            }
            b'X' => self.slice(4)?,
            0x8c | b'U' => self.slice(1)?,
            b'T' => self.slice(4)?,
            0x8d => self.slice(8)?,
            b'B' | b'C' | 0x8e => {
                let width = match code {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                };
                self.slice(width)?;
                PickleValue::Other
            }
            code => return Err(PickleRule::Instruction { code }),
        };
        self.push(value)
    }

    /// A whole number of any length; those that no count needs are other values.
    fn long(&mut self) -> Outcome<PickleValue> {
        let count = self.number(1)? as usize;
        let bytes = self.take(count)?;
        if count > 8 {
            return Ok(PickleValue::Other);
        }
        let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = if is_negative { [0xff; 8] } else { [0; 8] };
        whole[..count].copy_from_slice(bytes);
        Ok(PickleValue::Int(i64::from_le_bytes(whole)))
    }

    /// A text or bytes after a length of so many bytes.
    fn slice(&mut self, width: usize) -> Outcome<PickleValue> {
        let length = usize::try_from(self.number(width)?).map_err(|_| PickleRule::Truncated)?;
        let from = self.at;
        self.skip(length)?;
        Ok(PickleValue::Text(from, from + length))
    }

    fn call(&mut self) -> Outcome<()> {
        let (arguments, name) = (self.pop()?, self.pop()?);
        let PickleValue::Name(name) = *self.value(name) else {
            return Err(PickleRule::Call { what: "a value" });
        };
        let PickleValue::Sequence(arguments) = self.value(arguments) else {
            return Err(PickleRule::Stack);
        };
        if arguments.len() > MOST_ARGUMENTS {
            return Err(PickleRule::Call { what: "something" });
        }
        let arguments = arguments.clone();
        match name {
            Name::Dict => self.new_dict(&arguments),
            Name::Size => match arguments[..] {
                [extents] => self.push_id(extents),
                _ => Err(PickleRule::Call { what: "torch.Size" }),
            },
            Name::Parameter => match arguments.first() {
                Some(data) if matches!(self.value(*data), PickleValue::Tensor(_)) => {
                    self.push_id(*data)
                }
                _ => Err(PickleRule::Call {
                    what: "a parameter",
                }),
            },
            Name::Tensor { says_dtype } => {
                let tensor = self.tensor(&arguments, says_dtype)?;
                self.push(PickleValue::Tensor(tensor))
            }
            Name::Storage(_) | Name::Dtype(_) => Err(PickleRule::Call { what: "a type" }),
        }
    }

    /// Counts values that are copied: a few bytes of a pickle may name many again and again.
    fn charge(&mut self, count: usize) -> Outcome<()> {
        self.copied += count;
        if self.copied > MOST_VALUES {
            return Err(PickleRule::ManyValues);
        }
        Ok(())
    }

    /// An ordered dictionary, empty or of a list of pairs.
    fn new_dict(&mut self, arguments: &[ValueId]) -> Outcome<()> {
        let wrong = PickleRule::Call {
            what: "OrderedDict",
        };
        let mut pairs = Vec::new();
        if let Some(items) = arguments.first() {
            let list = items.0 as usize;
            let PickleValue::Sequence(items) = &self.values[list] else {
                return Err(wrong);
            };
            let count = items.len();
            self.charge(count)?;
            let PickleValue::Sequence(items) = &self.values[list] else {
                return Err(wrong);
            };
            for item in items {
                match self.value(*item) {
                    PickleValue::Sequence(pair) if pair.len() == 2 => {
                        pairs.push((pair[0], pair[1]));
                    }
                    _ => return Err(wrong),
                }
            }
        }
        self.push(PickleValue::Dict(pairs))
    }

    fn tensor(&mut self, arguments: &[ValueId], says_dtype: bool) -> Outcome<StoredTensor> {
        let axes = [2, 3].map(
            |place| match arguments.get(place).map(|id| self.value(*id)) {
                Some(PickleValue::Sequence(items)) => items.len(),
                _ => 0,
            },
        );
        self.charge(axes.iter().sum())?;
        let wrong = PickleRule::Call {
            what: "_rebuild_tensor",
        };
        let [storage, offset, shape, strides, ..] = arguments[..] else {
            return Err(wrong);
        };
        let PickleValue::Storage(storage) = self.value(storage) else {
            return Err(wrong);
        };
        // `{'neg': True}`: values that are still to be negated or conjugated.
        match arguments
            .get(6 + usize::from(says_dtype))
            .map(|said| self.value(*said))
        {
            None | Some(PickleValue::Other) => {}
            Some(PickleValue::Dict(said)) if said.is_empty() => {}
            _ => return Err(PickleRule::Metadata),
        }
        let dtype = if says_dtype {
            match arguments.get(6).map(|dtype| self.value(*dtype)) {
                Some(PickleValue::Name(Name::Dtype(dtype))) => *dtype,
                _ => return Err(wrong),
            }
        } else {
            storage.dtype.ok_or_else(|| wrong.clone())?
        };
        let counts = |id: ValueId| match self.value(id) {
            PickleValue::Sequence(items) if items.len() <= MOST_ARGUMENTS => {
                items.iter().map(|item| self.count(*item)).collect()
            }
            _ => Err(wrong.clone()),
        };
        let (shape, strides): (Vec<u64>, Vec<u64>) = (counts(shape)?, counts(strides)?);
        if shape.len() != strides.len() {
            return Err(wrong);
        }
        Ok(StoredTensor {
            storage: Rc::clone(storage),
            dtype,
            offset: self.count(offset)?,
            shape,
            strides,
        })
    }

    /// A number of 0 or more.
    fn count(&self, id: ValueId) -> Outcome<u64> {
        match self.value(id) {
            PickleValue::Int(number) => u64::try_from(*number).map_err(|_| PickleRule::Negative),
            _ => Err(PickleRule::Stack),
        }
    }

    /// The state of an object: only ordered dictionaries have one, which says nothing of their items.
    fn build(&mut self) -> Outcome<()> {
        self.pop()?;
        let top = self.top()?;
        match self.values[top] {
            PickleValue::Dict(_) => Ok(()),
            _ => Err(PickleRule::Call { what: "a state" }),
        }
    }

    /// `('storage', type, key, device, length)`, in old files with the part of another storage that it is.
    fn persistent(&mut self) -> Outcome<()> {
        let id = self.pop()?;
        let PickleValue::Sequence(items) = self.value(id) else {
            return Err(PickleRule::StorageForm);
        };
        let [word, kind, key, _, length, ref view @ ..] = items[..] else {
            return Err(PickleRule::StorageForm);
        };
        let (PickleValue::Name(Name::Storage(dtype)), Ok("storage")) =
            (self.value(kind), self.text(word))
        else {
            return Err(PickleRule::StorageForm);
        };
        let key = self.text(key).ok().filter(|key| key.len() <= LONGEST_KEY);
        let mut storage = Storage {
            key: key.ok_or(PickleRule::StorageForm)?.to_owned(),
            dtype: *dtype,
            length: self.count(length)?,
            begin: 0,
        };
        if let Some(PickleValue::Sequence(view)) = view.first().map(|view| self.value(*view)) {
            let [_, begin, length] = view[..] else {
                return Err(PickleRule::StorageForm);
            };
            (storage.begin, storage.length) = (self.count(begin)?, self.count(length)?);
        }
        self.charge(storage.key.len() / 8)?;
        self.push(PickleValue::Storage(Rc::new(storage)))
    }
}
