//! Files of `torch.save`, with the tensors that torch itself reads from them (`fixtures/make_pytorch.py`).

use std::path::Path;

use crate::common::{
    Tensors, bam, contents, copy_folder, fixture, read_file, read_folder, read_json,
};
use tempfile::TempDir;

const NAMES: [&str; 7] = [
    "zip-dtypes",
    "zip-views",
    "old-dtypes",
    "old-views",
    "nested",
    "nested-twice",
    "parameters",
];

#[test]
fn every_file_holds_what_torch_reads() {
    for name in NAMES {
        let work = TempDir::new().unwrap();
        let out = work.path().join("out");
        let path = fixture(format!("pytorch/{name}.bin"));
        bam!("convert", path, out).ok();
        let golden = read_file(&fixture(format!("pytorch/{name}.safetensors")));
        let found = read_folder(&out);
        let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&golden), "{name}");
        for (tensor, value) in &found {
            assert!(*value == golden[tensor], "{name}: {tensor}");
        }
        // There is no configuration, which a checkpoint needs.
        let checked = bam!("validate", out, "--against", path).stdout;
        assert!(checked.contains("equal to their expressions"), "{checked}");
        bam!("diff", path, out).ok();
    }
}

#[test]
fn what_is_left_out_beside_a_model_is_said() {
    let work = TempDir::new().unwrap();
    for (name, part) in [("nested", "2 value(s)"), ("nested-twice", "such as `step`")] {
        let path = fixture(format!("pytorch/{name}.bin"));
        let run = bam!("convert", path, work.path().join(name)).ok();
        assert!(run.stderr.contains(part), "{run}");
    }
}

#[test]
fn values_of_views_are_computed_from_their_places() {
    let work = TempDir::new().unwrap();
    let wide = |source: &Path, name: &str| {
        let out = work.path().join(name);
        bam!("convert", source, out, "--dtype", "f64").ok();
        read_folder(&out)
    };
    let found = wide(&fixture("pytorch/zip-views.bin"), "views");
    assert!(found == wide(&fixture("pytorch/zip-views.safetensors"), "golden"));
}

#[test]
fn a_folder_of_shards_is_a_checkpoint() {
    let work = TempDir::new().unwrap();
    let (sharded, seed) = (fixture("pytorch/sharded"), fixture("llama/seed"));
    let out = work.path().join("out");
    bam!("merge", "--model", sharded, "--model", seed, "--out", out).ok();
    assert!(read_folder(&out) == read_folder(&seed));
    bam!("validate", out, "--against", sharded, seed).ok();
    bam!("diff", sharded, seed).ok();
    bam!("validate", sharded).ok();
    let tokens = work.path().join("tokens.json");
    std::fs::write(&tokens, "[5, 9, 200, 31, 7]").unwrap();
    let logits = |of: &Path, name: &str| {
        let file = work.path().join(name);
        bam!("logits", of, "--tokens", tokens, "--dump", file).ok();
        std::fs::read(file).unwrap()
    };
    assert_eq!(
        logits(&sharded, "a.safetensors"),
        logits(&seed, "b.safetensors")
    );

    let listed = read_json(sharded.join("pytorch_model.bin.index.json"));
    let manifest = read_json(out.join("bam-manifest.json"));
    let files = manifest["sources"][0]["files"].to_string();
    for shard in listed["weight_map"].as_object().unwrap().values() {
        assert!(files.contains(shard.as_str().unwrap()), "{files}");
    }

    // Without its index, the names of the shards say that they belong together; without a shard, the set is incomplete.
    let copy = copy_folder(&sharded, &work.path().join("copy"));
    std::fs::remove_file(copy.join("pytorch_model.bin.index.json")).unwrap();
    bam!("diff", copy, seed).ok();
    std::fs::remove_file(copy.join("pytorch_model-00002-of-00002.bin")).unwrap();
    bam!("diff", copy, seed).refused(2, &["2"]);

    // safetensors beside pickles are the same weights, and are read.
    let both = copy_folder(&seed, &work.path().join("both"));
    for name in [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
    ] {
        std::fs::copy(sharded.join(name), both.join(name)).unwrap();
    }
    bam!("diff", both, seed).ok();
}

#[test]
fn nothing_that_a_pickle_names_is_called() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    for name in ["pt-system.bin", "pt-old-system.bin", "pt-stack-global.bin"] {
        let path = fixture("hostile").join(name);
        bam!("convert", path, out).refused(2, &["os.system", "does not call"]);
    }
    assert!(!Path::new("pwned").exists());
    assert!(contents(work.path()).is_empty());
}
