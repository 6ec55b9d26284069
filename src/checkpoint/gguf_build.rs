//! Writes small GGUF files for tests, right or wrong in one place.

use std::path::PathBuf;

/// A GGUF file in the making: little-endian, version 3.
#[derive(Clone)]
pub(crate) struct Build {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) keys: Vec<(String, Vec<u8>)>,
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

pub(crate) fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

impl Build {
    pub(crate) fn new() -> Self {
        Self {
            version: 3,
            alignment: 32,
            keys: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// A key with a value of this type number, as bytes.
    pub(crate) fn raw(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.keys
            .push((key.to_owned(), [&kind.to_le_bytes(), value].concat()));
        self
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, 7, &[value.into()])
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, 8, &text(value))
    }

    /// A list of values of this type number.
    pub(crate) fn list(&mut self, key: &str, kind: u32, values: &[Vec<u8>]) -> &mut Self {
        let head = [
            &kind.to_le_bytes()[..],
            &(values.len() as u64).to_le_bytes(),
        ]
        .concat();
        self.raw(key, 9, &[head, values.concat()].concat())
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[&str]) -> &mut Self {
        self.list(
            key,
            8,
            &values.iter().map(|value| text(value)).collect::<Vec<_>>(),
        )
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        self.list(
            key,
            5,
            &values
                .iter()
                .map(|value| value.to_le_bytes().to_vec())
                .collect::<Vec<_>>(),
        )
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        self.list(
            key,
            6,
            &values
                .iter()
                .map(|value| value.to_le_bytes().to_vec())
                .collect::<Vec<_>>(),
        )
    }

    /// A tensor in Hugging Face's order of dimensions, with ggml's type number.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        shape: &[u64],
        kind: u32,
        data: Vec<u8>,
    ) -> &mut Self {
        self.tensors
            .push((name.to_owned(), shape.to_vec(), kind, data));
        self
    }

    /// An F32 tensor of zeros.
    pub(crate) fn zeros(&mut self, name: &str, shape: &[u64]) -> &mut Self {
        let bytes = 4 * shape.iter().product::<u64>() as usize;
        self.tensor(name, shape, 0, vec![0; bytes])
    }

    pub(crate) fn drop_key(&mut self, key: &str) -> &mut Self {
        self.keys.retain(|(name, _)| name != key);
        self
    }

    pub(crate) fn drop_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|(other, ..)| other != name);
        self
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut offset = 0;
        let offsets = self.tensors.iter().map(|(.., data)| {
            let start = offset;
            offset = (offset + data.len()).next_multiple_of(self.alignment);
            start as u64
        });
        let offsets: Vec<_> = offsets.collect();
        self.bytes_with_offsets(&offsets)
    }

    /// The same, with these offsets in the tensor list.
    pub(crate) fn bytes_with_offsets(&self, offsets: &[u64]) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        for ((name, shape, kind, _), offset) in self.tensors.iter().zip(offsets) {
            bytes.extend(text(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            for dimension in shape.iter().rev() {
                bytes.extend(dimension.to_le_bytes());
            }
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        for (.., data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(data);
        }
        bytes
    }

    /// The file in a temporary folder, which lasts as long as what is returned.
    pub(crate) fn file(&self) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        (folder, path)
    }
}
