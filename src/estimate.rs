//! What a command would write to the disk and take of the machine, estimated before it runs.
//!
//! Seconds are nominal. Matmuls run at the machine's own peak times the share that runs reach. All else runs at the
//! rates below, measured on two cores of x86-64 with AVX2 and SHA-NI, with files in the page cache. A faster machine is
//! faster; the order of magnitude is what counts.

use serde::{Deserialize, Serialize};

/// Bytes a second that are hashed, or computed, hashed and written.
pub const WRITTEN: f64 = 0.7e9;
/// Bytes a second that are read and checked or compared.
pub const READ: f64 = 2e9;
/// Values a second that are drawn at random.
pub const DRAWN: f64 = 30e6;
/// Bytes of text a second that are cut into tokens, duplicates found.
pub const TOKENIZED: f64 = 3e6;
/// Bytes of text in a token.
pub const BYTES_PER_TOKEN: f64 = 4.0;
/// Seconds that a command takes for nothing.
pub const START: f64 = 0.02;

/// What a command would make and take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Bytes that it leaves on the disk.
    pub bytes: u64,
    /// What it has to do; none where nothing tells.
    pub work: Option<Work>,
    /// Peak of its memory in bytes; none where it is small whatever the model, or nothing tells.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Number of processes that take so much memory each, maybe on other machines; none where this program computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<u64>,
}

/// What a command has to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Seconds of all but matmuls.
    pub seconds: f64,
    /// Matmuls.
    pub products: Option<Products>,
}

/// Matmuls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Products {
    /// Floating-point operations.
    pub flops: f64,
    /// How fast they go, as a share of the peak.
    pub share: f64,
    /// The number of the GPU that computes them; none on the CPU.
    pub gpu: Option<usize>,
    /// Whether in half precision.
    pub half: bool,
}

impl Estimate {
    /// Of a command that leaves `bytes`, and takes `seconds` beside its start.
    pub fn of(bytes: u64, seconds: f64) -> Self {
        Self {
            bytes,
            work: Some(Work {
                seconds: START + seconds,
                products: None,
            }),
            memory: None,
            ranks: None,
        }
    }

    /// Floating-point operations in matmuls, if it has any.
    pub fn flops(&self) -> Option<f64> {
        Some(self.work.as_ref()?.products?.flops)
    }
}

impl Work {
    /// Seconds where products go at `peak`, in floating-point operations a second; none where that is not known.
    pub fn seconds(&self, peak: impl FnOnce(&Products) -> Option<f64>) -> Option<f64> {
        let products = match &self.products {
            Some(products) => products.flops / (products.share * peak(products)?),
            None => 0.0,
        };
        Some(self.seconds + products)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_go_at_their_share_of_the_peak() {
        let products = Some(Products {
            flops: 6e12,
            share: 0.5,
            gpu: None,
            half: false,
        });
        let work = Work {
            seconds: 1.0,
            products,
        };
        assert_eq!(work.seconds(|_| Some(1e12)), Some(13.0));
        assert_eq!(work.seconds(|_| None), None);
        assert_eq!(
            Work {
                products: None,
                ..work
            }
            .seconds(|_| None),
            Some(1.0)
        );
    }
}
