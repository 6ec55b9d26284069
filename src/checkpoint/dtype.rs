//! Numbers in files: decoding any dtype to `f64`, and rounding an `f64` once to a stored dtype.
//!
//! Casting `f64 → f32 → bf16` rounds twice, which gives another answer than one rounding for about one
//! value in 2²⁹. `half`'s own `from_f64` drops the low 32 bits of the mantissa before it rounds.
//! Here every encoding is a single round-to-nearest-even of the `f64`.

use half::f16;
use multiversion::multiversion;

pub use safetensors::Dtype;

/// The name of a dtype as safetensors headers spell it: `BF16`, `F8_E4M3`, …
pub fn name(dtype: Dtype) -> String {
    dtype.to_string()
}

/// Floating-point dtypes as PyTorch, and so `config.json`, names them.
const TORCH_NAMES: [(&str, Dtype); 6] = [
    ("float32", Dtype::F32),
    ("bfloat16", Dtype::BF16),
    ("float16", Dtype::F16),
    ("float64", Dtype::F64),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
];

/// What PyTorch, and so `config.json`, calls a floating-point dtype.
pub fn torch_name(dtype: Dtype) -> Option<&'static str> {
    TORCH_NAMES
        .iter()
        .find(|(_, known)| *known == dtype)
        .map(|(name, _)| *name)
}

/// The dtype that PyTorch calls by this name, with or without `torch.`.
pub fn from_torch_name(name: &str) -> Option<Dtype> {
    let name = name.strip_prefix("torch.").unwrap_or(name);
    TORCH_NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, dtype)| *dtype)
}

/// A dtype from its safetensors or PyTorch name, or a usual short one, in any case: `bf16`, `F32`, `float16`, `fp32`, …
pub fn parse(text: &str) -> Option<Dtype> {
    let lower = text.to_ascii_lowercase();
    let name = match lower.as_str() {
        "fp32" | "float" => "float32",
        "fp16" | "half" => "float16",
        "fp64" | "double" => "float64",
        other => other,
    };
    from_torch_name(name).or_else(|| {
        serde_json::from_value(serde_json::Value::String(text.to_ascii_uppercase())).ok()
    })
}

/// Whether values of this dtype can be read as `f64` by [`decode`].
pub fn is_numeric(dtype: Dtype) -> bool {
    !matches!(
        dtype,
        Dtype::C64 | Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2
    ) && dtype.bitsize() >= 8
}

/// The floating-point formats that [`encode`] can write, and their names as users type them.
const FLOATS: [(&str, Dtype); 6] = [
    ("bf16", Dtype::BF16),
    ("f16", Dtype::F16),
    ("f32", Dtype::F32),
    ("f64", Dtype::F64),
    ("f8_e4m3", Dtype::F8_E4M3),
    ("f8_e5m2", Dtype::F8_E5M2),
];

/// The names of the floating-point formats that [`encode`] can write.
pub fn float_names() -> [&'static str; 6] {
    FLOATS.map(|(name, _)| name)
}

/// Whether this dtype is a floating-point format that [`encode`] can write.
pub fn is_float(dtype: Dtype) -> bool {
    FLOATS.iter().any(|(_, float)| *float == dtype)
}

/// Whether every value of `stored` is one of `wanted`, too.
pub fn holds(wanted: Dtype, stored: Dtype) -> bool {
    let is_wider = wanted.bitsize() > stored.bitsize();
    wanted == stored || is_float(wanted) && is_float(stored) && is_wider
}

/// Bytes that `elements` values of `dtype` take, or `None` if that overflows or is not whole bytes.
pub fn byte_length(dtype: Dtype, elements: u64) -> Option<u64> {
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// An 8-bit floating-point format.
#[derive(Clone, Copy)]
struct Float8 {
    mantissa_bits: u32,
    bias: i32,
    /// The all-ones exponent holds infinities and NaNs, as in IEEE 754; otherwise it holds numbers.
    ieee: bool,
    /// There is no negative zero and its bit pattern is the only NaN.
    fnuz: bool,
}

const E4M3: Float8 = Float8 {
    mantissa_bits: 3,
    bias: 7,
    ieee: false,
    fnuz: false,
};
const E5M2: Float8 = Float8 {
    mantissa_bits: 2,
    bias: 15,
    ieee: true,
    fnuz: false,
};
const E4M3_FNUZ: Float8 = Float8 {
    mantissa_bits: 3,
    bias: 8,
    ieee: false,
    fnuz: true,
};
const E5M2_FNUZ: Float8 = Float8 {
    mantissa_bits: 2,
    bias: 16,
    ieee: false,
    fnuz: true,
};

impl Float8 {
    fn decode(self, byte: u8) -> f64 {
        let magnitude = i32::from(byte & 0x7f);
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        if self.fnuz && byte == 0x80 {
            return f64::NAN;
        }
        if self.ieee && magnitude >> self.mantissa_bits == (1 << (7 - self.mantissa_bits)) - 1 {
            let fraction = magnitude & ((1 << self.mantissa_bits) - 1);
            return if fraction == 0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            };
        }
        if !self.ieee && !self.fnuz && magnitude == 0x7f {
            return f64::NAN;
        }
        let exponent = magnitude >> self.mantissa_bits;
        let fraction = f64::from(magnitude & ((1 << self.mantissa_bits) - 1));
        let steps = f64::from(1 << self.mantissa_bits);
        let value = if exponent == 0 {
            fraction / steps * exp2(1 - self.bias)
        } else {
            (1.0 + fraction / steps) * exp2(exponent - self.bias)
        };
        sign * value
    }

    /// One round-to-nearest-even; out of range is an infinity where the format has one, else NaN.
    fn encode(self, value: f64) -> u8 {
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        let not_a_number = if self.fnuz { 0x80 } else { 0x7f | sign };
        if value.is_nan() {
            return not_a_number;
        }
        let largest = match (self.ieee, self.fnuz) {
            (true, _) => 0x7b,
            (_, true) => 0x7f,
            _ => 0x7e,
        };
        let overflow = if self.ieee { 0x7c | sign } else { not_a_number };
        let magnitude = value.abs();
        if magnitude.is_infinite() {
            return overflow;
        }
        // The encodings are ordered as the magnitudes are, so the nearest one is a count of steps.
        let smallest_exponent = 1 - self.bias;
        let exponent = if magnitude == 0.0 {
            smallest_exponent
        } else {
            exponent_of(magnitude).max(smallest_exponent)
        };
        let step = exp2(exponent - self.mantissa_bits as i32);
        let steps = (magnitude / step).round_ties_even() as i32;
        let code = ((exponent - smallest_exponent) << self.mantissa_bits) + steps;
        match u8::try_from(code) {
            Ok(code) if code <= largest => {
                if self.fnuz && code == 0 {
                    0
                } else {
                    code | sign
                }
            }
            _ => overflow,
        }
    }
}

fn exp2(exponent: i32) -> f64 {
    libm::ldexp(1.0, exponent)
}

fn exponent_of(magnitude: f64) -> i32 {
    libm::frexp(magnitude).1 - 1
}

/// Rounds to an `f32` whose last bit is odd unless the value is exact. A further rounding to a format
/// of at most 22 mantissa bits then equals a single rounding of the `f64`.
#[inline(always)]
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let bits = nearest.to_bits();
    // No branch, so that many are rounded at once. Neither comparison holds for a NaN or an exact value.
    let (found, wanted) = (f64::from(nearest).abs(), value.abs());
    let step = u32::from(found < wanted).wrapping_sub(u32::from(found > wanted));
    f32::from_bits(bits.wrapping_add(step & (bits & 1).wrapping_sub(1)))
}

/// The bits of the nearest `bf16`, ties to even; a NaN stays one and keeps its sign.
#[inline(always)]
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// Decodes little-endian values of a numeric `dtype` into `out`; `bytes` holds `out.len()` values.
///
/// Integers beyond 2⁵³ lose their low bits. Returns `false`, leaving `out` alone, where the dtype is
/// not [numeric](is_numeric).
#[must_use]
#[multiversion(targets("x86_64+avx2"))]
pub fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f64]) -> bool {
    macro_rules! words {
        ($type:ty, $convert:expr) => {
            for (value, word) in out.iter_mut().zip(bytes.chunks_exact(size_of::<$type>())) {
                let mut array = [0; size_of::<$type>()];
                array.copy_from_slice(word);
                *value = $convert(<$type>::from_le_bytes(array));
            }
        };
    }
    match dtype {
        Dtype::F64 => words!(f64, |x| x),
        Dtype::F32 => words!(f32, f64::from),
        Dtype::BF16 => words!(u16, |x: u16| f64::from(f32::from_bits(u32::from(x) << 16))),
        Dtype::F16 => words!(u16, |x| f16::from_bits(x).to_f64()),
        Dtype::F8_E4M3 => words!(u8, |x| E4M3.decode(x)),
        Dtype::F8_E5M2 => words!(u8, |x| E5M2.decode(x)),
        Dtype::F8_E4M3FNUZ => words!(u8, |x| E4M3_FNUZ.decode(x)),
        Dtype::F8_E5M2FNUZ => words!(u8, |x| E5M2_FNUZ.decode(x)),
        Dtype::F8_E8M0 => words!(u8, |x: u8| if x == 0xff {
            f64::NAN
        } else {
            exp2(i32::from(x) - 127)
        }),
        Dtype::I64 => words!(i64, |x| x as f64),
        Dtype::U64 => words!(u64, |x| x as f64),
        Dtype::I32 => words!(i32, f64::from),
        Dtype::U32 => words!(u32, f64::from),
        Dtype::I16 => words!(i16, f64::from),
        Dtype::U16 => words!(u16, f64::from),
        Dtype::I8 => words!(i8, f64::from),
        Dtype::U8 | Dtype::BOOL => words!(u8, f64::from),
        _ => return false,
    }
    true
}

/// Rounds `values` once to a float `dtype`, little-endian, into `out` of exactly their byte length.
///
/// Returns `false`, leaving `out` alone, where the dtype is not a [float](is_float).
#[must_use]
#[multiversion(targets("x86_64+avx2"))]
pub fn encode(dtype: Dtype, values: &[f64], out: &mut [u8]) -> bool {
    macro_rules! words {
        ($size:expr, $convert:expr) => {
            for (value, word) in values.iter().zip(out.chunks_exact_mut($size)) {
                word.copy_from_slice(&$convert(*value).to_le_bytes());
            }
        };
    }
    match dtype {
        Dtype::F64 => words!(8, |x: f64| x),
        Dtype::F32 => words!(4, |x: f64| x as f32),
        Dtype::BF16 => words!(2, |x| to_bf16(round_to_odd(x))),
        Dtype::F16 => words!(2, |x| f16::from_f32(round_to_odd(x)).to_bits()),
        Dtype::F8_E4M3 => words!(1, |x| E4M3.encode(x)),
        Dtype::F8_E5M2 => words!(1, |x| E5M2.encode(x)),
        _ => return false,
    }
    true
}

/// Index of the first NaN or infinity among the values, for float dtypes; `None` for all others.
#[multiversion(targets("x86_64+avx2"))]
pub fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    // A value is not finite where its exponent is all ones. Each chunk is first reduced without a
    // branch, which the compiler vectorises; the position is looked for only where there is one.
    macro_rules! scan {
        ($type:ty, $exponent:expr) => {{
            let hit = |word: &[u8]| {
                let mut array = [0; size_of::<$type>()];
                array.copy_from_slice(word);
                <$type>::from_le_bytes(array) & $exponent == $exponent
            };
            let words = || bytes.chunks_exact(size_of::<$type>());
            words()
                .fold(false, |any, word| any | hit(word))
                .then(|| words().position(hit))
                .flatten()
        }};
    }
    match dtype {
        Dtype::F64 => scan!(u64, 0x7ff0_0000_0000_0000),
        Dtype::F32 => scan!(u32, 0x7f80_0000),
        Dtype::BF16 => scan!(u16, 0x7f80),
        Dtype::F16 => scan!(u16, 0x7c00),
        Dtype::F8_E4M3 => scan!(u8, 0x7f),
        Dtype::F8_E5M2 => scan!(u8, 0x7c),
        Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => bytes.iter().position(|byte| *byte == 0x80),
        Dtype::F8_E8M0 => bytes.iter().position(|byte| *byte == 0xff),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded<const N: usize>(dtype: Dtype, value: f64) -> [u8; N] {
        let mut out = [0; N];
        assert!(encode(dtype, &[value], &mut out));
        out
    }

    #[test]
    fn every_eight_bit_value_survives_a_round_trip() {
        for dtype in [Dtype::F8_E4M3, Dtype::F8_E5M2] {
            for byte in 0..=255u8 {
                let mut value = [0.0];
                assert!(decode(dtype, &[byte], &mut value));
                let back = encoded::<1>(dtype, value[0])[0];
                let mut again = [0.0];
                assert!(decode(dtype, &[back], &mut again));
                assert!(
                    back == byte || (value[0].is_nan() && again[0].is_nan()),
                    "{dtype} {byte:#x}"
                );
            }
        }
    }

    #[test]
    fn known_eight_bit_values() {
        let decoded = |dtype, byte| {
            let mut value = [0.0];
            assert!(decode(dtype, &[byte], &mut value));
            value[0]
        };
        assert_eq!(decoded(Dtype::F8_E4M3, 0x7e), 448.0);
        assert_eq!(decoded(Dtype::F8_E4M3, 0x01), 2f64.powi(-9));
        assert_eq!(decoded(Dtype::F8_E5M2, 0x7b), 57344.0);
        assert_eq!(decoded(Dtype::F8_E5M2, 0x7c), f64::INFINITY);
        assert_eq!(decoded(Dtype::F8_E4M3FNUZ, 0x7f), 240.0);
        assert_eq!(decoded(Dtype::F8_E8M0, 127), 1.0);
    }

    #[test]
    fn a_value_just_above_a_tie_rounds_up_not_to_even() {
        // 1 + 2⁻⁸ is the tie between two bf16 values; 2⁻⁴⁰ more must decide it.
        let value = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(encoded::<2>(Dtype::BF16, value), 0x3f81u16.to_le_bytes());
        assert_eq!(
            encoded::<2>(Dtype::BF16, 1.0 + 2f64.powi(-8)),
            0x3f80u16.to_le_bytes()
        );
        let half = 1.0 + 2f64.powi(-11) + 2f64.powi(-45);
        assert_eq!(encoded::<2>(Dtype::F16, half), 0x3c01u16.to_le_bytes());
    }

    proptest! {
        #[test]
        fn one_rounding_picks_the_nearest(value in -1e6f64..1e6) {
            for dtype in [Dtype::BF16, Dtype::F16, Dtype::F8_E4M3, Dtype::F8_E5M2] {
                let size = dtype.bitsize() / 8;
                let mut bytes = vec![0; size];
                prop_assert!(encode(dtype, &[value], &mut bytes));
                let mut got = [0.0];
                prop_assert!(decode(dtype, &bytes, &mut got));
                if !got[0].is_finite() { continue; }
                let code = bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
                for neighbour in [code.wrapping_sub(1), code + 1] {
                    let mut other = [0.0];
                    prop_assert!(decode(dtype, &neighbour.to_le_bytes()[..size], &mut other));
                    if other[0].is_finite() {
                        prop_assert!((got[0] - value).abs() <= (other[0] - value).abs());
                    }
                }
            }
        }

        #[test]
        fn a_non_finite_value_is_found_where_it_is(position in 0usize..100, infinite: bool) {
            for dtype in [Dtype::F64, Dtype::F32, Dtype::BF16, Dtype::F16] {
                let mut values = vec![1.5; 100];
                values[position] = if infinite { f64::INFINITY } else { f64::NAN };
                let mut bytes = vec![0; 100 * dtype.bitsize() / 8];
                prop_assert!(encode(dtype, &values, &mut bytes));
                prop_assert_eq!(first_non_finite(dtype, &bytes), Some(position));
            }
        }
    }
}
