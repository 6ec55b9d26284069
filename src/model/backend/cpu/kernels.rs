//! Loops for one core, written so that the compiler vectorises them.
//!
//! Each is compiled for several instruction sets, and the widest one that the processor has is chosen at run time.

/// Defines a function whose body is compiled for AVX-512, AVX2 and the baseline, and dispatched when called.
macro_rules! multiversion {
    ($(#[$about:meta])* fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$about])*
        pub(super) fn $name($($arg: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $kind),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
                fn avx512($($arg: $kind),*) $(-> $result)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $kind),*) $(-> $result)? {
                    body::<true>($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                {
                    // SAFETY: the processor has the features.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has the features.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body::<false>($($arg),*)
        }
    };
}

/// The features that the loops of this folder use where the processor has them, and that this processor has.
pub(super) fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
    ];
    // The compiler may use it everywhere on these processors.
    #[cfg(target_arch = "aarch64")]
    let known = [("neon", true)];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&str, bool); 0] = [];
    let found = known.into_iter().filter(|(_, has)| *has);
    found.map(|(name, _)| name).collect()
}

/// Values handled at a time.
pub(super) const LANES: usize = 32;

/// `a · b + c`, in one rounding where that is one instruction.
#[inline(always)]
pub(super) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// e to the power of `x`, within two units in the last place; 0 below −87.3, and for −∞.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and subtracting this rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.0);
    let whole = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = whole - ROUND;
    // ln 2 in two parts keeps the remainder exact.
    let r = clamped - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * (r * r) + r + 1.0;
    // The low bits of `whole` are n: as an exponent they are 2ⁿ.
    let power = f32::from_bits(whole.to_bits().wrapping_add(127).wrapping_shl(23));
    if x < -87.3 { 0.0 } else { value * power }
}

/// 1 / (1 + e to the power of −`x`), without overflow on either side.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    if x >= 0.0 {
        1.0 / (1.0 + e)
    } else {
        e / (1.0 + e)
    }
}

/// The hyperbolic tangent, within two units in the last place: Cephes' polynomial near zero, else from [`exp`].
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * square + 2.063_908_8e-2;
    p = p * square - 5.373_971_5e-2;
    p = p * square + 1.333_144_2e-1;
    p = p * square - 3.333_328e-1;
    let near = p * square * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// Sum of the products of two slices of the same length.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the features.
        return unsafe { avx2::dot(a, b) };
    }
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Sums of products by hand: left to the compiler, the additions at the end take longer than the rest.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256, _MM_HINT_T0, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128,
        _mm_movehl_ps, _mm_prefetch, _mm_shuffle_ps, _mm256_add_ps, _mm256_castps256_ps128,
        _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_extractf128_ps, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_setzero_ps, _mm256_slli_epi32,
    };

    /// Bytes that weights are asked for ahead of their use: memory, not arithmetic, is what decoding waits for.
    const AHEAD: usize = 512;

    #[target_feature(enable = "avx2,fma")]
    fn sum(values: __m256) -> f32 {
        let four = _mm_add_ps(
            _mm256_castps256_ps128(values),
            _mm256_extractf128_ps::<1>(values),
        );
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    /// The eight values from `first` on.
    #[target_feature(enable = "avx2,fma")]
    fn eight(values: &[f32], first: usize) -> __m256 {
        let values = &values[first..first + 8];
        // SAFETY: the slice has eight values.
        unsafe { _mm256_loadu_ps(values.as_ptr()) }
    }

    /// Eight bfloat16 from byte `first` on, widened.
    #[target_feature(enable = "avx2,fma")]
    fn eight_widened(bytes: &[u8], first: usize) -> __m256 {
        let bytes = &bytes[first..first + 16];
        // SAFETY: the slice has sixteen bytes; the load needs no alignment.
        let narrow = unsafe { _mm_loadu_si128(bytes.as_ptr().cast::<__m128i>()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow)))
    }

    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        let length = a.len().min(b.len());
        let whole = length - length % 16;
        let mut sums = [_mm256_setzero_ps(); 2];
        for first in (0..whole).step_by(16) {
            for (half, sum) in sums.iter_mut().enumerate() {
                *sum =
                    _mm256_fmadd_ps(eight(a, first + 8 * half), eight(b, first + 8 * half), *sum);
            }
        }
        let rest: f32 = a[whole..length]
            .iter()
            .zip(&b[whole..length])
            .map(|(a, b)| a * b)
            .sum();
        sum(_mm256_add_ps(sums[0], sums[1])) + rest
    }

    /// Rows of bfloat16, `width` bytes each, times each of the `N` rows of `x`, with `8 · U` columns at a time:
    /// `out` `[rows, N]`.
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) fn rows<const N: usize, const U: usize>(
        bytes: &[u8],
        width: usize,
        x: &[f32],
        out: &mut [f32],
    ) {
        let columns = width / 2;
        let whole = columns - columns % (8 * U);
        for (row, out) in bytes.chunks_exact(width).zip(out.chunks_exact_mut(N)) {
            let mut sums = [[_mm256_setzero_ps(); U]; N];
            for first in (0..whole).step_by(8 * U) {
                _mm_prefetch::<_MM_HINT_T0>(
                    row.as_ptr().wrapping_add(2 * first + AHEAD).cast::<i8>(),
                );
                for part in 0..U {
                    let weights = eight_widened(row, 2 * (first + 8 * part));
                    for (n, sums) in sums.iter_mut().enumerate() {
                        let x = eight(x, n * columns + first + 8 * part);
                        sums[part] = _mm256_fmadd_ps(weights, x, sums[part]);
                    }
                }
            }
            for (n, (out, sums)) in out.iter_mut().zip(&sums).enumerate() {
                let together = sums
                    .iter()
                    .copied()
                    .fold(_mm256_setzero_ps(), |a, b| _mm256_add_ps(a, b));
                let rest = row[2 * whole..]
                    .chunks_exact(2)
                    .zip(&x[n * columns + whole..]);
                *out = sum(together)
                    + rest
                        .map(|(pair, x)| crate::model::stored::widened([pair[0], pair[1]]) * x)
                        .sum::<f32>();
            }
        }
    }
}

multiversion! {
    /// Adds `factor` times `x` to `out`.
    fn add_scaled(out: &mut [f32], x: &[f32], factor: f32) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = multiply_add::<FMA>(*x, factor, *out);
        }
    }
}

multiversion! {
    /// Turns scores into e to the power of `scale` times what they are below the largest, and returns the sum.
    fn exponentials(scores: &mut [f32], scale: f32) -> f32 {
        let mut most = [f32::NEG_INFINITY; LANES];
        for chunk in scores.chunks(LANES) {
            for (most, score) in most.iter_mut().zip(chunk) {
                *most = if *score > *most { *score } else { *most };
            }
        }
        let most = most.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let mut sums = [0f32; LANES];
        for chunk in scores.chunks_mut(LANES) {
            for (sum, score) in sums.iter_mut().zip(chunk) {
                *score = exp((*score - most) * scale);
                *sum += *score;
            }
        }
        // Constant, so that the code above is the same for all instruction sets.
        let _ = FMA;
        sums.iter().sum()
    }
}

multiversion! {
    /// Divides `x` by its root mean square (its deviation, where `centred`: minus its mean) and multiplies by `weight`.
    fn normalise(x: &[f32], weight: &[f32], eps: f64, centred: bool, out: &mut [f32]) {
        let mean = if centred { (x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64) as f32 } else { 0.0 };
        let mut squares = [0f32; LANES];
        for chunk in x.chunks(LANES) {
            for (square, x) in squares.iter_mut().zip(chunk) {
                *square = multiply_add::<FMA>(*x - mean, *x - mean, *square);
            }
        }
        let square = squares.iter().map(|square| f64::from(*square)).sum::<f64>() / x.len() as f64;
        let scale = (1.0 / (square + eps).sqrt()) as f32;
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = (*x - mean) * scale * weight;
        }
    }
}

multiversion! {
    /// `gate` becomes `silu(gate) · up`.
    fn silu_multiply(gate: &mut [f32], up: &[f32]) {
        let _ = FMA;
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate *= sigmoid(*gate) * up;
        }
    }
}

multiversion! {
    /// The gradient of [`normalise`]: `out` becomes the gradient of `x`, and `grad_weight` grows by the weight's.
    fn normalise_backward(
        x: &[f32],
        weight: &[f32],
        eps: f64,
        centred: bool,
        gradient: &[f32],
        out: &mut [f32],
        grad_weight: &mut [f32],
    ) {
        let length = x.len() as f64;
        let mean = if centred { (x.iter().map(|x| f64::from(*x)).sum::<f64>() / length) as f32 } else { 0.0 };
        let (mut squares, mut slopes, mut alongs) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        for ((x, weight), gradient) in x.chunks(LANES).zip(weight.chunks(LANES)).zip(gradient.chunks(LANES)) {
            for (lane, ((x, weight), gradient)) in x.iter().zip(weight).zip(gradient).enumerate() {
                let (x, slope) = (*x - mean, weight * gradient);
                squares[lane] = multiply_add::<FMA>(x, x, squares[lane]);
                slopes[lane] += slope;
                alongs[lane] = multiply_add::<FMA>(x, slope, alongs[lane]);
            }
        }
        let sum = |lanes: [f32; LANES]| lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>() / length;
        let scale = 1.0 / (sum(squares) + eps).sqrt();
        let along = (sum(alongs) * scale * scale) as f32;
        let (slope, scale) = (if centred { sum(slopes) as f32 } else { 0.0 }, scale as f32);
        for ((((out, grad_weight), x), weight), gradient) in out.iter_mut().zip(grad_weight).zip(x).zip(weight).zip(gradient) {
            let x = *x - mean;
            *grad_weight = multiply_add::<FMA>(x * scale, *gradient, *grad_weight);
            *out = (weight * gradient - slope - x * along) * scale;
        }
    }
}

multiversion! {
    /// The gradient of [`silu_multiply`]: `gate` and `up` become their gradients, and `activated` the product itself.
    fn silu_multiply_backward(gate: &mut [f32], up: &mut [f32], gradient: &[f32], activated: &mut [f32]) {
        let _ = FMA;
        for (((gate, up), gradient), activated) in gate.iter_mut().zip(up).zip(gradient).zip(activated) {
            let sigmoid = sigmoid(*gate);
            let silu = *gate * sigmoid;
            *activated = silu * *up;
            *gate = gradient * *up * (sigmoid + silu * (1.0 - sigmoid));
            *up = gradient * silu;
        }
    }
}

multiversion! {
    /// The gradient of a softmax: `gradient` of its output `weights` becomes the gradient of the scores.
    fn softmax_backward(weights: &[f32], gradient: &mut [f32]) {
        let mut sums = [0f32; LANES];
        for (weights, gradient) in weights.chunks(LANES).zip(gradient.chunks(LANES)) {
            for (sum, (weight, gradient)) in sums.iter_mut().zip(weights.iter().zip(gradient)) {
                *sum = multiply_add::<FMA>(*weight, *gradient, *sum);
            }
        }
        let sum: f32 = sums.iter().sum();
        for (weight, gradient) in weights.iter().zip(gradient) {
            *gradient = weight * (*gradient - sum);
        }
    }
}

multiversion! {
    /// `values` times `factor` become values between `-cap` and `cap`: `cap · tanh(factor · value / cap)`.
    fn soft_cap(values: &mut [f32], factor: f32, cap: f32) {
        let _ = FMA;
        let factor = factor / cap;
        values.iter_mut().for_each(|value| *value = cap * tanh(*value * factor));
    }
}

multiversion! {
    /// The derivatives of values after [`soft_cap`] by their values times the factor.
    fn soft_cap_slopes(capped: &[f32], cap: f32, out: &mut [f32]) {
        let _ = FMA;
        for (out, capped) in out.iter_mut().zip(capped) {
            let tanh = capped / cap;
            *out = 1.0 - tanh * tanh;
        }
    }
}

multiversion! {
    /// Multiplies each value by a factor of its own.
    fn multiply(values: &mut [f32], factors: &[f32]) {
        let _ = FMA;
        values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
    }
}

multiversion! {
    /// Multiplies by a factor.
    fn scale(values: &mut [f32], factor: f32) {
        let _ = FMA;
        values.iter_mut().for_each(|value| *value *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place() {
        for i in -8_730..=8_800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!(
                (f64::from(exp(x)) / exact - 1.0).abs() < 2.4e-7,
                "{x}: {} {exact}",
                exp(x)
            );
        }
        assert_eq!(
            (exp(0.0), exp(f32::NEG_INFINITY), exp(-100.0)),
            (1.0, 0.0, 0.0)
        );
    }

    #[test]
    fn soft_caps_are_hyperbolic_tangents() {
        for i in -4_000..=4_000 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).tanh();
            let found = f64::from(tanh(x));
            assert!(
                (found - exact).abs() <= 2.4e-7 * exact.abs(),
                "{x}: {found}"
            );
        }
        let mut values = [1.5, -300.0, 0.0, f32::MAX];
        soft_cap(&mut values, 2.0, 5.0);
        assert!((values[0] - 5.0 * 0.6f32.tanh()).abs() < 1e-6);
        assert_eq!(values[1..], [-5.0, 0.0, 5.0]);
        let mut slopes = [0.0; 4];
        soft_cap_slopes(&values, 5.0, &mut slopes);
        assert!((slopes[0] - (1.0 - 0.6f32.tanh().powi(2))).abs() < 1e-6);
        assert_eq!(slopes[1..], [0.0, 1.0, 0.0]);
    }

    #[test]
    fn loops_of_any_length_are_plain_arithmetic() {
        for length in [0, 1, 31, 32, 33, 100] {
            let a: Vec<f32> = (0..length).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
            let b: Vec<f32> = (0..length).map(|i| (i as f32 * 1.3).cos()).collect();
            let plain: f64 = a
                .iter()
                .zip(&b)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            assert!((f64::from(dot(&a, &b)) - plain).abs() < 1e-5);
            let mut gated = a.clone();
            silu_multiply(&mut gated, &b);
            for ((gated, a), b) in gated.iter().zip(&a).zip(&b) {
                assert!((gated - a / (1.0 + (-a).exp()) * b).abs() < 1e-6);
            }
            let mut scores = a.clone();
            let sum = exponentials(&mut scores, 0.5);
            let most = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let plain: f32 = a.iter().map(|a| ((a - most) * 0.5).exp()).sum();
            assert!((sum - plain).abs() < 1e-4);
        }
    }
}
