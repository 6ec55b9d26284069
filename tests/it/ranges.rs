//! `validate` and `diff` of checkpoints on the Hub: the weights come by ranges, and nothing of model size is kept.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::{
    Noise, Run, Tensor, Tensors, bam, contents, copy_folder, edit_json, fixture, write_file,
};
use crate::hub::{World, put};
use hub_server::{Listener, Options};
use safetensors::Dtype;
use serde_json::Value;

/// Values of each large tensor: several blocks of what is fetched at once.
const VALUES: usize = 1_500_000;

/// Bytes that a folder takes on the disk; nothing for what is not there.
fn stored(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.map(|entry| {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            stored(&path)
        } else {
            512 * metadata.blocks()
        }
    });
    sizes.sum()
}

/// Bytes of large files that were asked for, each by a range.
#[track_caller]
fn fetched(world: &World) -> u64 {
    let requests = world.server.requests().into_iter();
    let large = requests.filter(|request| request.listener == Listener::Cdn);
    let lengths = large.map(|request| {
        let range = request.header("range").expect("a range");
        let (first, last) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        last.parse::<u64>().unwrap() + 1 - first.parse::<u64>().unwrap()
    });
    lengths.sum()
}

fn large(seed: u64) -> Tensors {
    let mut noise = Noise(seed);
    let mut tensor = || {
        let values: Vec<f64> = (0..VALUES).map(|_| noise.value()).collect();
        Tensor::new(Dtype::F32, &[VALUES], &values)
    };
    [("x", tensor()), ("y", tensor()), ("z", tensor())]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into()
}

/// A result without the paths of what it is about.
fn without_paths(run: &Run) -> Value {
    let mut json = run.json();
    for key in ["a", "b", "path"] {
        if let Some(object) = json.as_object_mut() {
            object.remove(key);
        }
    }
    json
}

#[test]
fn two_checkpoints_on_the_hub_are_compared_by_ranges() {
    let world = World::with(Options::default());
    let (a, mut tensors) = (large(7), large(7));
    tensors.get_mut("y").unwrap().bytes[4 * 700_000] ^= 1;
    let mut sizes = 0;
    for (name, tensors) in [("a", &a), ("b", &tensors)] {
        let path = world.path(&format!("{name}.safetensors"));
        write_file(&path, tensors);
        let bytes = std::fs::read(&path).unwrap();
        sizes += bytes.len() as u64;
        let files = [("model.safetensors", &bytes[..])];
        world.server.put(&format!("org/{name}"), "main", &files);
    }
    let local = ["a.safetensors", "b.safetensors"].map(|name| world.path(name));
    let local = bam!("diff", local[0], local[1], "--json");
    world.server.forget_requests();
    let remote = world.run(&["diff", "hf://org/a", "hf://org/b", "--json"]);
    assert_eq!((local.code, remote.code), (Some(1), Some(1)), "{remote}");
    assert_eq!(without_paths(&remote), without_paths(&local));
    // The bytes of all tensors, then the values of the one that differs, and headers.
    let fetched = fetched(&world);
    assert!(
        fetched > sizes && fetched < 2 * sizes,
        "{fetched} of {sizes}"
    );
    for cache in ["hf", "cache"] {
        let stored = stored(&world.path(cache));
        assert!(stored < 1 << 20, "{cache}: {stored} bytes");
    }
}

#[test]
fn a_mixture_on_the_hub_is_validated_and_replayed_by_ranges() {
    let world = World::with(Options::default());
    let code = fixture("llama/code");
    let commit = put(&world.server, "org/code", &contents(&code));
    let seed = world.server.head("org/seed", "main");
    let out = world.path("bam");
    let expert = format!("code={}", code.display());
    let seed_folder = fixture("llama/seed");
    bam!(
        "upcycle",
        "--method",
        "bam",
        "--seed",
        seed_folder,
        "--expert",
        expert,
        "--out",
        out
    )
    .ok();
    let published = copy_folder(&out, &world.path("published"));
    edit_json(&published.join("bam-manifest.json"), |manifest| {
        manifest["sources"][0]["path"] = format!("hf://org/seed@{seed}").into();
        manifest["sources"][1]["path"] = format!("hf://org/code@{commit}").into();
    });
    put(&world.server, "org/bam", &contents(&published));

    let local = world.run(&["validate", "published", "--json"]).ok();
    let remote = world.run(&["validate", "hf://org/bam", "--json"]).ok();
    assert_eq!(without_paths(&remote), without_paths(&local));
    world.run(&["validate", "hf://org/bam", "--against"]).ok();
    fetched(&world);
    // The cache that Python shares has none of it.
    assert_eq!(stored(&world.path("hf")), 0);
    assert!(stored(&world.path("cache")) < 1 << 20);

    // A fault in the weights is found where it is.
    let mut files = contents(&published);
    let weights = files.get_mut("model.safetensors").unwrap();
    let last = weights.len() - 1;
    weights[last] ^= 1;
    put(&world.server, "org/bam", &files);
    let run = world.run(&["validate", "hf://org/bam"]);
    assert_eq!(run.code, Some(1), "{run}");
    assert!(run.stdout.contains("SHA-256"), "{run}");
}

#[test]
fn a_revision_that_is_in_the_cache_is_read_there() {
    let world = World::with(Options::default());
    world.run(&["pull", "org/seed"]).ok();
    world.server.forget_requests();
    world.run(&["validate", "hf://org/seed"]).ok();
    assert_eq!(fetched(&world), 0);
    world.run(&["diff", "hf://org/seed", "hf://org/seed"]).ok();
    assert_eq!(fetched(&world), 0);
}
