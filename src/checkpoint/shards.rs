//! Shards: which tensors are in which weight file, in which order, and the index that says so.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::dtype;
use super::names::SINGLE;

/// Name, dtype and shape of a tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// Name in the output.
    pub name: String,
    /// Stored dtype.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
}

impl TensorLayout {
    /// Length in bytes; layouts of whole bytes only are made.
    pub fn length(&self) -> u64 {
        dtype::byte_length(self.dtype, self.shape.iter().product()).unwrap_or(0)
    }
}

/// One file to write: which tensors, in which order.
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) tensors: Vec<usize>,
}

/// Splits tensors, in their order, into shards of at most `max_shard_size` bytes.
pub(super) fn split(tensors: &[TensorLayout], max_shard_size: u64) -> Vec<Shard> {
    let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
    let mut size = 0;
    for (number, tensor) in tensors.iter().enumerate() {
        if size > 0 && size + tensor.length() > max_shard_size {
            groups.push(Vec::new());
            size = 0;
        }
        size += tensor.length();
        if let Some(group) = groups.last_mut() {
            group.push(number);
        }
    }
    let count = groups.len();
    let named = groups.into_iter().enumerate().map(|(number, mut group)| {
        // Wider dtypes first, as the safetensors library does it: every tensor is then aligned.
        group.sort_by_key(|tensor| std::cmp::Reverse(tensors[*tensor].dtype.bitsize()));
        let name = match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        Shard {
            name,
            tensors: group,
        }
    });
    named.collect()
}

/// Number of weight files that `tensors` would take.
pub fn shard_count(tensors: &[TensorLayout], max_shard_size: u64) -> usize {
    split(tensors, max_shard_size).len()
}

/// The text of the index of these shards.
pub(super) fn index(shards: &[Shard], tensors: &[TensorLayout]) -> Vec<u8> {
    let total: u64 = tensors.iter().map(TensorLayout::length).sum();
    let map: BTreeMap<&str, &str> = shards
        .iter()
        .flat_map(|shard| {
            shard
                .tensors
                .iter()
                .map(|tensor| (tensors[*tensor].name.as_str(), shard.name.as_str()))
        })
        .collect();
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    // A JSON value of strings and numbers always serialises.
    let mut text = serde_json::to_string_pretty(&index).unwrap_or_default();
    text.push('\n');
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: Dtype, length: u64) -> TensorLayout {
        TensorLayout {
            name: name.to_owned(),
            dtype,
            shape: vec![length],
        }
    }

    #[test]
    fn shards_fill_in_order_and_a_large_tensor_stands_alone() {
        let tensors = [4, 4, 100, 4, 4].map(|n| tensor("t", Dtype::U8, n));
        let shards = split(&tensors, 10);
        let groups: Vec<_> = shards.iter().map(|shard| shard.tensors.clone()).collect();
        assert_eq!(groups, [vec![0, 1], vec![2], vec![3, 4]]);
        assert_eq!(shards[1].name, "model-00002-of-00003.safetensors");
    }

    #[test]
    fn wide_dtypes_come_first_so_that_all_are_aligned() {
        let tensors = [
            tensor("a", Dtype::U8, 3),
            tensor("b", Dtype::F32, 1),
            tensor("c", Dtype::BF16, 1),
        ];
        assert_eq!(split(&tensors, 1 << 20)[0].tensors, [1, 2, 0]);
    }
}
