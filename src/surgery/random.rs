//! Random numbers that depend on (seed, tensor name, element) alone.
//!
//! The key of a tensor is SHA-256("bam-convert rng v1\0" ‖ seed as 8 bytes, little-endian ‖ name). The ChaCha20
//! keystream of that key (64-bit counter from 0, nonce 0) is read as little-endian 64-bit words; element `i`
//! owns words `2i` and `2i + 1`. Any thread can so compute any element, and any program can check it
//! (`docs/reference/random.md`). Transcendental functions come from `libm` in pure Rust: the same bytes everywhere.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// The random numbers of one tensor.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u8; 32],
}

impl Draws {
    /// The draws of the tensor called `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        let hash = Sha256::new()
            .chain_update(b"bam-convert rng v1\0")
            .chain_update(seed.to_le_bytes())
            .chain_update(name);
        Self {
            key: hash.finalize().into(),
        }
    }

    fn words_of(&self, first: u64) -> ChaCha20Rng {
        let mut generator = ChaCha20Rng::from_seed(self.key);
        // Four 32-bit words an element.
        generator.set_word_pos(u128::from(first) * 4);
        generator
    }

    /// Standard normal draws for elements `first..`, by Box and Muller.
    pub fn normal(&self, first: u64, out: &mut [f64]) {
        let mut words = self.words_of(first);
        for value in out {
            *value = normal((words.next_u64(), words.next_u64()));
        }
    }

    /// Calls `each` with the standard normal draw of every element of `first..first + count` that is `wanted`, and its
    /// place from `first`.
    pub fn normal_where(
        &self,
        first: u64,
        count: usize,
        wanted: impl Fn(u64) -> bool,
        mut each: impl FnMut(usize, f64),
    ) {
        let mut words = self.words_of(first);
        for at in 0..count {
            let pair = (words.next_u64(), words.next_u64());
            if wanted(first + at as u64) {
                each(at, normal(pair));
            }
        }
    }

    /// The numbers below `count` in the order of their first words, equal ones in their own order.
    pub fn order(&self, count: u32) -> Vec<u32> {
        let mut words = self.words_of(0);
        let keys: Vec<u64> = (0..count)
            .map(|_| {
                let word = words.next_u64();
                words.next_u64();
                word
            })
            .collect();
        let mut order: Vec<u32> = (0..count).collect();
        order.sort_by_key(|number| keys[*number as usize]);
        order
    }

    /// Draws uniform in [0, 1) for elements `first..`.
    pub fn uniform(&self, first: u64, out: &mut [f64]) {
        let mut words = self.words_of(first);
        for value in out {
            *value = (words.next_u64() >> 11) as f64 * UNIT;
            words.next_u64();
        }
    }

    /// `rows` orthonormal rows of `columns` values, by Gram and Schmidt (twice, for accuracy) from normal
    /// draws; `rows` must not exceed `columns`.
    pub fn orthonormal(&self, rows: usize, columns: usize) -> Vec<f64> {
        let mut matrix = vec![0.0; rows * columns];
        self.normal(0, &mut matrix);
        for row in 0..rows {
            let (earlier, rest) = matrix.split_at_mut(row * columns);
            let current = &mut rest[..columns];
            for _ in 0..2 {
                for other in earlier.chunks_exact(columns) {
                    let along = dot(current, other);
                    current
                        .iter_mut()
                        .zip(other)
                        .for_each(|(value, part)| *value -= along * part);
                }
            }
            let length = libm::sqrt(dot(current, current));
            current.iter_mut().for_each(|value| *value /= length);
        }
        matrix
    }
}

/// A standard normal draw from an element's two words, by Box and Muller.
fn normal(words: (u64, u64)) -> f64 {
    // (0, 1], so that the logarithm is finite; and [0, 1).
    let radius = ((words.0 >> 11) + 1) as f64 * UNIT;
    let angle = (words.1 >> 11) as f64 * UNIT;
    libm::sqrt(-2.0 * libm::log(radius)) * libm::cos(2.0 * std::f64::consts::PI * angle)
}

/// 2⁻⁵³: the spacing of the uniform draws.
const UNIT: f64 = 1.0 / (1u64 << 53) as f64;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (x, y)| sum + x * y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_element_can_be_drawn_alone() {
        let draws = Draws::new(7, "model.layers.0.mlp.router.weight");
        let mut all = [0.0; 100];
        draws.normal(0, &mut all);
        for first in [1, 33, 99] {
            let mut one = [0.0];
            draws.normal(first as u64, &mut one);
            assert_eq!(one[0].to_bits(), all[first].to_bits());
        }
    }

    #[test]
    fn seeds_and_names_matter() {
        let first = |seed, name| {
            let mut value = [0.0];
            Draws::new(seed, name).normal(0, &mut value);
            value[0]
        };
        assert_ne!(first(0, "a"), first(1, "a"));
        assert_ne!(first(0, "a"), first(0, "b"));
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut values = vec![0.0; 200_000];
        let moments = |values: &[f64]| {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            (
                mean,
                (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt(),
            )
        };
        Draws::new(0, "x").normal(0, &mut values);
        let (mean, std) = moments(&values);
        assert!(
            mean.abs() < 0.01 && (std - 1.0).abs() < 0.01,
            "{mean} {std}"
        );
        Draws::new(0, "x").uniform(0, &mut values);
        let (mean, std) = moments(&values);
        assert!(
            (mean - 0.5).abs() < 0.01 && (std - 12f64.sqrt().recip()).abs() < 0.01,
            "{mean} {std}"
        );
    }

    #[test]
    fn rows_are_orthonormal() {
        let matrix = Draws::new(0, "x").orthonormal(8, 64);
        for (i, a) in matrix.chunks(64).enumerate() {
            for (j, b) in matrix.chunks(64).enumerate() {
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((dot(a, b) - expected).abs() < 1e-14);
            }
        }
    }
}
