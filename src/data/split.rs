//! Which documents are trained on, and which are held back.

use std::collections::{HashMap, HashSet};

use super::dedup::{Fingerprints, clusters};
use super::layout::Split;

/// Part of the share held back from which it is full; smaller documents are not searched for to fill the rest.
const FULL: f64 = 0.95;

/// What becomes of each document.
#[derive(Debug)]
pub(super) struct Assignment {
    /// For each document its split, or `None` for a duplicate that is dropped.
    pub splits: Vec<Option<Split>>,
    /// Duplicates dropped.
    pub duplicates: u64,
    /// Clusters of two or more near-duplicates.
    pub clusters: u64,
    /// Documents in them.
    pub clustered: u64,
}

/// Drops duplicates and holds back about `fraction` of the bytes of text; near-duplicates stay together.
///
/// Clusters are taken in the order of their least hash: what is held back depends on what the documents say, not on their
/// order or their files. One cluster is held back at least, if there are two.
pub(super) fn assign(documents: &Fingerprints, fraction: f64) -> Assignment {
    let roots = clusters(&documents.distinct);
    let mut found: HashMap<u32, Cluster> = HashMap::new();
    for (document, root) in documents.distinct.iter().zip(&roots) {
        let cluster = found.entry(*root).or_insert(Cluster {
            root: *root,
            least: u128::MAX,
            bytes: 0,
            documents: 0,
        });
        cluster.least = cluster.least.min(document.exact);
        cluster.bytes += document.bytes;
        cluster.documents += 1;
    }
    let mut clusters: Vec<Cluster> = found.into_values().collect();
    clusters.sort_unstable_by_key(|cluster| cluster.least);
    let total: u64 = clusters.iter().map(|cluster| cluster.bytes).sum();
    let wanted = fraction * total as f64;
    let mut held = HashSet::new();
    let mut bytes = 0;
    for cluster in &clusters {
        if bytes as f64 >= FULL * wanted {
            break;
        }
        if (bytes + cluster.bytes) as f64 <= wanted {
            bytes += cluster.bytes;
            held.insert(cluster.root);
        }
    }
    if held.is_empty() && fraction > 0.0 && clusters.len() > 1 {
        let smallest = clusters
            .iter()
            .min_by_key(|cluster| (cluster.bytes, cluster.least));
        held.extend(smallest.map(|cluster| cluster.root));
    }
    let mut sides = roots.iter().map(|root| {
        if held.contains(root) {
            Split::Validation
        } else {
            Split::Train
        }
    });
    // As many as documents that come first.
    let splits: Vec<Option<Split>> = documents
        .first
        .iter()
        .map(|first| if *first { sides.next() } else { None })
        .collect();
    let several = clusters.iter().filter(|cluster| cluster.documents > 1);
    Assignment {
        splits,
        duplicates: documents.first.iter().filter(|first| !**first).count() as u64,
        clusters: several.clone().count() as u64,
        clustered: several.map(|cluster| cluster.documents).sum(),
    }
}

struct Cluster {
    root: u32,
    least: u128,
    bytes: u64,
    documents: u64,
}
