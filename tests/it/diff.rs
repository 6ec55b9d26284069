//! `diff` of two mixtures: experts are compared by their names, whatever their order.

use std::path::{Path, PathBuf};

use crate::common::{Tensor, bam, copy_folder, edit_json, edit_tensors, fixture, read_json};
use tempfile::TempDir;

/// A mixture of the seed and these experts in order.
fn mixture(work: &TempDir, name: &str, experts: &[&str]) -> PathBuf {
    let out = work.path().join(name);
    let mut line: Vec<std::ffi::OsString> = ["upcycle", "--method", "bam", "--seed"]
        .map(Into::into)
        .to_vec();
    line.push(fixture("llama/seed").into());
    for expert in experts {
        let folder = fixture("llama").join(expert);
        line.push("--expert".into());
        line.push(format!("{expert}={}", folder.display()).into());
    }
    line.extend(["--out".into(), out.clone().into()]);
    crate::common::run(line).ok();
    out
}

/// The name of a tensor after experts 1 and 2 have changed places.
fn swapped(name: &str) -> String {
    let (one, two) = ("experts.1.", "experts.2.");
    if name.contains(one) {
        name.replace(one, two)
    } else {
        name.replace(two, one)
    }
}

/// Rows 1 and 2 of a router in each other's place.
fn swap_rows(tensor: &mut Tensor) {
    let row = tensor.bytes.len() / tensor.shape[0];
    let (first, rest) = tensor.bytes[row..].split_at_mut(row);
    first.swap_with_slice(&mut rest[..row]);
}

/// A copy of a mixture in which experts 1 and 2 have changed places.
fn reordered(mixture: &Path, out: &Path) -> PathBuf {
    copy_folder(mixture, out);
    edit_tensors(out, |tensors| {
        let old = std::mem::take(tensors);
        tensors.extend(old.into_iter().map(|(name, mut tensor)| {
            if name.contains("router") {
                swap_rows(&mut tensor);
            }
            (swapped(&name), tensor)
        }));
    });
    for (file, key) in [
        ("config.json", "/expert_names"),
        ("bam-manifest.json", "/settings/experts"),
    ] {
        edit_json(&out.join(file), |json| {
            let names = json.pointer_mut(key).unwrap().as_array_mut().unwrap();
            names.swap(1, 2);
        });
    }
    out.to_path_buf()
}

#[test]
fn a_mixture_whose_experts_have_another_order_is_equal() {
    let work = TempDir::new().unwrap();
    let a = mixture(&work, "a", &["code", "law"]);
    let b = reordered(&a, &work.path().join("b"));
    let found = bam!("diff", a, b, "--json").ok().json();
    assert_eq!(found["equal"], true);
    assert_eq!(
        found["experts"],
        serde_json::json!([
            {"name": "seed", "a": 0, "b": 0},
            {"name": "code", "a": 1, "b": 2},
            {"name": "law", "a": 2, "b": 1},
        ])
    );
    let text = bam!("diff", a, b).ok().stdout;
    let line = "experts by name, numbers in a = b: seed 0 = 0, code 1 = 2, law 2 = 1";
    assert!(text.contains(line), "{text}");

    // The manifest tells the names where the configuration does not.
    for folder in [&a, &b] {
        edit_json(&folder.join("config.json"), |config| {
            config.as_object_mut().unwrap().remove("expert_names");
        });
    }
    bam!("diff", a, b).ok();
    // Without names, numbers pair the experts.
    std::fs::remove_file(b.join("bam-manifest.json")).unwrap();
    let run = bam!("diff", a, b, "--json");
    assert_eq!(run.code, Some(1), "{run}");
    assert!(run.json().get("experts").is_none(), "{run}");
}

#[test]
fn a_change_of_one_expert_is_found_under_its_name() {
    let work = TempDir::new().unwrap();
    let a = mixture(&work, "a", &["code", "law"]);
    let b = reordered(&a, &work.path().join("b"));
    let name = "model.layers.0.mlp.experts.2.up_proj.weight";
    edit_tensors(&b, |tensors| {
        let bytes = &mut tensors.get_mut(name).unwrap().bytes;
        bytes[1] ^= 1;
    });
    let run = bam!("diff", a, b, "--json");
    assert_eq!(run.code, Some(1), "{run}");
    let found = run.json();
    let changed: Vec<_> = found["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|tensor| tensor["equal"] == false)
        .collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(
        changed[0]["name"],
        "model.layers.0.mlp.experts.1.up_proj.weight"
    );
    assert_eq!(changed[0]["name_b"], name);
    let part = found["parts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|part| part["equal"] != part["tensors"]);
    assert_eq!(part.unwrap()["expert_name"], "code");
}

#[test]
fn mixtures_that_were_made_in_another_order_differ_in_their_routers_alone() {
    let work = TempDir::new().unwrap();
    let a = mixture(&work, "a", &["code", "law"]);
    let b = mixture(&work, "b", &["law", "code"]);
    let run = bam!("diff", a, b, "--json");
    assert_eq!(run.code, Some(1), "{run}");
    for part in run.json()["parts"].as_array().unwrap() {
        let is_equal = part["equal"] == part["tensors"];
        assert!(is_equal || part["part"] == "routers", "{part}");
    }
}

#[test]
fn experts_of_two_formats_are_compared_by_their_places() {
    let work = TempDir::new().unwrap();
    let make = |target: &str| {
        let out = work.path().join(target);
        let code = format!("code={}", fixture("llama/code").display());
        bam!(
            "upcycle",
            "--method",
            "btx",
            "--target",
            target,
            "--seed",
            fixture("llama/seed"),
            "--expert",
            code,
            "--out",
            out
        )
        .ok();
        out
    };
    let (mixtral, qwen) = (make("mixtral"), make("qwen2_moe"));
    let run = bam!("diff", mixtral, qwen, "--json");
    let found = run.json();
    let experts: Vec<_> = found["parts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|part| part["expert"].is_u64())
        .collect();
    // Three projections of two experts, the same bytes under other names.
    assert_eq!(experts.len(), 6, "{run}");
    for part in experts {
        assert_eq!(part["equal"], part["tensors"], "{part}");
    }
    assert_eq!(found["only_a"].as_array().unwrap().len(), 0, "{run}");
    let only_b = found["only_b"].as_array().unwrap();
    let is_own = |name: &str| name.contains("shared_expert") || name.ends_with("_proj.bias");
    assert!(
        !only_b.is_empty()
            && only_b
                .iter()
                .all(|one| is_own(one["name"].as_str().unwrap())),
        "{run}"
    );
}

#[test]
fn experts_of_one_side_are_named() {
    let work = TempDir::new().unwrap();
    let a = mixture(&work, "a", &["code", "law"]);
    let b = work.path().join("b");
    bam!("expert", "remove", a, "code", "--out", b).ok();
    let run = bam!("diff", a, b, "--json");
    assert_eq!(run.code, Some(1), "{run}");
    let found = run.json();
    assert_eq!(
        found["equal_tensors"],
        found["tensors"].as_array().unwrap().len()
    );
    assert_eq!(found["only_b"], serde_json::json!([]));
    let only_a = found["only_a"].as_array().unwrap();
    assert!(!only_a.is_empty());
    for single in only_a {
        let name = single["name"].as_str().unwrap();
        assert!(
            name.contains("experts.1.") || name.ends_with("[1]"),
            "{name}"
        );
    }
    let text = bam!("diff", a, b).stdout;
    assert!(text.contains("experts only in a: code 1"), "{text}");
    let names = &read_json(b.join("config.json"))["expert_names"];
    assert_eq!(names, &serde_json::json!(["seed", "law"]));
}
