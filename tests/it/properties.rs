//! Properties of the library: headers of any bytes, headers of every dtype, plans of any shape.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::{Noise, Tensor, Tensors, read_folder, round, write_file};
use bam_convert::checkpoint::expression::Expression;
use bam_convert::checkpoint::folder::Checkpoint;
use bam_convert::checkpoint::{Encoding, SourceFile, header};
use bam_convert::surgery::execute::{Target, execute};
use bam_convert::surgery::{Plan, PlannedTensor, Source};
use proptest::prelude::*;
use proptest::sample::select;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

const EVERY: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

// ---------------------------------------------------------------- headers

/// Reads the header of a file of these bytes.
fn read(folder: &Path, bytes: &[u8]) -> bam_convert::Result<header::Header> {
    let path = folder.join("any.safetensors");
    std::fs::write(&path, bytes).unwrap();
    header::read(&SourceFile::open(&path).unwrap(), 0)
}

/// Asserts what holds of every header that is accepted: the crate accepts it too, and sees the same.
fn accepted_by_all(found: &header::Header, bytes: &[u8]) {
    let theirs =
        SafeTensors::deserialize(bytes).expect("accepted here, refused by the safetensors crate");
    assert_eq!(theirs.len(), found.tensors.len());
    for (name, entry) in &found.tensors {
        let view = theirs.tensor(name).unwrap();
        assert_eq!(entry.encoding, Encoding::Plain(view.dtype()));
        assert_eq!(
            entry.shape,
            view.shape()
                .iter()
                .map(|extent| *extent as u64)
                .collect::<Vec<_>>()
        );
        let (begin, end) = (
            entry.offset as usize,
            (entry.offset + entry.length) as usize,
        );
        assert_eq!(&bytes[begin..end], view.data());
    }
}

fn layout() -> impl Strategy<Value = Vec<(String, Dtype, Vec<u64>)>> {
    let name = prop_oneof![
        "[a-z]{1,8}(\\.[a-z0-9]{1,5}){0,3}",
        "\\PC{1,12}",
        "[\"\\\\\u{1}-\u{1f}é模🦀]{1,6}"
    ];
    let shape = prop_oneof![
        // Sub-byte dtypes need a multiple of four to fill whole bytes.
        prop::collection::vec(0u64..5, 0..3).prop_map(|mut shape| {
            shape.push(4);
            shape
        }),
        Just(vec![0]),
    ];
    prop::collection::vec((name, select(&EVERY[..]), shape), 0..12).prop_map(|tensors| {
        let mut seen = BTreeSet::from(["__metadata__".to_owned()]);
        tensors
            .into_iter()
            .filter(|(name, ..)| seen.insert(name.clone()))
            .collect()
    })
}

fn length(dtype: Dtype, shape: &[u64]) -> usize {
    shape.iter().product::<u64>() as usize * dtype.bitsize() / 8
}

fn whole_file(tensors: &[(String, Dtype, Vec<u64>)]) -> Vec<u8> {
    let mut bytes = header::write(
        tensors
            .iter()
            .map(|(name, dtype, shape)| (name.as_str(), *dtype, &shape[..])),
    );
    let data: usize = tensors
        .iter()
        .map(|(_, dtype, shape)| length(*dtype, shape))
        .sum();
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// One change to a header's text that keeps it close to a valid one.
fn edit() -> impl Strategy<Value = (usize, Vec<u8>, usize)> {
    let pieces: Vec<Vec<u8>> = [
        "0",
        "1",
        "-1",
        "1e3",
        "18446744073709551615",
        "18446744073709551616",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\"",
        "null",
        "[]",
        "\"dtype\"",
        "\"shape\":[",
        "\"F32\"",
        "\"I8\"",
        "\"data_offsets\":[0,0]",
        " ",
        "\\",
        "\\u0000",
        "__metadata__",
        "true",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    let piece = prop_oneof![select(pieces), prop::collection::vec(any::<u8>(), 0..4)];
    (any::<usize>(), piece, 0usize..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), length in prop::option::of(0u64..400)) {
        let folder = TempDir::new().unwrap();
        let mut bytes = bytes;
        if let (Some(length), true) = (length, bytes.len() > 9) {
            // Past the check of the length, which random bytes never pass.
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            bytes[8] = b'{';
        }
        match read(folder.path(), &bytes) {
            Ok(found) => accepted_by_all(&found, &bytes),
            Err(error) => prop_assert!(error.to_string().contains("any.safetensors"), "{error}"),
        }
    }

    #[test]
    fn a_changed_header_is_read_or_refused(tensors in layout(), edits in prop::collection::vec(edit(), 1..4), keep_length: bool) {
        let folder = TempDir::new().unwrap();
        let whole = whole_file(&tensors);
        let end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let (mut text, data) = (whole[8..end].to_vec(), &whole[end..]);
        for (place, piece, removed) in edits {
            let place = place % (text.len() + 1);
            let until = (place + removed).min(text.len());
            text.splice(place..until, piece);
        }
        let stated = if keep_length { end - 8 } else { text.len() } as u64;
        let bytes = [&stated.to_le_bytes()[..], &text, data].concat();
        match read(folder.path(), &bytes) {
            Ok(found) => accepted_by_all(&found, &bytes),
            Err(error) => prop_assert!(error.to_string().contains("any.safetensors"), "{error}"),
        }
    }

    #[test]
    fn a_written_header_is_read_as_it_was_meant(tensors in layout()) {
        let folder = TempDir::new().unwrap();
        let bytes = whole_file(&tensors);
        let found = read(folder.path(), &bytes).unwrap();
        prop_assert_eq!(found.tensors.len(), tensors.len());
        let mut offset = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
        prop_assert_eq!(offset % 8, 0);
        for (name, dtype, shape) in &tensors {
            let entry = &found.tensors[name];
            prop_assert_eq!(entry.encoding, Encoding::Plain(*dtype));
            prop_assert_eq!(&entry.shape, shape);
            prop_assert_eq!((entry.offset, entry.length), (offset, length(*dtype, shape) as u64));
            offset += entry.length;
        }
        prop_assert_eq!(&found.metadata["format"], "pt");
        accepted_by_all(&found, &bytes);
    }
}

// ---------------------------------------------------------------- plans

const FLOATS: [Dtype; 4] = [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64];

/// What one output tensor is; leaves are numbers of source tensors.
#[derive(Clone, Debug)]
enum Is {
    Leaf(usize),
    Mean(Vec<Is>),
    Weighted(Vec<(Is, f64)>),
    Cast(Box<Is>),
    Permute(Box<Is>, u64),
    Constant(f64),
}

const SOURCES: usize = 3;
const TENSORS: usize = 2;

fn is() -> impl Strategy<Value = Is> {
    let leaf = prop_oneof![9 => (0..SOURCES * TENSORS).prop_map(Is::Leaf), 1 => (-4.0..4.0).prop_map(Is::Constant)];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let weight = prop_oneof![Just(1.0), 0.01..3.0f64];
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..5).prop_map(Is::Mean),
            prop::collection::vec((inner.clone(), weight), 1..4).prop_map(Is::Weighted),
            inner.clone().prop_map(|of| Is::Cast(Box::new(of))),
            (inner, select(&[1u64, 2, 4][..]))
                .prop_map(|(of, heads)| Is::Permute(Box::new(of), heads)),
        ]
    })
}

impl Is {
    fn expression(&self) -> Expression {
        let all = |of: &[Is]| of.iter().map(Self::expression).collect();
        match self {
            Self::Leaf(number) => Expression::copy(
                &format!("s{}", number / TENSORS),
                &format!("t{}", number % TENSORS),
            ),
            Self::Mean(of) => Expression::Mean { of: all(of) },
            Self::Weighted(of) => Expression::Weighted {
                of: of.iter().map(|(part, _)| part.expression()).collect(),
                weights: of.iter().map(|(_, weight)| *weight).collect(),
            },
            Self::Cast(of) => Expression::Cast {
                of: Box::new(of.expression()),
            },
            Self::Permute(of, heads) => Expression::Permute {
                of: Box::new(of.expression()),
                heads: *heads,
            },
            Self::Constant(value) => Expression::Constant { value: *value },
        }
    }

    /// All values at once, in the plainest way.
    fn values(&self, leaves: &[Vec<f64>], rows: usize, columns: usize) -> Vec<f64> {
        let average = |parts: Vec<Vec<f64>>, weights: &[f64], divisor: f64| {
            let sum = |e: usize| {
                parts[1..]
                    .iter()
                    .zip(&weights[1..])
                    .fold(parts[0][e] * weights[0], |sum, (part, w)| sum + part[e] * w)
            };
            (0..rows * columns).map(|e| sum(e) / divisor).collect()
        };
        match self {
            Self::Leaf(number) => leaves[*number].clone(),
            Self::Mean(of) => {
                let parts: Vec<_> = of
                    .iter()
                    .map(|part| part.values(leaves, rows, columns))
                    .collect();
                let ones = vec![1.0; parts.len()];
                let count = parts.len() as f64;
                average(parts, &ones, count)
            }
            Self::Weighted(of) => {
                let parts = of
                    .iter()
                    .map(|(part, _)| part.values(leaves, rows, columns))
                    .collect();
                let weights: Vec<f64> = of.iter().map(|(_, weight)| *weight).collect();
                let total = weights.iter().fold(0.0, |sum, weight| sum + weight);
                average(parts, &weights, total)
            }
            Self::Cast(of) => of.values(leaves, rows, columns),
            Self::Permute(of, heads) => {
                let of = of.values(leaves, rows, columns);
                let size = rows / *heads as usize;
                let mut out = Vec::with_capacity(of.len());
                for head in 0..*heads as usize {
                    // The even rows of the head, then its odd ones.
                    for row in (0..size).step_by(2).chain((1..size).step_by(2)) {
                        let from = (head * size + row) * columns;
                        out.extend_from_slice(&of[from..from + columns]);
                    }
                }
                out
            }
            Self::Constant(value) => vec![*value; rows * columns],
        }
    }
}

#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    columns: usize,
    dtypes: Vec<Dtype>,
    outputs: Vec<(Is, Dtype)>,
    memory: u64,
    threads: usize,
    max_shard_size: u64,
    noise: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let outputs = prop::collection::vec((is(), select(&FLOATS[..])), 1..6);
    let dtypes = prop::collection::vec(select(&FLOATS[..]), SOURCES * TENSORS);
    // Up to 64 x 300 values: five chunks of the smallest size.
    (
        1usize..9,
        1usize..300,
        dtypes,
        outputs,
        0u64..500_000,
        1usize..6,
        select(&[1u64, 5_000, 200_000, 1 << 30][..]),
        any::<u64>(),
    )
        .prop_map(
            |(eighth, columns, dtypes, outputs, spare, threads, max_shard_size, noise)| Case {
                rows: 8 * eighth,
                columns,
                dtypes,
                outputs,
                memory: 4096 * (32 * threads as u64 + 40) + spare,
                threads,
                max_shard_size,
                noise: noise | 1,
            },
        )
}

fn run(case: &Case) {
    let work = TempDir::new().unwrap();
    let mut noise = Noise(case.noise);
    let shape = [case.rows, case.columns];
    let leaves: Vec<Tensor> = case
        .dtypes
        .iter()
        .map(|dtype| {
            let values: Vec<f64> = (0..case.rows * case.columns)
                .map(|_| 8.0 * noise.value())
                .collect();
            Tensor::new(*dtype, &shape, &values)
        })
        .collect();
    let mut sources = Vec::new();
    for (number, tensors) in leaves.chunks(TENSORS).enumerate() {
        let path = work.path().join(format!("s{number}.safetensors"));
        let named: Tensors = tensors
            .iter()
            .enumerate()
            .map(|(t, tensor)| (format!("t{t}"), tensor.clone()))
            .collect();
        write_file(&path, &named);
        let checkpoint = Checkpoint::open(&path).unwrap();
        sources.push(Source {
            name: format!("s{number}"),
            checkpoint,
            side_files: Vec::new(),
            kept: false,
        });
    }
    // A bare leaf is a copy and has its source's dtype; everything else is rounded to the one drawn.
    let dtype_of = |is: &Is, drawn: Dtype| {
        if let Is::Leaf(number) = is {
            leaves[*number].dtype
        } else {
            drawn
        }
    };
    let tensors = case
        .outputs
        .iter()
        .enumerate()
        .map(|(number, (is, drawn))| {
            let shape = shape.iter().map(|extent| *extent as u64).collect();
            PlannedTensor::new(
                format!("layer.{number}"),
                dtype_of(is, *drawn),
                shape,
                is.expression(),
            )
        });
    let plan = Plan {
        method: "any".to_owned(),
        settings: serde_json::Map::new(),
        tensors: tensors.collect(),
        sources,
        notes: Vec::new(),
        carries_non_finite: false,
    };
    let folder = work.path().join("out");
    let target = Target {
        max_shard_size: case.max_shard_size,
        memory: case.memory,
        threads: case.threads,
        rehash: true,
        ..Target::new(&folder)
    };
    let manifest = execute(&plan, &[], &target).unwrap();
    assert_eq!(manifest.tensors.len(), case.outputs.len());
    let found = read_folder(&folder);
    let decoded: Vec<Vec<f64>> = leaves.iter().map(Tensor::values).collect();
    for (number, (is, drawn)) in case.outputs.iter().enumerate() {
        let name = format!("layer.{number}");
        let dtype = dtype_of(is, *drawn);
        let values = is.values(&decoded, case.rows, case.columns);
        let bytes = values
            .iter()
            .flat_map(|value| round(dtype, *value))
            .collect();
        crate::common::assert_same_tensor(
            &name,
            &found[&name],
            &Tensor {
                dtype,
                shape: shape.to_vec(),
                bytes,
            },
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_computes_what_it_says(case in case()) {
        run(&case);
    }
}
