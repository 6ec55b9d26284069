//! Decoding with a cache against whole sequences, and batches against single rows.

use bam_convert::family::AttentionKv;
use bam_convert::model::{CausalLm, Forward, KvCache, LoadOptions};
use candle_core::{Device, Tensor};

use super::{FAMILIES, Kind, difference, fixture, golden_tokens, ids, rows, run, ways};

/// Logits of the tokens, given in pieces of these lengths to one cache.
fn in_pieces(
    model: &CausalLm,
    tokens: &[u32],
    pieces: &[usize],
    cache: &mut KvCache,
) -> Vec<Vec<f64>> {
    let (mut all, mut rest) = (Vec::new(), tokens);
    for piece in pieces {
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        rest = later;
        let logits = model
            .forward(&ids(now), Some(cache), &Forward::default())
            .unwrap()
            .logits;
        all.extend(rows(&logits.squeeze(0).unwrap()));
    }
    assert_eq!((cache.len(), rest.len()), (tokens.len(), 0));
    all
}

fn check(model: &CausalLm, tokens: &[u32], name: &str) {
    let whole = run(model, tokens, &Forward::default());
    let one_by_one = vec![1; tokens.len()];
    let largest = whole
        .iter()
        .flatten()
        .fold(1f64, |most, logit| most.max(logit.abs()));
    let most = 1e-5 * largest;
    for pieces in [
        &one_by_one[..],
        &[tokens.len()],
        &[3, 1, 1, 4, 1, tokens.len()],
    ] {
        let mut cache = KvCache::new();
        let difference = difference(&in_pieces(model, tokens, pieces, &mut cache), &whole);
        assert!(difference < most, "{name}, {pieces:?}: {difference}");
        // The same cache again, from its middle on.
        let half = tokens.len() / 2;
        cache.truncate(half);
        let again = model
            .forward(&ids(&tokens[half..]), Some(&mut cache), &Forward::default())
            .unwrap()
            .logits;
        let again = rows(&again.squeeze(0).unwrap());
        assert!(
            super::difference(&again, &whole[half..]) < most,
            "{name}, truncated"
        );
    }
}

#[test]
fn cached_and_uncached_logits_agree() {
    let tokens = golden_tokens();
    for family in FAMILIES {
        for (way, options) in ways() {
            let model = CausalLm::load(&fixture(family).join("seed"), &options).unwrap();
            check(&model, &tokens, &format!("{family}, {way}"));
        }
    }
    for kind in Kind::all() {
        let folder = tempfile::tempdir().unwrap();
        kind.make("qwen3", &folder.path().join("out"));
        let model = CausalLm::load(&folder.path().join("out"), &LoadOptions::default()).unwrap();
        check(&model, &tokens, kind.name);
    }
}

/// Layers that differ in window and rotation, dense and as experts.
#[test]
fn cached_logits_of_layers_that_rotate_differently_agree() {
    let tokens = golden_tokens();
    for family in ["smollm3", "cohere2", "exaone4_window", "olmo3"] {
        let models = super::families::models(family);
        let mixture = models.path().join("mixture");
        Kind::BAM.make_from(models.path(), &mixture);
        for folder in [models.path().join("seed"), mixture] {
            for (way, options) in ways() {
                let model = CausalLm::load(&folder, &options).unwrap();
                check(&model, &tokens, &format!("{family}, {way}"));
            }
        }
    }
}

/// Beyond the original context of longrope (12 here), all positions rotate otherwise, so keys of the cache become stale.
#[test]
fn a_cached_text_that_outgrows_longrope_is_computed_again() {
    let tokens = golden_tokens();
    let models = super::families::models("phi3");
    let mixture = models.path().join("mixture");
    Kind::BAM.make_from(models.path(), &mixture);
    for folder in [models.path().join("seed"), mixture] {
        for (way, options) in ways() {
            let model = CausalLm::load(&folder, &options).unwrap();
            let mut cache = KvCache::new();
            let keep = Forward {
                keep_routing: true,
                keep_hidden: true,
                ..Forward::default()
            };
            // Positions that are kept, and those that are read after them: across the limit, and back again.
            for (kept, end) in [
                (0, 7),
                (7, 12),
                (12, 13),
                (13, 16),
                (9, 11),
                (10, 14),
                (4, 16),
            ] {
                cache.truncate(kept);
                let new = &tokens[kept..end];
                let output = model.forward(&ids(new), Some(&mut cache), &keep).unwrap();
                let found = rows(&output.logits.squeeze(0).unwrap());
                let whole = run(&model, &tokens[..end], &Forward::default());
                let difference = difference(&found, &whole[kept..]);
                assert!(difference < 2e-5, "{way}, {kept} to {end}: {difference}");
                assert_eq!(cache.len(), end);
                for hidden in &output.hidden {
                    assert_eq!(hidden.dims()[1], new.len());
                }
                for routing in output
                    .routing
                    .iter()
                    .filter_map(|r| r.feed_forward.as_ref())
                {
                    assert_eq!(routing.gates.dims()[1], new.len());
                }
            }
        }
    }
}

#[test]
fn a_long_prompt_is_the_sum_of_its_chunks() {
    // Longer than the chunk of queries that inference looks at together, so that chunking itself is compared.
    let tokens: Vec<u32> = (0..300).map(|i| (i * 37 + 11) % 384).collect();
    for family in ["llama", "cohere"] {
        let [(_, train), (_, infer), _] = ways();
        let of = |options| CausalLm::load(&fixture(family).join("seed"), options).unwrap();
        let whole = run(&of(&train), &tokens, &Forward::default());
        let difference = difference(&run(&of(&infer), &tokens, &Forward::default()), &whole);
        assert!(difference < 1e-5, "{family}: {difference}");
    }
}

#[test]
fn shared_keys_and_values_need_the_cache_of_the_seed() {
    let tokens = golden_tokens();
    let bytes = |folder: &std::path::Path| {
        let model = CausalLm::load(folder, &LoadOptions::default()).unwrap();
        let mut cache = KvCache::new();
        model
            .forward(&ids(&tokens), Some(&mut cache), &Forward::default())
            .unwrap();
        cache.bytes()
    };
    let seed = bytes(&fixture("llama/seed"));
    for (kv, times) in [(AttentionKv::Shared, 1), (AttentionKv::Expert, 3)] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("out");
        Kind { kv, ..Kind::BAM }.make("llama", &folder);
        assert_eq!(bytes(&folder), times * seed, "{kv}");
    }
}

#[test]
fn a_left_padded_batch_has_the_logits_of_its_rows() {
    let tokens = golden_tokens();
    let short = &tokens[..tokens.len() - 5];
    let padded: Vec<u32> = [0; 5].iter().chain(short).copied().collect();
    let batch = Tensor::new(vec![tokens.clone(), padded], &Device::Cpu).unwrap();
    for (family, kind) in [
        ("llama", None),
        ("cohere", None),
        ("qwen3", Some(Kind::BAM)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let folder = match kind {
            None => fixture(family).join("seed"),
            Some(kind) => {
                kind.make(family, &folder.path().join("out"));
                folder.path().join("out")
            }
        };
        for (way, options) in ways() {
            let model = CausalLm::load(&folder, &options).unwrap();
            let forward = Forward {
                left_padding: Some(vec![0, 5]),
                ..Forward::default()
            };
            let logits = model.forward(&batch, None, &forward).unwrap().logits;
            let row = |row: usize| rows(&logits.get(row).unwrap());
            assert!(
                difference(&row(0), &run(&model, &tokens, &Forward::default())) < 1e-5,
                "{family}, {way}"
            );
            let alone = run(&model, short, &Forward::default());
            assert!(
                difference(&row(1)[5..], &alone) < 1e-5,
                "{family}, {way}, padded"
            );
            // And decoding on: the last token from the cache.
            let (first, last) = (
                batch.narrow(1, 0, tokens.len() - 1).unwrap(),
                batch.narrow(1, tokens.len() - 1, 1).unwrap(),
            );
            let mut cache = KvCache::new();
            model.forward(&first, Some(&mut cache), &forward).unwrap();
            let next = model
                .forward(&last, Some(&mut cache), &Forward::default())
                .unwrap()
                .logits;
            let next = rows(&next.squeeze(1).unwrap());
            assert!(
                difference(&next[1..], &alone[alone.len() - 1..]) < 1e-5,
                "{family}, {way}, cached"
            );
        }
    }
}

#[test]
fn a_sliding_window_hides_what_is_too_far() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(fixture("mistral/seed").join(file), folder.path().join(file)).unwrap();
    }
    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.replace("\"sliding_window\": null", "\"sliding_window\": 4"),
    )
    .unwrap();
    let tokens = golden_tokens();
    let expected = super::naive::Naive::open(folder.path()).logits(&tokens, &Default::default());
    for (way, options) in ways() {
        let model = CausalLm::load(folder.path(), &options).unwrap();
        assert!(
            difference(&run(&model, &tokens, &Forward::default()), &expected) < 1e-4,
            "{way}"
        );
        check(&model, &tokens, &format!("window, {way}"));
    }
}
