//! Token folders written by hand, and mixtures of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::order::Permutation;
use super::{Mixture, Split, TokenError, TokenFolder};
use crate::checkpoint::hash::sha256;
use crate::error::InputError;
use crate::{Error, Result};

/// Writes a token folder by the description of the format: documents by shard, 16-bit ids.
fn write(folder: &Path, shards: &[&[Vec<u16>]]) {
    std::fs::create_dir_all(folder).unwrap();
    let mut entries = Vec::new();
    for (number, documents) in shards.iter().enumerate() {
        let ids: Vec<u8> = documents
            .iter()
            .flatten()
            .flat_map(|id| id.to_le_bytes())
            .collect();
        let mut end = 0u64;
        let ends: Vec<u8> = documents
            .iter()
            .flat_map(|document| {
                end += document.len() as u64;
                end.to_le_bytes()
            })
            .collect();
        let file = format!("train-{number:05}.bin");
        std::fs::write(folder.join(&file), &ids).unwrap();
        std::fs::write(folder.join(format!("train-{number:05}.ends")), &ends).unwrap();
        entries.push(serde_json::json!({
            "file": file, "tokens": end, "documents": documents.len(), "bytes_of_text": 3 * end,
            "sha256": sha256(&ids), "ends_sha256": sha256(&ends),
        }));
    }
    let header = serde_json::json!({
        "format_version": 1, "tokenizer_sha256": "ab".repeat(32), "vocab_size": 60_000, "dtype": "u16",
        "end_of_text": 0, "sources": [], "splits": {"train": entries},
    });
    std::fs::write(folder.join("header.json"), header.to_string()).unwrap();
}

/// A folder of documents of 1 to 7 tokens, in two shards; ids count on from `first`, ends of text are 0.
fn domain(work: &TempDir, name: &str, first: u16, count: u16) -> PathBuf {
    let folder = work.path().join(name);
    let mut documents = Vec::new();
    let mut id = first;
    while id < first + count {
        let length = 1 + (id - first) % 7;
        let mut document: Vec<u16> = (id..(id + length).min(first + count)).collect();
        id += length;
        document.push(0);
        documents.push(document);
    }
    let half = documents.len() / 2;
    write(&folder, &[&documents[..half], &documents[half..]]);
    folder
}

fn mix(parts: &[(&str, &Path, f64)], seed: u64, seq: usize) -> Result<Mixture> {
    let open = |(name, path, weight): &(&str, &Path, f64)| {
        Ok((name.to_string(), TokenFolder::open(path)?, *weight))
    };
    Mixture::new(
        parts.iter().map(open).collect::<Result<_>>()?,
        seed,
        seq,
        Split::Train,
    )
}

#[test]
fn a_permutation_takes_every_element_once() {
    for count in [1, 2, 3, 5, 64, 1000, 4097] {
        let order = Permutation::new(count, 7, "x", 3);
        let found: BTreeSet<u64> = (0..count).map(|index| order.at(index)).collect();
        assert_eq!(found, (0..count).collect());
    }
    let order = |seed, name, number| {
        let order = Permutation::new(1000, seed, name, number);
        (0..1000).map(|index| order.at(index)).collect::<Vec<_>>()
    };
    assert_eq!(order(1, "a", 0), order(1, "a", 0));
    for other in [order(2, "a", 0), order(1, "b", 0), order(1, "a", 1)] {
        let same = order(1, "a", 0)
            .iter()
            .zip(&other)
            .filter(|(a, b)| a == b)
            .count();
        assert!(same < 10, "{same} of 1000 at the same place");
    }
}

#[test]
fn elements_go_anywhere() {
    // How often element i of 5 goes to place j, over seeds: 2,000 each if even.
    let mut counts = [[0u32; 5]; 5];
    for seed in 0..10_000 {
        let order = Permutation::new(5, seed, "x", 0);
        (0..5).for_each(|index| counts[index][order.at(index as u64) as usize] += 1);
    }
    assert!(
        counts
            .iter()
            .flatten()
            .all(|count| (1800..2200).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn a_folder_gives_back_its_tokens_and_documents() {
    let work = TempDir::new().unwrap();
    let folder = work.path().join("a");
    write(
        &folder,
        &[
            &[vec![1, 2, 0], vec![3, 0]],
            &[vec![4, 5, 6, 0]],
            &[vec![7, 0]],
        ],
    );
    let folder = TokenFolder::open(&folder).unwrap();
    assert_eq!(
        (folder.tokens(Split::Train), folder.documents(Split::Train)),
        (11, 4)
    );
    assert_eq!(
        (
            folder.tokens(Split::Validation),
            folder.bytes_of_text(Split::Train)
        ),
        (0, 33)
    );
    let all = [1, 2, 0, 3, 0, 4, 5, 6, 0, 7, 0];
    let ends = [3, 5, 9, 11];
    for start in 0..=11u64 {
        for end in start..=11 {
            assert_eq!(
                folder.ids(Split::Train, start..end).unwrap(),
                all[start as usize..end as usize]
            );
            let expected: Vec<u64> = ends
                .into_iter()
                .filter(|at| *at > start && *at <= end)
                .collect();
            assert_eq!(
                folder.ends(Split::Train, start..end).unwrap(),
                expected,
                "{start}..{end}"
            );
        }
    }
    let documents: Vec<_> = (0..4)
        .map(|number| folder.document(Split::Train, number).unwrap())
        .collect();
    assert_eq!(documents, [0..3, 3..5, 5..9, 9..11]);
    assert!(folder.ids(Split::Train, 5..12).is_err());
    assert!(folder.document(Split::Train, 4).is_err());
}

#[test]
fn damaged_folders_are_named() {
    let work = TempDir::new().unwrap();
    let refused = |name: &str, damage: &dyn Fn(&Path)| {
        let folder = work.path().join(name);
        write(&folder, &[&[vec![1, 2, 0], vec![3, 0]], &[vec![4, 0]]]);
        damage(&folder);
        TokenFolder::open(&folder)
            .map(|folder| folder.ids(Split::Train, 0..7))
            .and_then(|ids| ids)
            .unwrap_err()
    };
    let edit = |folder: &Path, from: &str, to: &str| {
        let path = folder.join("header.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    let cut = refused("cut", &|f| {
        std::fs::write(f.join("train-00001.bin"), [0; 3]).unwrap()
    });
    assert!(
        matches!(&cut, Error::Tokens(TokenError::WrongLength { path, count: 2, width: 2, found: 3 }) if path.ends_with("train-00001.bin")),
        "{cut}"
    );
    let gone = refused("gone", &|f| {
        std::fs::remove_file(f.join("train-00001.bin")).unwrap()
    });
    assert!(
        matches!(&gone, Error::Io { path, .. } if path.ends_with("train-00001.bin")),
        "{gone}"
    );
    let ends = refused("ends", &|f| {
        std::fs::write(f.join("train-00000.ends"), [0; 16]).unwrap()
    });
    assert!(
        matches!(&ends, Error::Tokens(TokenError::WrongLastEnd { path, end: 0, .. }) if path.ends_with("train-00000.ends")),
        "{ends}"
    );
    let ids = refused("ids", &|f| edit(f, "60000", "3"));
    assert!(
        matches!(&ids, Error::Tokens(TokenError::LargeId { path, id: 3, .. }) if path.ends_with("train-00000.bin")),
        "{ids}"
    );
    let none = refused("none", &|f| {
        std::fs::remove_file(f.join("header.json")).unwrap()
    });
    assert!(
        matches!(none, Error::Tokens(TokenError::NotTokenFolder { .. })),
        "{none}"
    );
    let unknown = refused("key", &|f| edit(f, "sources", "sauces"));
    assert!(
        matches!(&unknown, Error::Tokens(TokenError::NotHeader { problem, .. }) if problem.contains("sauces")),
        "{unknown}"
    );
    let version = refused("version", &|f| edit(f, "version\":1", "version\":3"));
    assert_eq!(version.place().key, Some("format_version"), "{version}");
    let maskless = refused("maskless", &|f| edit(f, "version\":1", "version\":2"));
    assert_eq!(
        maskless.place().key,
        Some("splits.train.0.mask"),
        "{maskless}"
    );
    for (name, from, to, wrong, said) in [
        (
            "vocab",
            "60000",
            "70000",
            "vocab_size",
            "1 to 65536 for this dtype",
        ),
        (
            "end",
            "text\":0",
            "text\":60000",
            "end_of_text",
            "an id below 60000 (vocab_size)",
        ),
        (
            "escape",
            "train-00000.bin",
            "../x.bin",
            "splits.train.0.file",
            "train-00000.bin",
        ),
    ] {
        let error = refused(name, &|f| edit(f, from, to));
        assert!(
            matches!(&error, Error::Input(InputError::WrongValue { key, expected, .. }) if key == wrong && expected == said),
            "{error}"
        );
    }
}

#[test]
fn shares_are_exact_in_every_block() {
    let work = TempDir::new().unwrap();
    let (a, b, c) = (
        domain(&work, "a", 1, 300),
        domain(&work, "b", 1000, 200),
        domain(&work, "c", 2000, 100),
    );
    let count = |mixture: &Mixture, first, rows| {
        let mut counts = [0; 3];
        mixture
            .rows(first, rows)
            .unwrap()
            .iter()
            .for_each(|row| counts[row.domain] += 1);
        counts
    };
    let thirds = mix(&[("a", &a, 1.0), ("b", &b, 1.0), ("c", &c, 1.0)], 0, 4).unwrap();
    let tenths = mix(&[("a", &a, 0.9), ("b", &b, 0.1)], 0, 4).unwrap();
    for block in 0..50 {
        assert_eq!(count(&thirds, block * 3, 3), [1, 1, 1]);
        assert_eq!(count(&tenths, block * 10, 10), [9, 1, 0]);
    }
    // Shares that no short block has exactly never drift: these are 100 blocks of 418 rows.
    let odd = mix(
        &[
            ("a", &a, 1.0),
            ("b", &b, std::f64::consts::PI),
            ("c", &c, 0.01),
        ],
        0,
        4,
    )
    .unwrap();
    let found = count(&odd, 0, 41_800);
    let expected = [1.0, std::f64::consts::PI, 0.01]
        .map(|weight| 41_800.0 * weight / (1.01 + std::f64::consts::PI));
    found
        .iter()
        .zip(expected)
        .for_each(|(found, expected)| assert!((*found as f64 - expected).abs() < 1.0, "{found}"));
}

#[test]
fn an_epoch_has_every_row_once_and_the_next_is_shuffled_anew() {
    let work = TempDir::new().unwrap();
    let a = domain(&work, "a", 1, 300);
    let mixture = mix(&[("a", &a, 1.0)], 5, 8).unwrap();
    let rows = mixture.rows_in_epoch(0) as usize;
    let tokens = mixture.folder(0).tokens(Split::Train);
    assert_eq!(rows as u64, (tokens - 1) / 8);
    let epochs: Vec<_> = (0..3)
        .map(|epoch| mixture.rows((epoch * rows) as u64, rows).unwrap())
        .collect();
    for epoch in &epochs {
        let predicted: Vec<u32> = epoch
            .iter()
            .flat_map(|row| row.ids[1..].to_vec())
            .filter(|id| *id != 0)
            .collect();
        let distinct: BTreeSet<u32> = predicted.iter().copied().collect();
        assert_eq!(
            distinct.len(),
            predicted.len(),
            "a token is predicted twice in an epoch"
        );
        assert!(distinct.len() > 280);
    }
    assert_ne!(epochs[0], epochs[1]);
    assert_ne!(epochs[1], epochs[2]);
}

#[test]
fn a_row_depends_on_its_number_alone() {
    let work = TempDir::new().unwrap();
    let (a, b) = (domain(&work, "a", 1, 300), domain(&work, "b", 1000, 200));
    let mixture = mix(&[("a", &a, 0.7), ("b", &b, 0.3)], 9, 6).unwrap();
    let all = mixture.rows(0, 200).unwrap();
    for (first, count) in [(0, 1), (17, 5), (95, 30), (199, 1)] {
        assert_eq!(
            mixture.rows(first, count).unwrap(),
            all[first as usize..first as usize + count]
        );
    }
    let again = mix(&[("a", &a, 0.7), ("b", &b, 0.3)], 9, 6).unwrap();
    assert_eq!(again.rows(0, 200).unwrap(), all);
    let other = mix(&[("a", &a, 0.7), ("b", &b, 0.3)], 10, 6).unwrap();
    assert_ne!(other.rows(0, 200).unwrap(), all);
}

#[test]
fn documents_are_numbered_within_a_row() {
    let work = TempDir::new().unwrap();
    let a = domain(&work, "a", 1, 300);
    for row in mix(&[("a", &a, 1.0)], 1, 20).unwrap().rows(0, 30).unwrap() {
        assert_eq!(
            (row.ids.len(), row.documents.len(), row.documents[0]),
            (21, 21, 0)
        );
        for (ids, documents) in row.ids.windows(2).zip(row.documents.windows(2)) {
            assert_eq!(
                documents[1] - documents[0],
                u32::from(ids[0] == 0),
                "{row:?}"
            );
        }
    }
}

#[test]
fn mixtures_that_make_no_sense_are_refused() {
    let work = TempDir::new().unwrap();
    let (a, b) = (domain(&work, "a", 1, 300), domain(&work, "b", 1000, 200));
    let refused = |parts: &[(&str, &Path, f64)], seq| match mix(parts, 0, seq) {
        Err(Error::Tokens(error)) => error,
        other => panic!("{other:?}"),
    };
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = refused(&[("a", &a, 1.0), ("b", &b, value)], 4);
        assert!(
            matches!(&error, TokenError::Weight { name, .. } if name == "b"),
            "{error}"
        );
    }
    let error = refused(&[("a", &a, 1.0), ("b", &b, 1e-9)], 4);
    assert!(matches!(error, TokenError::SmallWeight { .. }), "{error}");
    let error = refused(&[("a", &a, 1.0), ("a", &b, 1.0)], 4);
    assert!(
        matches!(error, TokenError::RepeatedDomain { .. }),
        "{error}"
    );
    let error = refused(&[("a", &a, 1.0)], 5000);
    assert!(
        matches!(error, TokenError::ShortSplit { seq: 5000, .. }),
        "{error}"
    );
    assert!(matches!(
        refused(&[("a", &a, 1.0)], 0),
        TokenError::NoSequence
    ));
    assert!(matches!(refused(&[], 4), TokenError::NoDomain));
    let header = b.join("header.json");
    let text = std::fs::read_to_string(&header).unwrap();
    std::fs::write(&header, text.replace("abab", "cdcd")).unwrap();
    let error = refused(&[("a", &a, 1.0), ("b", &b, 1.0)], 4);
    assert!(
        matches!(&error, TokenError::MixedTokenizers { path, .. } if *path == b),
        "{error}"
    );
}
