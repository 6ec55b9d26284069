//! The element types of GGUF files: names, block sizes, and quantised blocks to `f32`.
//!
//! The arithmetic is candle's. Candle casts a byte slice to a slice of block structures and asserts its
//! alignment, so bytes are first copied to a place that is aligned; nothing here is `unsafe`.

use std::borrow::Cow;
use std::fmt;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use safetensors::Dtype;

/// Why elements cannot be decoded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgmlError {
    /// A type that cannot be decoded.
    #[error("cannot read elements of type {kind}; expected one of {READABLE_NAMES}")]
    Unreadable {
        /// The type.
        kind: GgmlType,
    },
    /// Bytes that are not whole blocks, or hold another number of elements.
    #[error(
        "{bytes} bytes of {kind} do not hold {elements} elements: a block is {} bytes and {} elements",
        kind.type_size(), kind.block_size()
    )]
    PartialBlock {
        /// The bytes.
        bytes: usize,
        /// Type of the elements.
        kind: GgmlType,
        /// The elements.
        elements: usize,
    },
    /// No aligned place for a block.
    #[error("no aligned place in memory for a block")]
    Unaligned,
    /// Values of another type or number than candle should compute.
    #[error("candle gave no f32 values for {kind}")]
    NotF32 {
        /// Type of the elements.
        kind: GgmlType,
    },
    /// Blocks that candle refuses.
    #[error("{message}")]
    Candle {
        /// The answer of candle.
        message: String,
    },
}

/// The types that can be decoded.
const READABLE_NAMES: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, and Q2_K to Q6_K and Q8_K";

/// Bytes dequantised at a time: bounds the copies that candle makes.
const CHUNK_BYTES: usize = 256 * 1024;

/// The largest alignment of candle's block structures, in bytes.
const BLOCK_ALIGNMENT: usize = 4;

/// An element type of ggml. The values of some are not computed here: [`GgmlType::is_readable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)] // the names are ggml's own
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
}

/// Ggml's number, ggml's name and the type, for all that can be dequantised.
const READABLE: [(u32, &str, GgmlType); 15] = [
    (0, "F32", GgmlType::F32),
    (1, "F16", GgmlType::F16),
    (2, "Q4_0", GgmlType::Q4_0),
    (3, "Q4_1", GgmlType::Q4_1),
    (6, "Q5_0", GgmlType::Q5_0),
    (7, "Q5_1", GgmlType::Q5_1),
    (8, "Q8_0", GgmlType::Q8_0),
    (9, "Q8_1", GgmlType::Q8_1),
    (10, "Q2_K", GgmlType::Q2_K),
    (11, "Q3_K", GgmlType::Q3_K),
    (12, "Q4_K", GgmlType::Q4_K),
    (13, "Q5_K", GgmlType::Q5_K),
    (14, "Q6_K", GgmlType::Q6_K),
    (15, "Q8_K", GgmlType::Q8_K),
    (30, "BF16", GgmlType::BF16),
];

/// Types that are shown but not computed with: ggml's number, ggml's name, the type, and the elements and bytes of a block as gguf-py has
/// them.
const SHOWN: [(u32, &str, GgmlType, usize, usize); 19] = [
    (16, "IQ2_XXS", GgmlType::IQ2_XXS, 256, 66),
    (17, "IQ2_XS", GgmlType::IQ2_XS, 256, 74),
    (18, "IQ3_XXS", GgmlType::IQ3_XXS, 256, 98),
    (19, "IQ1_S", GgmlType::IQ1_S, 256, 50),
    (20, "IQ4_NL", GgmlType::IQ4_NL, 32, 18),
    (21, "IQ3_S", GgmlType::IQ3_S, 256, 110),
    (22, "IQ2_S", GgmlType::IQ2_S, 256, 82),
    (23, "IQ4_XS", GgmlType::IQ4_XS, 256, 136),
    (24, "I8", GgmlType::I8, 1, 1),
    (25, "I16", GgmlType::I16, 1, 2),
    (26, "I32", GgmlType::I32, 1, 4),
    (27, "I64", GgmlType::I64, 1, 8),
    (28, "F64", GgmlType::F64, 1, 8),
    (29, "IQ1_M", GgmlType::IQ1_M, 256, 56),
    (34, "TQ1_0", GgmlType::TQ1_0, 256, 54),
    (35, "TQ2_0", GgmlType::TQ2_0, 256, 66),
    (39, "MXFP4", GgmlType::MXFP4, 32, 17),
    (40, "NVFP4", GgmlType::NVFP4, 64, 36),
    (41, "Q1_0", GgmlType::Q1_0, 128, 18),
];

/// Types that ggml has removed, so that a refusal can name them.
const REMOVED: [(u32, &str); 2] = [(4, "Q4_2"), (5, "Q4_3")];

/// Ggml's name of the type with this number in a GGUF file, whether or not it can be read.
pub fn name_of_code(code: u32) -> Option<&'static str> {
    let removed = || REMOVED.iter().find(|(number, _)| *number == code);
    GgmlType::from_code(code)
        .map(GgmlType::name)
        .or_else(|| removed().map(|(_, name)| *name))
}

/// Every type with its number and name.
fn all() -> impl Iterator<Item = (u32, &'static str, GgmlType)> {
    let shown = SHOWN
        .iter()
        .map(|(number, name, kind, ..)| (*number, *name, *kind));
    READABLE.into_iter().chain(shown)
}

impl GgmlType {
    /// The type with this number in a GGUF file, if the size of its blocks is known.
    pub fn from_code(code: u32) -> Option<Self> {
        all()
            .find(|(number, ..)| *number == code)
            .map(|(.., kind)| kind)
    }

    /// Whether its values can be computed.
    pub fn is_readable(self) -> bool {
        self.candle().is_some()
    }

    /// Its number in a GGUF file.
    pub fn code(self) -> u32 {
        all()
            .find(|(.., kind)| *kind == self)
            .map_or(u32::MAX, |(number, ..)| number)
    }

    /// The safetensors dtype with the same bytes, for the types that are not quantised.
    pub fn plain(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// Ggml's name: `Q4_K`.
    pub fn name(self) -> &'static str {
        all()
            .find(|(.., kind)| *kind == self)
            .map_or("?", |(_, name, _)| name)
    }

    /// Elements in a block.
    pub fn block_size(self) -> usize {
        self.candle()
            .map_or_else(|| self.shown().0, |kind| kind.block_size())
    }

    /// Bytes in a block.
    pub fn type_size(self) -> usize {
        self.candle()
            .map_or_else(|| self.shown().1, |kind| kind.type_size())
    }

    /// Elements and bytes of a block of a type that candle does not know.
    fn shown(self) -> (usize, usize) {
        SHOWN
            .iter()
            .find(|(_, _, kind, ..)| *kind == self)
            .map_or((1, 1), |(.., elements, bytes)| (*elements, *bytes))
    }

    /// Writes the values of whole blocks to `out`.
    ///
    /// # Errors
    /// Where `bytes` is not a whole number of blocks, or `out` has not room for exactly their elements.
    pub fn dequantise(self, bytes: &[u8], out: &mut [f32]) -> Result<(), GgmlError> {
        let Some(candle) = self.candle() else {
            return Err(self.unreadable());
        };
        let (block, size) = (self.block_size(), self.type_size());
        if !bytes.len().is_multiple_of(size) || bytes.len() / size * block != out.len() {
            return Err(GgmlError::PartialBlock {
                bytes: bytes.len(),
                kind: self,
                elements: out.len(),
            });
        }
        let blocks = (CHUNK_BYTES / size).max(1);
        let mut aligned = vec![0; bytes.len().min(blocks * size) + BLOCK_ALIGNMENT];
        let start = aligned.as_ptr().align_offset(BLOCK_ALIGNMENT);
        for (source, target) in bytes
            .chunks(blocks * size)
            .zip(out.chunks_mut(blocks * block))
        {
            let Some(copy) = aligned.get_mut(start..start + source.len()) else {
                return Err(GgmlError::Unaligned);
            };
            copy.copy_from_slice(source);
            let values = candle
                .from_data(Cow::Borrowed(copy))
                .dequantize(target.len());
            match values {
                Ok(CpuStorage::F32(values)) if values.len() == target.len() => {
                    target.copy_from_slice(&values)
                }
                Ok(_) => return Err(GgmlError::NotF32 { kind: self }),
                Err(error) => {
                    let message = error.to_string();
                    return Err(GgmlError::Candle { message });
                }
            }
        }
        Ok(())
    }

    /// Why its values cannot be computed.
    pub fn unreadable(self) -> GgmlError {
        GgmlError::Unreadable { kind: self }
    }

    /// The same type in candle, which computes its values.
    fn candle(self) -> Option<GgmlDType> {
        Some(match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q8_1 => GgmlDType::Q8_1,
            Self::Q2_K => GgmlDType::Q2K,
            Self::Q3_K => GgmlDType::Q3K,
            Self::Q4_K => GgmlDType::Q4K,
            Self::Q5_K => GgmlDType::Q5K,
            Self::Q6_K => GgmlDType::Q6K,
            Self::Q8_K => GgmlDType::Q8K,
            _ => return None,
        })
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [GgmlType; 15] = {
        let mut all = [GgmlType::F32; 15];
        let mut i = 0;
        while i < 15 {
            all[i] = READABLE[i].2;
            i += 1;
        }
        all
    };

    #[test]
    fn every_type_dequantises_zeros_from_any_alignment_across_chunks() {
        for kind in ALL {
            let blocks = CHUNK_BYTES / kind.type_size() + 3;
            for shift in 0..4 {
                let bytes = vec![0; blocks * kind.type_size() + shift];
                let mut out = vec![1.0; blocks * kind.block_size()];
                kind.dequantise(&bytes[shift..], &mut out).unwrap();
                assert!(
                    out.iter().all(|value| *value == 0.0),
                    "{kind} shifted by {shift}"
                );
            }
        }
    }

    #[test]
    fn a_partial_block_is_refused() {
        for kind in ALL.into_iter().filter(|kind| kind.block_size() > 1) {
            let mut out = vec![0.0; kind.block_size()];
            let problem = kind
                .dequantise(&vec![0; kind.type_size() - 1], &mut out)
                .unwrap_err();
            assert!(
                matches!(problem, GgmlError::PartialBlock { kind: found, .. } if found == kind),
                "{problem}"
            );
            assert!(
                kind.dequantise(&vec![0; kind.type_size()], &mut out[1..])
                    .is_err()
            );
        }
        assert!(GgmlType::Q4_0.dequantise(&[], &mut []).is_ok());
    }

    #[test]
    fn a_q4_0_block_is_scale_times_nibble_less_eight() {
        // f16 0.5 is 0x3800; the low nibbles are elements 0 to 15, the high ones 16 to 31.
        let mut block = vec![0x00, 0x38];
        block.extend((0..16).map(|i| i | ((15 - i) << 4)));
        let mut out = [0.0; 32];
        GgmlType::Q4_0.dequantise(&block, &mut out).unwrap();
        for i in 0..16 {
            assert_eq!(out[i], (i as f32 - 8.0) * 0.5);
            assert_eq!(out[16 + i], (7.0 - i as f32) * 0.5);
        }
    }

    #[test]
    fn the_types_of_intermediate_results_are_scale_times_byte() {
        // gguf-py reads neither of these: ggml's block_q8_1 is two f16 and 32 bytes, block_q8_K an f32, 256 bytes
        // and 16 sums, which are not needed.
        let values: Vec<i8> = (0..=255_u8).map(|byte| byte as i8).collect();
        let bytes: Vec<u8> = (0..=255).collect();
        let mut out = [0.0; 256];
        GgmlType::Q8_K
            .dequantise(
                &[&0.25_f32.to_le_bytes()[..], &bytes, &[9; 32]].concat(),
                &mut out,
            )
            .unwrap();
        assert!(
            out.iter()
                .zip(&values)
                .all(|(value, byte)| *value == 0.25 * f32::from(*byte))
        );
        GgmlType::Q8_1
            .dequantise(
                &[&[0x00, 0x38, 9, 9][..], &bytes[112..144]].concat(),
                &mut out[..32],
            )
            .unwrap();
        assert!(
            out.iter()
                .zip(&values[112..144])
                .all(|(value, byte)| *value == 0.5 * f32::from(*byte))
        );
    }

    #[test]
    fn names_and_numbers_agree() {
        assert_eq!(name_of_code(39), Some("MXFP4"));
        assert_eq!(name_of_code(12), Some("Q4_K"));
        assert_eq!(name_of_code(4096), None);
        assert_eq!(GgmlType::from_code(30), Some(GgmlType::BF16));
        assert_eq!(GgmlType::from_code(20), Some(GgmlType::IQ4_NL));
        assert!(!GgmlType::IQ4_NL.is_readable() && GgmlType::Q4_K.is_readable());
        assert_eq!(GgmlType::from_code(4), None, "its blocks are forgotten");
        assert_eq!(
            (GgmlType::Q6_K.block_size(), GgmlType::Q6_K.type_size()),
            (256, 210)
        );
    }
}
