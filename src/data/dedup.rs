//! Which documents say the same: exactly, or nearly.
//!
//! Two documents are exact duplicates if they differ in white space only. Near-duplicates are found by MinHash over
//! runs of five words: one permutation in 128 bins, empty bins filled from others. Locality-sensitive hashing of four
//! bins at a time finds candidates. Candidates join where the estimated Jaccard similarity is 0.7 or more. Pairs chain
//! into clusters.

use std::collections::HashSet;

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use twox_hash::XxHash3_64;

/// Words of a shingle.
const WORDS: usize = 5;
/// Bins of a signature; one byte of each is kept.
const BINS: usize = 128;
/// Bins that must agree for two documents to be compared.
const BAND: usize = 4;
/// Jaccard similarity from which two documents are near-duplicates.
pub const NEAR: f64 = 0.7;

/// What is remembered of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// The beginning of the SHA-256 of the text with its white space made uniform.
    pub exact: u128,
    /// Bytes of text.
    pub bytes: u64,
    pub signature: [u8; BINS],
}

/// The fingerprint of a text, if it holds more than white space.
pub(super) fn fingerprint(text: &str) -> Option<Fingerprint> {
    fingerprint_by(text, text)
}

/// The fingerprint of a document that is the same where `text` is, and nearly the same where `said` nearly is.
pub(super) fn fingerprint_by(text: &str, said: &str) -> Option<Fingerprint> {
    let mut hash = Sha256::new();
    let mut empty = true;
    for part in text.split_whitespace() {
        if !empty {
            hash.update(b" ");
        }
        hash.update(part);
        empty = false;
    }
    if empty {
        return None;
    }
    let mut exact = [0; 16];
    exact.copy_from_slice(&hash.finalize()[..16]);
    Some(Fingerprint {
        exact: u128::from_be_bytes(exact),
        bytes: text.len() as u64,
        signature: signature(said),
    })
}

/// What is remembered of all documents, in the order in which they were read.
///
/// A document that repeats another keeps one bit only: a packed file can repeat a document many million times.
#[derive(Debug, Default)]
pub(super) struct Fingerprints {
    seen: HashSet<u128>,
    /// Fingerprints of documents that repeat no earlier one.
    pub distinct: Vec<Fingerprint>,
    /// For each document whether it repeats no earlier one.
    pub first: Vec<bool>,
}

impl Fingerprints {
    /// Adds the next document.
    pub fn add(&mut self, document: Fingerprint) {
        let first = self.seen.insert(document.exact);
        self.first.push(first);
        if first {
            self.distinct.push(document);
        }
    }
}

/// For each document, none of which repeats another, the first one of its cluster.
pub(super) fn clusters(documents: &[Fingerprint]) -> Vec<u32> {
    let mut sets = Sets((0..documents.len() as u32).collect());
    for band in (0..BINS).step_by(BAND) {
        let key = |number: u32| {
            let bytes = &documents[number as usize].signature[band..band + BAND];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let mut keyed: Vec<(u32, u32)> = (0..documents.len() as u32)
            .into_par_iter()
            .map(|number| (key(number), number))
            .collect();
        keyed.par_sort_unstable();
        let mut run = 0;
        for at in 1..keyed.len() {
            if keyed[at].0 != keyed[run].0 {
                run = at;
                continue;
            }
            // The first and the one before: in a run of many alike, all meet through them.
            for other in [run, at - 1] {
                let (a, b) = (keyed[other].1, keyed[at].1);
                if sets.root(a) != sets.root(b)
                    && similarity(&documents[a as usize], &documents[b as usize]) >= NEAR
                {
                    sets.join(a, b);
                }
            }
        }
    }
    (0..documents.len() as u32)
        .map(|number| sets.root(number))
        .collect()
}

/// The estimated Jaccard similarity of two documents' shingles.
fn similarity(a: &Fingerprint, b: &Fingerprint) -> f64 {
    let equal = a
        .signature
        .iter()
        .zip(&b.signature)
        .filter(|(a, b)| a == b)
        .count() as f64
        / BINS as f64;
    // One byte of a bin agrees by chance once in 256.
    (equal - 1.0 / 256.0) / (1.0 - 1.0 / 256.0)
}

fn signature(text: &str) -> [u8; BINS] {
    let lower = text.to_lowercase();
    let mut least = [u64::MAX; BINS];
    let mut recent = [0u64; WORDS];
    let mut count = 0;
    let mut take = |shingle: u64| {
        // The upper bits choose the bin, so that the lower ones stay independent of it.
        let bin = (shingle >> 57) as usize;
        least[bin] = least[bin].min(shingle & (u64::MAX >> 7));
    };
    for word in words(&lower) {
        recent[count % WORDS] = XxHash3_64::oneshot(word.as_bytes());
        count += 1;
        if count >= WORDS {
            take((0..WORDS).fold(0, |hash, back| mix(hash ^ recent[(count + back) % WORDS])));
        }
    }
    if count < WORDS {
        // A text of few words is one shingle, and one without any is its characters.
        let all = if count == 0 {
            XxHash3_64::oneshot(lower.as_bytes())
        } else {
            0
        };
        take(
            recent[..count]
                .iter()
                .fold(all, |hash, word| mix(hash ^ word)),
        );
    }
    let mut signature = [0; BINS];
    for (bin, byte) in signature.iter_mut().enumerate() {
        let mut from = bin;
        let mut attempt = 0;
        while least[from] == u64::MAX {
            attempt += 1;
            from = (mix((bin as u64) << 32 | attempt) >> 57) as usize;
        }
        *byte = mix(least[from]) as u8;
    }
    signature
}

/// Runs of letters and digits; characters of scripts without spaces stand alone.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let alone = |c: char| ('\u{2e80}'..='\u{9fff}').contains(&c);
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|run| !run.is_empty())
        .flat_map(move |run| {
            let mut rest = run;
            std::iter::from_fn(move || {
                let first = rest.chars().next()?;
                let length = if alone(first) {
                    first.len_utf8()
                } else {
                    rest.find(alone).unwrap_or(rest.len())
                };
                let (word, after) = rest.split_at(length);
                rest = after;
                Some(word)
            })
        })
}

/// The finaliser of SplitMix64, moved off its fixed point at zero.
fn mix(x: u64) -> u64 {
    let mut x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Disjoint sets; the least member represents each.
struct Sets(Vec<u32>);

impl Sets {
    fn root(&mut self, mut of: u32) -> u32 {
        while self.0[of as usize] != of {
            let above = self.0[self.0[of as usize] as usize];
            self.0[of as usize] = above;
            of = above;
        }
        of
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u64, words: usize) -> String {
        let mut state = seed;
        let mut word = || {
            state = mix(state);
            format!("w{}", state % 5000)
        };
        (0..words).map(|_| word()).collect::<Vec<_>>().join(" ")
    }

    /// `text` with one word in `every` replaced.
    fn changed(text: &str, every: usize) -> String {
        let words = text.split(' ').enumerate();
        words
            .map(|(n, word)| {
                if n % every == every / 2 {
                    format!("other{n}")
                } else {
                    word.to_owned()
                }
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// For each text the first one of its cluster, and `None` for one that repeats an earlier one.
    fn found(texts: &[String]) -> Vec<Option<u32>> {
        let mut documents = Fingerprints::default();
        texts
            .iter()
            .for_each(|text| documents.add(fingerprint(text).unwrap()));
        let mut roots = clusters(&documents.distinct).into_iter();
        let root = |first: &bool| first.then(|| roots.next().unwrap());
        documents.first.iter().map(root).collect()
    }

    #[test]
    fn white_space_makes_no_other_document() {
        let texts = ["a b\n c", " a\tb c ", "a bc"].map(str::to_owned);
        let found = found(&texts);
        assert_eq!((found[0], found[1]), (Some(0), None));
        assert!(found[2].is_some());
        assert_eq!(fingerprint(" \n\t "), None);
    }

    #[test]
    fn similarity_is_near_the_true_one() {
        for seed in 0..20 {
            let a = text(seed, 2000);
            // A replaced word spoils five shingles of its hundred.
            let b = changed(&a, 100);
            let (a, b) = (fingerprint(&a).unwrap(), fingerprint(&b).unwrap());
            let expected = 0.95 / 1.05;
            assert!(
                (similarity(&a, &b) - expected).abs() < 0.12,
                "{}",
                similarity(&a, &b)
            );
        }
    }

    #[test]
    fn near_duplicates_cluster_and_others_do_not() {
        let mut texts: Vec<String> = (0..200)
            .map(|seed| text(seed, 40 + seed as usize * 5))
            .collect();
        let originals = texts.len();
        for number in 0..originals {
            texts.push(changed(&texts[number], 100));
        }
        let found = found(&texts);
        assert_eq!(
            found[..originals],
            (0..originals as u32).map(Some).collect::<Vec<_>>()
        );
        let caught = (originals..texts.len())
            .filter(|at| found[*at] == Some((at - originals) as u32))
            .count();
        assert!(caught >= 195, "{caught} of 200");
    }

    #[test]
    fn short_texts_and_scripts_without_spaces_have_signatures() {
        let found = found(
            &[
                "Yes.",
                "yes",
                "no",
                "!!!",
                "???",
                "天地玄黄宇宙洪荒日月盈昃",
                "天地玄黄宇宙洪荒辰宿列张",
            ]
            .map(str::to_owned),
        );
        assert_eq!(
            found,
            [
                Some(0),
                Some(0),
                Some(2),
                Some(3),
                Some(4),
                Some(5),
                Some(6)
            ]
        );
        assert_eq!(
            words("ab天地c d").collect::<Vec<_>>(),
            ["ab", "天", "地", "c", "d"]
        );
    }
}
