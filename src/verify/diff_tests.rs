use std::path::Path;

use super::samples::{Samples, compared, edit, overwrite};
use super::{Diff, diff};
use crate::checkpoint::Dtype;
use crate::surgery::router::RouterInit;
use crate::surgery::{Model, convert};

fn numbers(diff: &Diff, name: &str) -> diff::TensorNumbers {
    diff.tensors
        .iter()
        .find(|tensor| tensor.name == name)
        .unwrap()
        .numbers
        .unwrap()
}

fn close(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() <= 1e-12 * expected.abs().max(1.0),
        "expected {expected}, found {found}"
    );
}

#[test]
fn numbers_are_those_computed_by_hand() {
    let samples = Samples::new();
    // Every value is exact in its dtype.
    for dtype in [
        Dtype::F32,
        Dtype::F64,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F8_E4M3,
        Dtype::F8_E5M2,
        Dtype::I32,
    ] {
        let a = samples.file("a.safetensors", &[("x", dtype, &[3.0, 0.0, -4.0, 2.0])]);
        let b = samples.file("b.safetensors", &[("x", dtype, &[3.0, 1.0, -2.0, 2.0])]);
        let diff = compared(&a, &b);
        let n = numbers(&diff, "x");
        assert!(
            !diff.is_equal() && (n.changed, n.values) == (2, 4),
            "{dtype}"
        );
        close(n.max_abs, 2.0);
        close(n.mean_abs, 0.75);
        close(n.relative.unwrap(), (5.0f64 / 29.0).sqrt());
        close(n.cosine.unwrap(), 21.0 / (29.0f64 * 18.0).sqrt());
        close(n.changed_fraction, 0.5);
    }
}

#[test]
fn ten_times_a_bf16_tensor_is_a_difference_of_900_percent() {
    let samples = Samples::new();
    let a = samples.file("a.safetensors", &[("x", Dtype::BF16, &[0.5, -1.0])]);
    let b = samples.file("b.safetensors", &[("x", Dtype::BF16, &[5.0, -10.0])]);
    let diff = compared(&a, &b);
    close(numbers(&diff, "x").relative.unwrap(), 9.0);
    assert!(diff.table(false).contains("900 %"), "{}", diff.table(false));
}

#[test]
fn the_same_values_in_another_dtype_differ_in_dtype_only() {
    let samples = Samples::new();
    let a = samples.file("a.safetensors", &[("x", Dtype::BF16, &[0.5, -1.0])]);
    let b = samples.file("b.safetensors", &[("x", Dtype::F8_E5M2, &[0.5, -1.0])]);
    let diff = compared(&a, &b);
    assert!(!diff.is_equal());
    let n = numbers(&diff, "x");
    assert_eq!(
        (n.changed, n.max_abs, n.relative, n.cosine),
        (0, 0.0, Some(0.0), Some(1.0))
    );
    assert!(diff.table(false).contains("BF16 → F8_E5M2"));
}

#[test]
fn values_that_are_not_finite_are_counted_apart() {
    let samples = Samples::new();
    let a = samples.file(
        "a.safetensors",
        &[("x", Dtype::F32, &[1.0, f64::NAN, f64::INFINITY, 2.0])],
    );
    let b = samples.file(
        "b.safetensors",
        &[("x", Dtype::F32, &[1.0, f64::NAN, 5.0, 4.0])],
    );
    let n = numbers(&compared(&a, &b), "x");
    assert_eq!((n.non_finite_a, n.non_finite_b, n.changed), (2, 1, 2));
    close(n.mean_abs, 1.0);
    close(n.relative.unwrap(), (4.0f64 / 5.0).sqrt());
}

#[test]
fn zeros_have_no_relative_change_and_minus_zero_is_other_bytes() {
    let samples = Samples::new();
    let a = samples.file(
        "a.safetensors",
        &[("x", Dtype::F32, &[0.0]), ("y", Dtype::F32, &[0.0])],
    );
    let b = samples.file(
        "b.safetensors",
        &[("x", Dtype::F32, &[1.0]), ("y", Dtype::F32, &[-0.0])],
    );
    let diff = compared(&a, &b);
    assert_eq!(
        (numbers(&diff, "x").relative, numbers(&diff, "x").cosine),
        (None, None)
    );
    assert_eq!(
        (numbers(&diff, "y").relative, numbers(&diff, "y").changed),
        (Some(0.0), 1)
    );
    assert_eq!(diff.tensors[0].name, "x", "an undefined change comes first");
}

#[test]
fn names_and_shapes_that_differ_are_told() {
    let samples = Samples::new();
    let a = samples.file(
        "a.safetensors",
        &[("x", Dtype::F32, &[1.0]), ("gone", Dtype::F32, &[1.0])],
    );
    let b = samples.file(
        "b.safetensors",
        &[("x", Dtype::F32, &[1.0, 2.0]), ("new", Dtype::F32, &[1.0])],
    );
    let diff = compared(&a, &b);
    assert_eq!(
        (diff.only_a[0].name.as_str(), diff.only_b[0].name.as_str()),
        ("gone", "new")
    );
    assert!(diff.tensors[0].numbers.is_none() && !diff.tensors[0].equal);
    assert!(diff.table(false).contains("shape [1, 1] → [1, 2]"));
}

#[test]
fn tensors_come_by_relative_change() {
    let samples = Samples::new();
    let ones: &[f64] = &[1.0];
    let a = samples.file(
        "a.safetensors",
        &[
            ("p", Dtype::F32, ones),
            ("q", Dtype::F32, ones),
            ("r", Dtype::F32, ones),
        ],
    );
    let b = samples.file(
        "b.safetensors",
        &[
            ("p", Dtype::F32, &[1.5]),
            ("q", Dtype::F32, ones),
            ("r", Dtype::F32, &[4.0]),
        ],
    );
    let names: Vec<String> = compared(&a, &b)
        .tensors
        .into_iter()
        .map(|tensor| tensor.name)
        .collect();
    assert_eq!(names, ["r", "p", "q"]);
}

#[test]
fn shards_and_one_file_are_equal() {
    let samples = Samples::new();
    let seed = samples.dense("seed", 0);
    let (plan, files) = convert::plan(&seed, None).unwrap();
    let sharded = samples.write("sharded", &plan, &files, 500);
    assert!(sharded.join("model.safetensors.index.json").is_file());
    let diff = compared(&seed, &sharded);
    assert!(diff.is_equal() && diff.table(false).contains("equal"));
    assert!(compared(&seed, &seed).is_equal());
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let samples = Samples::new();
    // Over several pieces, with sums that depend on their order.
    let values: Vec<f64> = (0..400_000u32)
        .map(|i| f64::from(i % 997 * 7919 % 1000) * 0.001 - 0.3)
        .collect();
    let other: Vec<f64> = values.iter().map(|value| value * 1.01).collect();
    let a = samples.file("a.safetensors", &[("x", Dtype::F32, &values)]);
    let b = samples.file("b.safetensors", &[("x", Dtype::F32, &other)]);
    let run = |threads| {
        diff::diff(
            &a,
            &b,
            &diff::DiffOptions {
                threads,
                memory: 1 << 30,
                progress: &|_| {},
            },
        )
        .unwrap()
    };
    let one = run(1);
    for threads in [2, 5] {
        assert_eq!(one, run(threads));
    }
    let relative = numbers(&one, "x").relative.unwrap();
    assert!((relative - 0.01).abs() < 1e-8, "{relative}");
}

#[test]
fn a_mixture_against_its_seed_has_rows_by_expert() {
    let samples = Samples::new();
    let seed = samples.dense("seed", 0);
    let code = samples.dense("code", 0);
    // One expert differs from the seed in one projection of one layer: 1 becomes 3 in the norm of the row.
    overwrite(&code, "model.layers.1.mlp.up_proj.weight", 0, &[0x40, 0x40]);
    let bam = samples.mixture("bam", &seed, &[("code", &code)], RouterInit::Normal(0.02));
    assert!(Model::open("bam", &bam).is_ok());
    for (a, b) in [(&seed, &bam), (&bam, &seed)] {
        let diff = compared(a, b);
        check_rows(&diff, &seed);
    }
    // Two mixtures compare by name, with the same rows.
    let diff = compared(&bam, &bam);
    assert!(diff.is_equal() && diff.parts.iter().all(|part| part.equal == part.tensors));
}

fn check_rows(diff: &Diff, seed: &Path) {
    assert!(diff.mixture && !diff.is_equal() && diff.a == seed);
    assert_eq!(
        diff.new.len(),
        4,
        "a router each of attention and feed-forward in two layers"
    );
    assert!(diff.only_a.is_empty() && diff.only_b.is_empty());
    let changed: Vec<_> = diff
        .parts
        .iter()
        .filter(|part| part.equal < part.tensors)
        .collect();
    let [part] = changed[..] else {
        panic!("{}", diff.table(true))
    };
    assert_eq!(
        (part.expert, part.expert_name.as_deref()),
        (Some(1), Some("code"))
    );
    assert_eq!(
        (part.part, part.role.as_str(), part.tensors, part.equal),
        ("feed-forward", "up", 2, 1)
    );
    let tensor = &diff.tensors[0];
    assert_eq!(tensor.name, "model.layers.1.mlp.up_proj.weight");
    assert_eq!(
        tensor.name_b.as_deref(),
        Some("model.layers.1.mlp.experts.1.up_proj.weight")
    );
    // The row is relative to both layers, the tensor to its own.
    assert!(part.relative.unwrap() < tensor.numbers.unwrap().relative.unwrap());
    assert!(
        diff.table(false).contains("1 code"),
        "{}",
        diff.table(false)
    );
    assert_eq!(
        diff.parts
            .iter()
            .filter(|part| part.expert == Some(0))
            .count(),
        7
    );
    assert_eq!(
        diff.parts
            .iter()
            .filter(|part| part.expert.is_none())
            .map(|part| part.role.as_str())
            .collect::<Vec<_>>(),
        [
            "embedding",
            "final_norm",
            "head",
            "input_norm",
            "post_attention_norm"
        ]
    );
}

#[test]
fn a_diff_is_json() {
    let samples = Samples::new();
    let a = samples.dense("a", 0);
    let b = samples.dense("b", 1);
    edit(&b.join("config.json"), |config| {
        config["model_type"] = "unheard of".into()
    });
    let json = serde_json::to_value(compared(&a, &b)).unwrap();
    assert_eq!(json["equal"], false);
    assert!(
        json["tensors"][0]["relative"].is_f64() && json["tensors"][0]["dtype_a"] == "BF16",
        "{json}"
    );
}
