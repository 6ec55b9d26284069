use super::*;
use crate::Error;
use crate::checkpoint::expression::Drawn;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::{Dtype, header};
use crate::surgery::random::Draws;

/// A file with `a` [6, 4] and `b` [2, 4] in bf16, `c` [6, 4] in f32 and `bytes` [4, 2] in u8; values count up from 1.
fn source(work: &tempfile::TempDir) -> Source {
    let path = work.path().join("model.safetensors");
    let tensors: [(&str, Dtype, &[u64]); 4] = [
        ("a", Dtype::BF16, &[6, 4]),
        ("b", Dtype::BF16, &[2, 4]),
        ("c", Dtype::F32, &[6, 4]),
        ("bytes", Dtype::U8, &[4, 2]),
    ];
    let mut data = header::write(tensors.iter().copied());
    for (_, dtype, shape) in tensors {
        let values: Vec<f64> = (1..=shape.iter().product())
            .map(|value: u64| value as f64)
            .collect();
        let mut bytes = vec![0; values.len() * dtype.bitsize() / 8];
        if !dtype::encode(dtype, &values, &mut bytes) {
            bytes = values.iter().map(|value| *value as u8).collect();
        }
        data.extend(bytes);
    }
    std::fs::write(&path, data).unwrap();
    Source {
        name: "s".to_owned(),
        checkpoint: Checkpoint::open(&path).unwrap(),
        side_files: Vec::new(),
        kept: false,
    }
}

fn copy(tensor: &str) -> Expression {
    Expression::copy("s", tensor)
}

fn slice(of: Expression, axis: u64, start: u64, length: u64) -> Expression {
    Expression::Slice {
        of: Box::new(of),
        axis,
        start,
        length,
        blocks: 1,
    }
}

fn drawn(axis: u64, start: u64, length: u64) -> Drawn {
    Drawn {
        axis,
        seed: 3,
        key: "order".to_owned(),
        start,
        length,
    }
}

/// The values, after every range of them was found equal to the whole.
fn values(expression: Expression, dtype: Dtype, shape: &[u64]) -> Result<Vec<f64>> {
    let work = tempfile::tempdir().unwrap();
    let sources = [source(&work)];
    let tensors = [PlannedTensor::new("out", dtype, shape.to_vec(), expression)];
    let evaluator = Evaluator::new(&tensors, &sources)?;
    let (size, count) = (dtype.bitsize() / 8, shape.iter().product::<u64>() as usize);
    let mut scratch = Scratch::default();
    let mut all = vec![0; count * size];
    evaluator.bytes(0, 0, &mut all, &mut scratch)?;
    for first in 0..count {
        for end in first + 1..=count {
            let mut some = vec![0; (end - first) * size];
            evaluator.fill(0, (first * size) as u64, &mut some, &mut scratch)?;
            assert_eq!(
                some,
                all[first * size..end * size],
                "elements {first}..{end}"
            );
        }
    }
    let mut values = vec![0.0; count];
    if !dtype::decode(dtype, &all, &mut values) {
        values = all.iter().map(|byte| f64::from(*byte)).collect();
    }
    Ok(values)
}

fn made(expression: Expression, shape: &[u64]) -> Vec<f64> {
    values(expression, Dtype::BF16, shape).unwrap()
}

#[test]
fn parts_along_either_axis() {
    assert_eq!(
        made(slice(copy("a"), 0, 1, 2), &[2, 4]),
        (5..=12).map(f64::from).collect::<Vec<_>>()
    );
    assert_eq!(
        made(slice(copy("a"), 1, 1, 2), &[6, 2])[..4],
        [2.0, 3.0, 6.0, 7.0]
    );
    let rows = Expression::Concat {
        of: vec![copy("b"), slice(copy("a"), 0, 5, 1)],
        axis: 0,
        blocks: 1,
    };
    assert_eq!(made(rows, &[3, 4])[6..], [7.0, 8.0, 21.0, 22.0, 23.0, 24.0]);
    let columns = Expression::Concat {
        of: vec![copy("b"), slice(copy("a"), 0, 0, 2)],
        axis: 1,
        blocks: 1,
    };
    assert_eq!(
        made(columns, &[2, 8])[..8],
        [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]
    );
    let stack = Expression::Stack {
        of: vec![copy("b"), Expression::Constant { value: 9.0 }],
    };
    assert_eq!(made(stack, &[2, 2, 4])[7..9], [8.0, 9.0]);
    let repeat = Expression::Repeat {
        of: Box::new(slice(copy("b"), 1, 0, 1)),
        each: 2,
        times: 2,
    };
    assert_eq!(
        made(repeat, &[8, 1]),
        [1.0, 1.0, 5.0, 5.0, 1.0, 1.0, 5.0, 5.0]
    );
    let again = Expression::Repeat {
        of: Box::new(copy("b")),
        each: 1,
        times: 2,
    };
    assert_eq!(made(again, &[4, 4])[7..9], [8.0, 1.0]);
    assert_eq!(
        made(
            Expression::Scale {
                of: Box::new(copy("b")),
                by: 0.5
            },
            &[2, 4]
        )[..2],
        [0.5, 1.0]
    );
    // Rows of interleaved tensors, apart and together.
    let blocks = |start, length| Expression::Slice {
        of: Box::new(copy("a")),
        axis: 0,
        start,
        length,
        blocks: 2,
    };
    let two = made(blocks(1, 2), &[4, 4]);
    assert_eq!((two[0], two[7], two[8], two[15]), (5.0, 12.0, 17.0, 24.0));
    let whole = Expression::Concat {
        of: vec![blocks(0, 1), blocks(1, 2)],
        axis: 0,
        blocks: 2,
    };
    assert_eq!(made(whole, &[6, 4]), made(copy("a"), &[6, 4]));
    // What is moved need not be a number; what is cast along the way is computed.
    let bytes = values(slice(copy("bytes"), 1, 1, 1), Dtype::U8, &[4, 1]).unwrap();
    assert_eq!(bytes, [2.0, 4.0, 6.0, 8.0]);
    let mixed = Expression::Concat {
        of: vec![
            copy("a"),
            Expression::Cast {
                of: Box::new(copy("c")),
            },
        ],
        axis: 0,
        blocks: 1,
    };
    assert_eq!(made(mixed, &[12, 4])[23..25], [24.0, 1.0]);
}

#[test]
fn entries_in_the_order_of_their_draws() {
    for (axis, extent, shape, stride) in [(0, 6, [2, 4], 4), (1, 4, [6, 2], 1)] {
        let mut keys = vec![0.0; extent];
        Draws::new(3, "order").uniform(0, &mut keys);
        let mut order: Vec<usize> = (0..extent).collect();
        order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
        let gathered = made(
            Expression::Gather {
                of: Box::new(copy("a")),
                at: drawn(axis, 1, 2),
            },
            &shape,
        );
        let expected: Vec<usize> = order[1..3].to_vec();
        let first: Vec<f64> = match axis {
            0 => vec![gathered[0], gathered[4]],
            _ => gathered[..2].to_vec(),
        };
        assert_eq!(
            first,
            expected
                .iter()
                .map(|entry| (entry * stride + 1) as f64)
                .collect::<Vec<_>>()
        );
        // Redrawn and noisy where drawn, and nowhere else.
        let at = drawn(axis, 1, 2);
        let is_drawn = |element: usize| expected.contains(&(element / stride % extent));
        let original: Vec<f64> = (1..=24).map(f64::from).collect();
        let mut normals = vec![0.0; 24];
        Draws::new(5, "key").normal(0, &mut normals);
        let replaced: Vec<f64> = (0..24)
            .filter(|element| is_drawn(*element))
            .map(|e| original[e])
            .collect();
        let n = replaced.len() as f64;
        let mean = replaced.iter().sum::<f64>() / n;
        let std = (replaced
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / n)
            .sqrt();
        let (key, seed, of) = ("key".to_owned(), 5, || Box::new(copy("c")));
        let own = Expression::Redraw {
            of: of(),
            at: at.clone(),
            std: None,
            seed,
            key: key.clone(),
        };
        let fixed = Expression::Redraw {
            of: of(),
            at: at.clone(),
            std: Some(2.0),
            seed,
            key: key.clone(),
        };
        let noise = Expression::AddNoise {
            of: of(),
            at: Some(at),
            std: 2.0,
            seed,
            key: key.clone(),
        };
        let everywhere = Expression::AddNoise {
            of: of(),
            at: None,
            std: 2.0,
            seed,
            key,
        };
        let f32s = |expression| values(expression, Dtype::F32, &[6, 4]).unwrap();
        let (own, fixed, noise, everywhere) =
            (f32s(own), f32s(fixed), f32s(noise), f32s(everywhere));
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}")
        };
        for element in 0..24 {
            let (z, was) = (normals[element], original[element]);
            close(everywhere[element], was + 2.0 * z);
            let expected = if is_drawn(element) {
                [mean + std * z, 2.0 * z, was + 2.0 * z]
            } else {
                [was; 3]
            };
            for (found, expected) in [own[element], fixed[element], noise[element]]
                .into_iter()
                .zip(expected)
            {
                close(found, expected);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let gather = |at| Expression::Gather {
        of: Box::new(copy("a")),
        at,
    };
    let repeat = |each, times| Expression::Repeat {
        of: Box::new(copy("b")),
        each,
        times,
    };
    let redraw = |at| Expression::Redraw {
        of: Box::new(copy("a")),
        at,
        std: None,
        seed: 0,
        key: String::new(),
    };
    let draws = Expression::Constant { value: 1.0 };
    let concat = |of, axis, blocks| Expression::Concat { of, axis, blocks };
    macro_rules! is {
        ($pattern:pat) => {
            |rule: &ExpressionRule| matches!(rule, $pattern)
        };
    }
    type Case = (Expression, &'static [u64], fn(&ExpressionRule) -> bool);
    let cases: [Case; 21] = [
        (
            slice(copy("a"), 0, 5, 2),
            &[2, 4],
            is!(ExpressionRule::Range {
                extent: 6,
                start: 5,
                length: 2
            }),
        ),
        (
            slice(copy("a"), 0, u64::MAX, 2),
            &[2, 4],
            is!(ExpressionRule::Range { extent: 6, .. }),
        ),
        (
            slice(copy("a"), 2, 0, 1),
            &[2, 4],
            is!(ExpressionRule::NoAxis { axis: 2, .. }),
        ),
        (
            slice(copy("a"), u64::MAX, 0, 1),
            &[2, 4],
            is!(ExpressionRule::NoAxis { axis: u64::MAX, .. }),
        ),
        (slice(copy("a"), 0, 0, 2), &[3, 4], |rule| {
            matches!(rule, ExpressionRule::Shape { found, expected, .. }
                if found[..] == [2, 4] && expected[..] == [3, 4])
        }),
        (
            slice(copy("a"), 0, 0, 0),
            &[0, 4],
            is!(ExpressionRule::Range {
                start: 0,
                length: 0,
                ..
            }),
        ),
        (
            slice(draws.clone(), 0, 0, 2),
            &[2, 4],
            is!(ExpressionRule::NoShape { .. }),
        ),
        (
            Expression::Slice {
                of: Box::new(copy("a")),
                axis: 0,
                start: 0,
                length: 1,
                blocks: 4,
            },
            &[4, 4],
            is!(ExpressionRule::UnevenBlocks {
                extent: 6,
                blocks: 4
            }),
        ),
        (
            concat(vec![copy("a")], 0, 0),
            &[6, 4],
            is!(ExpressionRule::UnevenBlocks { blocks: 0, .. }),
        ),
        (
            concat(vec![], 0, 1),
            &[2, 4],
            is!(ExpressionRule::EmptyConcatenation),
        ),
        (
            concat(vec![copy("a"), copy("b")], 1, 1),
            &[8, 4],
            is!(ExpressionRule::NotJoined { axis: 1, .. }),
        ),
        (
            Expression::Stack { of: vec![] },
            &[0, 4],
            is!(ExpressionRule::StackedShape { parts: 0, .. }),
        ),
        (
            gather(drawn(0, 5, 2)),
            &[2, 4],
            is!(ExpressionRule::Range { extent: 6, .. }),
        ),
        (
            redraw(drawn(0, 0, 0)),
            &[6, 4],
            is!(ExpressionRule::Range {
                start: 0,
                length: 0,
                ..
            }),
        ),
        (
            redraw(drawn(7, 0, 1)),
            &[6, 4],
            is!(ExpressionRule::NoAxis { axis: 7, .. }),
        ),
        (
            repeat(0, 1),
            &[2, 4],
            is!(ExpressionRule::RepeatedShape { .. }),
        ),
        (
            repeat(u64::MAX, 2),
            &[2, 4],
            is!(ExpressionRule::RepeatedShape { .. }),
        ),
        (
            repeat(3, 1),
            &[4, 4],
            is!(ExpressionRule::RepeatedShape { .. }),
        ),
        (
            Expression::Scale {
                of: Box::new(copy("a")),
                by: f64::NAN,
            },
            &[6, 4],
            is!(ExpressionRule::Factor { .. }),
        ),
        (
            slice(copy("c"), 0, 0, 2),
            &[2, 4],
            is!(ExpressionRule::KeepsDtype { dtype: Dtype::BF16 }),
        ),
        (
            Expression::Mean { of: vec![] },
            &[2, 4],
            is!(ExpressionRule::EmptyMean),
        ),
    ];
    for (expression, shape, is_expected) in cases {
        let shown = format!("{expression} {shape:?}");
        let error = values(expression, Dtype::BF16, shape).unwrap_err();
        assert!(
            matches!(&error, Error::Plan(PlanError::Expression { rule, .. }) if is_expected(rule)),
            "{shown}: {error}"
        );
    }

    let stack = Expression::Stack {
        of: vec![copy("a")],
    };
    let error = values(stack, Dtype::BF16, &[1, 6, 5]).unwrap_err();
    assert!(
        matches!(&error, Error::Plan(PlanError::SourceShape { found, .. }) if found[..] == [6, 4]),
        "{error}"
    );
}
