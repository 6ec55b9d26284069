//! Rows of tokens from several domains by weight, in an order that a seed fixes.
//!
//! Row number `n` is computed from `n` alone. Rows come in blocks; each block holds every domain by its share, in a
//! shuffled order. Within a domain rows are drawn without replacement: all of them once an epoch, shuffled anew in each.

use super::folder::TokenFolder;
use super::layout::Split;
use super::order::Permutation;
use super::token_error::TokenError;
use crate::Result;

/// Longest block in which shares that are fractions (0.9 and 0.1; three thirds) are exact.
const EXACT_BLOCK: u64 = 1000;
/// Shortest block otherwise.
const OTHER_BLOCK: u64 = 64;
/// Longest block: the least share is one row in so many.
const LONGEST_BLOCK: u64 = 100_000;
/// Parts of the whole in which other shares are counted.
const PARTS: u64 = 1 << 32;

/// Domains, their weights, and the order of their rows.
#[derive(Debug)]
pub struct Mixture {
    domains: Vec<Domain>,
    split: Split,
    seed: u64,
    seq: u64,
    shares: Shares,
}

#[derive(Debug)]
struct Domain {
    name: String,
    folder: TokenFolder,
    /// Rows of an epoch.
    rows: u64,
    /// Tokens after them that do not fill another row.
    left: u64,
}

/// A row to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Number of the domain, in the order in which they were given.
    pub domain: usize,
    /// `[seq + 1]` token ids: all but the last go in, all but the first are predicted.
    pub ids: Vec<u32>,
    /// `[seq + 1]`: for each token the number of its document within the row, from 0. An end of text belongs to the
    /// document before it.
    pub documents: Vec<u32>,
    /// `[seq + 1]`: for each token whether it carries loss where it is predicted.
    pub scored: Vec<bool>,
}

impl Mixture {
    /// Mixes `domains` (name, tokens, weight) in rows of `seq` predicted tokens.
    ///
    /// # Errors
    /// No domain, or a name given twice. Weights that are not positive, or less than 1/100,000 of the whole. Folders of
    /// different tokenizers. A domain whose split is too short for a row.
    pub fn new(
        domains: Vec<(String, TokenFolder, f64)>,
        seed: u64,
        seq: usize,
        split: Split,
    ) -> Result<Self> {
        let seq = seq as u64;
        let Some((first_name, first, _)) = domains.first() else {
            return Err(TokenError::NoDomain.into());
        };
        if seq == 0 {
            return Err(TokenError::NoSequence.into());
        }
        for (number, (name, folder, weight)) in domains.iter().enumerate() {
            if domains[..number].iter().any(|(other, ..)| other == name) {
                let name = name.clone();
                return Err(TokenError::RepeatedDomain { name }.into());
            }
            if !(weight.is_finite() && *weight > 0.0) {
                return Err(TokenError::Weight {
                    name: name.clone(),
                    weight: *weight,
                }
                .into());
            }
            if folder.tokenizer_sha256() != first.tokenizer_sha256() {
                return Err(TokenError::MixedTokenizers {
                    path: folder.path().to_path_buf(),
                    name: name.clone(),
                    first: first.path().to_path_buf(),
                    first_name: first_name.clone(),
                }
                .into());
            }
            let tokens = folder.tokens(split);
            if tokens < seq + 1 {
                return Err(TokenError::ShortSplit {
                    path: folder.path().to_path_buf(),
                    name: name.clone(),
                    split,
                    tokens,
                    seq,
                }
                .into());
            }
        }

        let weights: Vec<f64> = domains.iter().map(|(_, _, weight)| *weight).collect();
        let shares = Shares::new(&weights)?;
        let domains = domains.into_iter().map(|(name, folder, _)| {
            let predicted = folder.tokens(split) - 1;
            Domain {
                name,
                rows: predicted / seq,
                left: predicted % seq,
                folder,
            }
        });
        Ok(Self {
            domains: domains.collect(),
            split,
            seed,
            seq,
            shares,
        })
    }

    /// The names of the domains, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.domains.iter().map(|domain| domain.name.as_str())
    }

    /// The tokens of a domain.
    pub fn folder(&self, domain: usize) -> &TokenFolder {
        &self.domains[domain].folder
    }

    /// Refuses data that changed since they were opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let mut folders = self.domains.iter().map(|domain| &domain.folder);
        folders.try_for_each(TokenFolder::check_unchanged)
    }

    /// Whether some tokens carry no loss.
    pub fn has_masks(&self) -> bool {
        let mut folders = self.domains.iter().map(|domain| &domain.folder);
        folders.any(|folder| folder.header().has_masks())
    }

    /// Rows of a domain before one comes again.
    pub fn rows_in_epoch(&self, domain: usize) -> u64 {
        self.domains[domain].rows
    }

    /// Rows number `first..first + count`.
    pub fn rows(&self, first: u64, count: usize) -> Result<Vec<Row>> {
        let mut rows = Vec::with_capacity(count);
        let mut block: Option<Block> = None;
        for number in first..first + count as u64 {
            let index = number / self.shares.block;
            let block = match &mut block {
                Some(block) if block.index == index => block,
                other => other.insert(self.shares.block(index, self.seed)),
            };
            let (domain, position) = block.rows[(number % self.shares.block) as usize];
            rows.push(self.row(domain, position)?);
        }
        Ok(rows)
    }

    /// Row number `position` of a domain.
    fn row(&self, number: usize, position: u64) -> Result<Row> {
        let domain = &self.domains[number];
        let (epoch, within) = (position / domain.rows, position % domain.rows);
        let window = Permutation::new(
            domain.rows,
            self.seed,
            &format!("rows {}", domain.name),
            epoch,
        )
        .at(within);
        // The tokens that fill no row would otherwise be the same in every epoch.
        let offset = match self.split {
            Split::Train => Permutation::new(
                domain.left + 1,
                self.seed,
                &format!("offset {}", domain.name),
                epoch,
            )
            .at(0),
            Split::Validation => 0,
        };
        let start = offset + window * self.seq;
        let end = start + self.seq + 1;
        let ids = domain.folder.ids(self.split, start..end)?;
        let scored = domain.folder.scored(self.split, start..end)?;
        let mut documents = vec![0; ids.len()];
        for end in domain.folder.ends(self.split, start..end)? {
            documents[(end - start) as usize..]
                .iter_mut()
                .for_each(|document| *document += 1);
        }
        Ok(Row {
            domain: number,
            ids,
            documents,
            scored,
        })
    }
}

/// How many rows of each domain a block has, in whole numbers.
#[derive(Debug)]
struct Shares {
    /// Rows of a block.
    block: u64,
    /// Share of the domains up to each one, in parts of the whole.
    cumulative: Vec<u64>,
    /// Parts of the whole.
    whole: u64,
}

/// A block's rows: their domain, and their number within it.
struct Block {
    index: u64,
    rows: Vec<(usize, u64)>,
}

impl Shares {
    fn new(weights: &[f64]) -> Result<Self> {
        let sum: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
        let whole = |rows: u64| {
            shares.iter().all(|share| {
                let part = share * rows as f64;
                part > 0.5 && (part - libm::round(part)).abs() < 1e-9 * rows as f64
            })
        };
        let cumulative = |parts: u64| {
            let mut sum = 0.0;
            let upto = shares.iter().map(|share| {
                sum += share;
                (libm::round(sum * parts as f64) as u64).min(parts)
            });
            let mut upto: Vec<u64> = upto.collect();
            if let Some(last) = upto.last_mut() {
                *last = parts;
            }
            upto
        };
        if let Some(rows) = (1..=EXACT_BLOCK).find(|rows| whole(*rows)) {
            return Ok(Self {
                block: rows,
                cumulative: cumulative(rows),
                whole: rows,
            });
        }
        // Two more than one row of the least share, so that rounding the shares cannot leave less than one.
        let least = shares.iter().copied().fold(1.0, f64::min);
        let block = (libm::ceil(1.0 / least) as u64)
            .saturating_add(2)
            .max(OTHER_BLOCK);
        if !(least > 0.0 && block <= LONGEST_BLOCK) {
            return Err(TokenError::SmallWeight {
                share: least,
                most: LONGEST_BLOCK,
            }
            .into());
        }
        Ok(Self {
            block,
            cumulative: cumulative(PARTS),
            whole: PARTS,
        })
    }

    /// Rows of the domains up to `domain` in the first `rows` rows, at the end of a block.
    fn upto(&self, domain: Option<usize>, rows: u64) -> u64 {
        let parts = domain.map_or(0, |domain| self.cumulative[domain]);
        (u128::from(parts) * u128::from(rows) / u128::from(self.whole)) as u64
    }

    /// The rows of block number `index`.
    fn block(&self, index: u64, seed: u64) -> Block {
        let (start, end) = (index * self.block, (index + 1) * self.block);
        let mut sorted = Vec::with_capacity(self.block as usize);
        let mut next = Vec::with_capacity(self.cumulative.len());
        for domain in 0..self.cumulative.len() {
            let before = domain.checked_sub(1);
            let rows = |upto| self.upto(Some(domain), upto) - self.upto(before, upto);
            next.push(rows(start));
            sorted.extend(std::iter::repeat_n(
                domain,
                (rows(end) - rows(start)) as usize,
            ));
        }
        let shuffle = Permutation::new(self.block, seed, "block", index);
        let rows = (0..self.block).map(|position| {
            let domain = sorted[shuffle.at(position) as usize];
            next[domain] += 1;
            (domain, next[domain] - 1)
        });
        Block {
            index,
            rows: rows.collect(),
        }
    }
}
