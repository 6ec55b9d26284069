//! Spherical linear interpolation between two tensors, each seen as one vector.

use super::first_pass::{FirstPass, Whole};
use super::node::Node;
use super::places::Scratch;
use crate::Result;

/// Vectors nearer to one direction than this are interpolated along the line between them.
const NEARLY_PARALLEL: f64 = 0.9995;

/// A vector at most this long has no direction.
const NO_LENGTH: f64 = 1e-8;

/// Two tensors and the part of the way from the first to the second.
pub(super) struct Slerp<'a> {
    of: [Box<Node<'a>>; 2],
    t: f64,
    whole: Whole<'a>,
    factors: FirstPass<[f64; 3], [f64; 2]>,
}

impl<'a> Slerp<'a> {
    pub(super) fn new(of: [Node<'a>; 2], t: f64, whole: Whole<'a>) -> Self {
        Self {
            of: of.map(Box::new),
            t,
            whole,
            factors: FirstPass::default(),
        }
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &Node<'a>> {
        self.of.iter().map(|part| &**part)
    }

    /// Values of elements `first..`.
    pub(super) fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let [of_a, of_b] = self.factors(scratch)?;
        let mut other = scratch.free.pop().unwrap_or_default();
        other.resize(out.len(), 0.0);
        self.of[0].values(first, out, scratch)?;
        self.of[1].values(first, &mut other, scratch)?;
        for (a, b) in out.iter_mut().zip(&other) {
            *a = of_a * *a + of_b * b;
        }
        scratch.free.push(other);
        Ok(())
    }

    /// The factors of both tensors, from their lengths and the angle between them.
    fn factors(&self, scratch: &mut Scratch) -> Result<[f64; 2]> {
        let parts = [&*self.of[0], &*self.of[1]];
        self.factors.result(
            self.whole.elements,
            |first, count| {
                let mut sums = [0.0; 3];
                self.whole
                    .read(&parts, (first, count), scratch, |_, values, _| {
                        for (a, b) in values[0].iter().zip(&values[1]) {
                            sums[0] += a * a;
                            sums[1] += b * b;
                            sums[2] += a * b;
                        }
                        Ok(())
                    })?;
                Ok(sums)
            },
            |sums, part| {
                sums.iter_mut()
                    .zip(part)
                    .for_each(|(sum, part)| *sum += part)
            },
            |sums| factors(sums, self.t),
        )
    }
}

/// The factors of `a` and `b`, from `a·a`, `b·b` and `a·b`.
fn factors([of_a, of_b, of_both]: [f64; 3], t: f64) -> [f64; 2] {
    let length = |square: f64| Some(libm::sqrt(square)).filter(|length| *length > NO_LENGTH);
    let cosine = of_both / length(of_a).unwrap_or(1.0) / length(of_b).unwrap_or(1.0);
    if cosine.abs() > NEARLY_PARALLEL {
        return [1.0 - t, t];
    }
    let angle = libm::acos(cosine);
    let sine = libm::sin(angle);
    [
        libm::sin(angle - angle * t) / sine,
        libm::sin(angle * t) / sine,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_angle_is_turned_on_a_circle() {
        let [a, b] = factors([4.0, 9.0, 0.0], 1.0 / 3.0);
        assert!((a - 0.75f64.sqrt()).abs() < 1e-15 && (b - 0.5).abs() < 1e-15);
    }

    #[test]
    fn parallel_and_empty_vectors_are_interpolated_on_the_line_or_at_a_right_angle() {
        assert_eq!(factors([1.0, 4.0, 2.0], 0.25), [0.75, 0.25]);
        let [a, b] = factors([0.0, 1.0, 0.0], 1.0);
        assert!(a.abs() < 1e-15 && b == 1.0);
    }
}
