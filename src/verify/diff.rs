//! `diff`: by how much two checkpoints differ, tensor by tensor and, for a mixture, expert by expert.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::compare::{self, Couple, Means, Sums};
use super::expert_pairs::ExpertPair;
use super::pairs::{Group, Pair, Side};
use super::sides::Sides;
use crate::Result;
use crate::checkpoint::{TensorEntry, views};
use crate::family::Role;

/// Means to compare with.
#[derive(Clone, Copy)]
pub struct DiffOptions<'a> {
    /// Worker threads.
    pub threads: usize,
    /// Working memory in bytes; bounds the threads that work at once.
    pub memory: u64,
    /// Called with each number of bytes compared; [`work_length`] is their sum.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// The numbers by which two tensors of one shape differ.
///
/// Values that are not finite in one of them are counted and left out of everything but `changed`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TensorNumbers {
    /// max |a − b|.
    pub max_abs: f64,
    /// Mean of |a − b|.
    pub mean_abs: f64,
    /// ‖a − b‖ / ‖a‖; none where a is zero and b is not.
    pub relative: Option<f64>,
    /// a·b / (‖a‖ ‖b‖); none where one of them is zero.
    pub cosine: Option<f64>,
    /// Values that differ: in their bytes where the dtype is the same.
    pub changed: u64,
    /// Values of each tensor.
    pub values: u64,
    /// `changed / values`.
    pub changed_fraction: f64,
    /// NaN and infinities in a.
    pub non_finite_a: u64,
    /// NaN and infinities in b.
    pub non_finite_b: u64,
}

/// Two tensors compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Name in a.
    pub name: String,
    /// Name in b, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_b: Option<String>,
    /// The expert that the tensor belongs to: of the mixture b beside a dense model a, otherwise of a.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<u64>,
    /// Dtype or GGML type in a.
    pub dtype_a: String,
    /// Dtype or GGML type in b.
    pub dtype_b: String,
    /// Shape in a.
    pub shape_a: Vec<u64>,
    /// Shape in b.
    pub shape_b: Vec<u64>,
    /// Same dtype, shape and bytes.
    pub equal: bool,
    /// By how much they differ; none where they are equal, have two shapes or hold no plain numbers.
    #[serde(flatten)]
    pub numbers: Option<TensorNumbers>,
}

/// All tensors of one role, and one expert where it has its own, over all layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartDiff {
    /// The expert, counted from 0; none for what all experts share.
    pub expert: Option<u64>,
    /// Its name, where the configuration tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_name: Option<String>,
    /// `attention`, `feed-forward`, `norms`, `embeddings`, `routers`.
    pub part: &'static str,
    /// Role of the tensors: `q`, `gate`, …
    pub role: String,
    /// Tensors compared.
    pub tensors: u64,
    /// Those that are equal.
    pub equal: u64,
    /// ‖a − b‖ / ‖a‖ over all of them that hold numbers; none where that is undefined.
    pub relative: Option<f64>,
    /// max |a − b|.
    pub max_abs: f64,
}

/// A tensor without a counterpart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Single {
    /// Its name.
    pub name: String,
    /// Its dtype or GGML type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// How two checkpoints differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    /// What changes are relative to: the first path, or the dense model where the other one is a mixture.
    pub a: PathBuf,
    /// The other one.
    pub b: PathBuf,
    /// Whether b is a mixture compared with the dense model a, expert by expert.
    pub mixture: bool,
    /// The experts of two mixtures, where their names and not their numbers pair them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<ExpertPair>,
    /// Whether nothing differs.
    pub equal: bool,
    /// Pairs of tensors that are equal.
    pub equal_tensors: usize,
    /// By role and expert, where the configuration tells the roles.
    pub parts: Vec<PartDiff>,
    /// Every pair, by relative change, descending.
    pub tensors: Vec<TensorDiff>,
    /// Tensors that only a has.
    pub only_a: Vec<Single>,
    /// Tensors that only b has.
    pub only_b: Vec<Single>,
    /// Routers of the mixture b: new, because a dense model has none.
    pub new: Vec<Single>,
}

/// Compares two checkpoints: folders or files, sharded or not, of any dtypes.
///
/// The result is the same on any number of threads.
///
/// # Errors
/// Where one of them cannot be opened, or changes while it is read.
pub fn diff(a: &Path, b: &Path, options: &DiffOptions) -> Result<Diff> {
    let Sides {
        a: left,
        b: right,
        mixture,
        experts,
        pairing,
    } = Sides::open(a, b)?;
    let (a, b) = (&left, &right);
    let compared = compare_all(a, b, &pairing.pairs, options)?;

    let names = if mixture { &b.experts } else { &a.experts };
    let parts = parts(&compared, names);
    let mut tensors: Vec<TensorDiff> = compared.iter().map(Outcome::tensor).collect();
    tensors.sort_by(order);
    let (only_a, only_b) = (singles(a, &pairing.only_a), singles(b, &pairing.only_b));
    let new = singles(b, &pairing.new_b);
    let equal_tensors = tensors.iter().filter(|tensor| tensor.equal).count();
    let equal =
        equal_tensors == tensors.len() && only_a.is_empty() && only_b.is_empty() && new.is_empty();
    left.checkpoint.check_unchanged()?;
    right.checkpoint.check_unchanged()?;
    Ok(Diff {
        a: views::shown(&left.checkpoint.path),
        b: views::shown(&right.checkpoint.path),
        mixture,
        experts,
        equal,
        equal_tensors,
        parts,
        tensors,
        only_a,
        only_b,
        new,
    })
}

/// Compares the tensors of each pair: bytes first, then the values of those that need numbers.
fn compare_all<'a>(
    a: &'a Side,
    b: &'a Side,
    pairs: &'a [Pair],
    options: &DiffOptions,
) -> Result<Vec<Outcome<'a>>> {
    let mut all = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let couple = Couple {
            a: (&a.checkpoint, a.checkpoint.tensor(&pair.a)?),
            b: (&b.checkpoint, b.checkpoint.tensor(&pair.b)?),
        };
        all.push((pair, couple, couple.a.1.shape == couple.b.1.shape));
    }
    let comparable = || all.iter().filter(|(_, _, comparable)| *comparable);
    let couples: Vec<Couple> = comparable().map(|(_, couple, _)| *couple).collect();
    let groups: Vec<Option<Group>> = comparable().map(|(pair, _, _)| pair.group).collect();
    let means = Means {
        threads: options.threads,
        memory: options.memory,
        progress: options.progress,
    };

    let equal = compare::equal(&couples, means)?;
    let wanted = wanted(&equal, &groups);
    for (couple, wanted) in couples.iter().zip(&wanted) {
        // Passes that a couple does not need count as done.
        let skipped =
            u64::from(!couple.same_encoding()) + u64::from(!wanted || !couple.is_numeric());
        (options.progress)(skipped * couple.length());
    }
    let sums = compare::sums(&couples, &wanted, means)?;

    let mut outcomes = equal.into_iter().zip(sums);
    let outcome = |(pair, couple, comparable): (&'a Pair, Couple<'a>, bool)| {
        let outcome = if comparable { outcomes.next() } else { None };
        let (equal, sums) = outcome.unwrap_or((false, None));
        Outcome {
            pair,
            a: couple.a.1,
            b: couple.b.1,
            equal,
            sums,
        }
    };
    Ok(all.into_iter().map(outcome).collect())
}

fn singles(side: &Side, names: &[String]) -> Vec<Single> {
    let tensors = &side.checkpoint.tensors;
    names
        .iter()
        .filter_map(|name| Some(single(name, tensors.get(name)?)))
        .collect()
}

/// Bytes that [`diff`] will compare; 0 where one of the two cannot be opened.
pub fn work_length(a: &Path, b: &Path) -> u64 {
    let Ok(sides) = Sides::open(a, b) else {
        return 0;
    };
    let entries = sides.pairing.pairs.iter().filter_map(|pair| {
        Some((
            sides.a.checkpoint.tensors.get(&pair.a)?,
            sides.b.checkpoint.tensors.get(&pair.b)?,
        ))
    });
    // Bytes are compared first and values second.
    entries
        .filter(|(a, b)| a.shape == b.shape)
        .map(|(a, b)| 2 * (a.length + b.length))
        .fold(0, u64::saturating_add)
}

/// Which couples need their numbers: those that differ, and the equal ones that share a row with one of them.
fn wanted(equal: &[bool], groups: &[Option<Group>]) -> Vec<bool> {
    let changed: std::collections::BTreeSet<Group> = equal
        .iter()
        .zip(groups)
        .filter(|(equal, _)| !**equal)
        .filter_map(|(_, group)| *group)
        .collect();
    equal
        .iter()
        .zip(groups)
        .map(|(equal, group)| !equal || group.is_some_and(|group| changed.contains(&group)))
        .collect()
}

/// A pair with what was found.
struct Outcome<'a> {
    pair: &'a Pair,
    a: &'a TensorEntry,
    b: &'a TensorEntry,
    equal: bool,
    sums: Option<Sums>,
}

impl Outcome<'_> {
    fn tensor(&self) -> TensorDiff {
        let Self {
            pair,
            a,
            b,
            equal,
            sums,
        } = self;
        TensorDiff {
            name: pair.a.clone(),
            name_b: (pair.a != pair.b).then(|| pair.b.clone()),
            expert: pair.group.and_then(|group| group.expert),
            dtype_a: a.encoding.to_string(),
            dtype_b: b.encoding.to_string(),
            shape_a: a.shape.clone(),
            shape_b: b.shape.clone(),
            equal: *equal,
            numbers: sums.filter(|_| !equal).map(|sums| numbers(&sums)),
        }
    }
}

fn numbers(sums: &Sums) -> TensorNumbers {
    TensorNumbers {
        max_abs: sums.max_abs,
        mean_abs: sums.sum_abs / sums.finite.max(1) as f64,
        relative: sums.relative(),
        cosine: sums.cosine(),
        changed: sums.changed,
        values: sums.values,
        changed_fraction: sums.changed as f64 / sums.values.max(1) as f64,
        non_finite_a: sums.non_finite_a,
        non_finite_b: sums.non_finite_b,
    }
}

fn single(name: &str, entry: &TensorEntry) -> Single {
    Single {
        name: name.to_owned(),
        dtype: entry.encoding.to_string(),
        shape: entry.shape.clone(),
    }
}

/// What adds up to one row.
#[derive(Default)]
struct Tally {
    tensors: u64,
    equal: u64,
    sums: Sums,
}

/// One row for each role and expert: the experts first, what they share after them.
fn parts(compared: &[Outcome], expert_names: &[String]) -> Vec<PartDiff> {
    let mut groups: BTreeMap<(bool, Group), Tally> = BTreeMap::new();
    for outcome in compared {
        let Some(group) = outcome.pair.group else {
            continue;
        };
        let tally = groups.entry((group.expert.is_none(), group)).or_default();
        tally.tensors += 1;
        tally.equal += u64::from(outcome.equal);
        if let Some(found) = &outcome.sums {
            tally.sums.add(found);
        }
    }
    let row = |(
        (_, Group { expert, role }),
        Tally {
            tensors,
            equal,
            sums,
        },
    ): ((bool, Group), Tally)| {
        let name = expert
            .and_then(|expert| expert_names.get(usize::try_from(expert).ok()?))
            .cloned();
        // Rows of which nothing could be put in numbers have no relative change, not one of zero.
        let known = equal == tensors || sums.values > 0;
        PartDiff {
            expert,
            expert_name: name.filter(|name| !name.is_empty()),
            part: part(role),
            role: role.to_string(),
            tensors,
            equal,
            relative: if known { sums.relative() } else { None },
            max_abs: sums.max_abs,
        }
    };
    groups.into_iter().map(row).collect()
}

fn part(role: Role) -> &'static str {
    match role {
        Role::Q | Role::K | Role::V | Role::O | Role::QNorm | Role::KNorm => "attention",
        Role::Gate | Role::Up | Role::Down => "feed-forward",
        Role::SharedGate | Role::SharedUp | Role::SharedDown | Role::SharedExpertGate => {
            "shared expert"
        }
        Role::AttentionAdapter | Role::FfnAdapter => "adapters",
        Role::Embedding | Role::Head => "embeddings",
        Role::FfnRouter | Role::AttentionRouter => "routers",
        Role::FinalNorm
        | Role::InputNorm
        | Role::PostAttentionNorm
        | Role::PreFeedforwardNorm
        | Role::PostFeedforwardNorm => "norms",
    }
}

/// What cannot be put in numbers first, then the largest relative change, equal tensors last, names as they come.
fn order(x: &TensorDiff, y: &TensorDiff) -> std::cmp::Ordering {
    let rank = |tensor: &TensorDiff| match (tensor.equal, &tensor.numbers) {
        (true, _) => (2, 0.0, 0.0),
        (false, None) => (0, 0.0, 0.0),
        (false, Some(numbers)) => (
            1,
            numbers.relative.unwrap_or(f64::INFINITY),
            numbers.changed_fraction,
        ),
    };
    let (a, b) = (rank(x), rank(y));
    a.0.cmp(&b.0)
        .then(b.1.total_cmp(&a.1))
        .then(b.2.total_cmp(&a.2))
        .then_with(|| x.name.cmp(&y.name))
        .then_with(|| x.name_b.cmp(&y.name_b))
}

impl Diff {
    /// Whether nothing differs: names, dtypes, shapes and bytes.
    pub fn is_equal(&self) -> bool {
        self.equal
    }
}
