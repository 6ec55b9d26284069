//! Permutations that are computed, not stored.

use sha2::{Digest, Sha256};

const ROUNDS: usize = 8;

/// A permutation of `0..count`, fixed by a seed, a name and a number.
///
/// A Feistel network of eight rounds over the next even number of bits, walked until it comes back below `count`: any
/// element is found alone, in constant time and memory. `docs/reference/token-folder.md` has it in full.
#[derive(Clone, Debug)]
pub(super) struct Permutation {
    count: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `count` elements (one or more, below 2⁶²) called `name`, number `number`, under `seed`.
    pub fn new(count: u64, seed: u64, name: &str, number: u64) -> Self {
        let hash = |half: u8| {
            Sha256::new()
                .chain_update(b"bam-convert order v1\0")
                .chain_update(seed.to_le_bytes())
                .chain_update(number.to_le_bytes())
                .chain_update([half])
                .chain_update(name)
                .finalize()
        };
        let bytes: Vec<u8> = [hash(0), hash(1)].concat();
        let mut keys = [0; ROUNDS];
        for (key, word) in keys.iter_mut().zip(bytes.chunks_exact(8)) {
            // Chunks of eight bytes always make an array of eight.
            *key = u64::from_le_bytes(word.try_into().unwrap_or_default());
        }
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self {
            count,
            half_bits: bits.div_ceil(2).max(1),
            keys,
        }
    }

    /// Where element `index`, below the count, goes.
    pub fn at(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            value = self.pass(value);
            if value < self.count {
                return value;
            }
        }
    }

    fn pass(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of `x`.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
