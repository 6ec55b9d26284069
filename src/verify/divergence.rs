//! How far specialists have moved from their seed, by role and layer, and whether they moved in the same direction.
//!
//! An upcycling averages all weights that experts do not keep apart (BAM, §4.1; BTX, §3.2), and a specialist's distance from
//! the average is its cost. All numbers follow from the inner products of the changes Δ = W − W₀, so each weight is read
//! once, whatever the number of specialists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::diff::DiffOptions;
use super::error::VerifyError;
use super::pieces::{self, Piece};
use crate::checkpoint::TensorEntry;
use crate::checkpoint::folder::Checkpoint;
use crate::family::{Role, TensorSpec};
use crate::printable::printable;
use crate::surgery::{Model, fit};
use crate::table::{self, Align};
use crate::{Error, Result};

/// Values of each model compared in one go. It decides where sums are cut, so it is no setting.
const PIECE_VALUES: u64 = 1 << 15;
/// Specialists compared at once at most: every one of them is compared with every other.
const MOST: usize = 32;

/// A specialist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Specialist {
    /// Its name in tables.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
}

/// How specialists of one seed differ from it and from each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// The seed's folder.
    pub seed: PathBuf,
    /// The specialists in order.
    pub experts: Vec<Specialist>,
    /// Over all weights.
    pub total: DivergenceRow,
    /// By role, over all layers.
    pub roles: Vec<DivergenceRow>,
    /// By role and layer, for the roles that layers have.
    pub layers: Vec<DivergenceRow>,
}

/// What was found of some of the weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DivergenceRow {
    /// The role, as in a format file: `q`, `gate`, …; none for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The layer, counted from 0; none for all, and for roles outside the layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<u64>,
    /// Values of one model.
    pub values: u64,
    /// Each specialist.
    pub experts: Vec<Moved>,
    /// Each pair of specialists.
    pub pairs: Vec<Together>,
}

/// How far one specialist has moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moved {
    /// Its name.
    pub expert: String,
    /// ‖W − W₀‖ / ‖W₀‖; none where the seed is zero and the specialist is not.
    pub relative: Option<f64>,
    /// W·W₀ / (‖W‖ ‖W₀‖); none where one of them is zero.
    pub cosine: Option<f64>,
    /// ‖W̄ − W‖ / ‖W₀‖, where W̄ is the average of the seed and all specialists: how far averaging would move it.
    pub from_average: Option<f64>,
}

/// How two specialists have moved together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Together {
    /// Their names.
    pub experts: [String; 2],
    /// Δₐ·Δ_b / (‖Δₐ‖ ‖Δ_b‖): 1 the same way, 0 unrelated, −1 against each other; none where one of them did not move.
    pub cosine: Option<f64>,
}

/// Opens the seed and its specialists, and refuses models that do not fit together.
fn open(seed: &Path, experts: &[Specialist]) -> Result<Vec<Model>> {
    if experts.is_empty() || experts.len() > MOST {
        return Err(VerifyError::Specialists {
            most: MOST,
            found: experts.len(),
        }
        .into());
    }
    let dense = |name: &str, path: &Path| {
        let model = Model::open(name, path)?;
        if model.architecture.mixture.is_some() {
            let path = path.to_path_buf();
            return Err(Error::from(VerifyError::NotDense { path }));
        }
        Ok(model)
    };
    let mut models = vec![dense("seed", seed)?];
    for expert in experts {
        let model = dense(&expert.name, &expert.path)?;
        fit::check(&models[0], &model)?;
        models.push(model);
    }
    Ok(models)
}

/// Bytes that [`divergence`] will read.
pub fn work_length(seed: &Path, experts: &[Specialist]) -> u64 {
    let paths = std::iter::once(seed).chain(experts.iter().map(|expert| expert.path.as_path()));
    paths
        .filter_map(|path| Some(Checkpoint::open(path).ok()?.data_length()))
        .sum()
}

/// Compares specialists with their seed, all of them dense.
///
/// The result is the same on any number of threads.
///
/// # Errors
/// Where a model cannot be opened, is none of the seed's shape, holds NaN or infinities, or changes while it is read.
pub fn divergence(
    seed: &Path,
    experts: &[Specialist],
    options: &DiffOptions,
) -> Result<Divergence> {
    let models = open(seed, experts)?;
    let mut tensors: Vec<Tensor> = Vec::with_capacity(models[0].specs.len());
    for (number, spec) in models[0].specs.iter().enumerate() {
        // One family and one configuration: the lists of tensors are the same.
        let entries = models
            .iter()
            .map(|model| model.entry(&model.specs[number]))
            .collect::<Result<_>>()?;
        tensors.push(Tensor { spec, entries });
    }
    let pieces = tensors
        .iter()
        .enumerate()
        .flat_map(|(item, tensor)| pieces::cut(item, tensor.entries[0].elements(), PIECE_VALUES));
    let mut sums: BTreeMap<(Role, Option<u64>), Sums> = BTreeMap::new();
    let look = |piece: &Piece, scratch: &mut Scratch| {
        let tensor = &tensors[piece.item];
        let found = sums_of(&models, tensor, piece, scratch)?;
        let read: u64 = tensor
            .entries
            .iter()
            .map(|entry| super::numbers::share(entry, piece))
            .sum();
        (options.progress)(read);
        Ok(found)
    };
    let thread = PIECE_VALUES * 8 * (models.len() as u64 + 2);
    let threads = pieces::affordable(options.threads, options.memory, thread);
    pieces::for_each(pieces, threads, Scratch::default, look, |piece, found| {
        let spec = tensors[piece.item].spec;
        sums.entry((spec.role, spec.layer))
            .or_insert_with(|| Sums::new(experts.len()))
            .add(&found);
    })?;
    models
        .iter()
        .try_for_each(|model| model.source.checkpoint.check_unchanged())?;
    let mut total = Sums::new(experts.len());
    let mut roles: BTreeMap<Role, Sums> = BTreeMap::new();
    for ((role, _), part) in &sums {
        total.add(part);
        roles
            .entry(*role)
            .or_insert_with(|| Sums::new(experts.len()))
            .add(part);
    }
    let names: Vec<&str> = experts.iter().map(|expert| expert.name.as_str()).collect();
    Ok(Divergence {
        seed: seed.to_path_buf(),
        experts: experts.to_vec(),
        total: total.row(None, None, &names),
        roles: roles
            .iter()
            .map(|(role, sums)| sums.row(Some(*role), None, &names))
            .collect(),
        layers: sums
            .iter()
            .filter_map(|((role, layer), sums)| {
                layer.map(|layer| sums.row(Some(*role), Some(layer), &names))
            })
            .collect(),
    })
}

/// One tensor in the seed and in every specialist.
struct Tensor<'a> {
    spec: &'a TensorSpec,
    entries: Vec<&'a TensorEntry>,
}

/// Working space of one thread.
#[derive(Default)]
struct Scratch {
    seed: Vec<f64>,
    deltas: Vec<Vec<f64>>,
    raw: Vec<u8>,
}

/// Inner products over some values.
struct Sums {
    values: u64,
    /// ‖W₀‖².
    seed: f64,
    /// W₀·Δᵢ.
    along: Vec<f64>,
    /// Δᵢ·Δⱼ for j ≤ i, row by row.
    gram: Vec<f64>,
}

fn sums_of(
    models: &[Model],
    tensor: &Tensor,
    piece: &Piece,
    scratch: &mut Scratch,
) -> Result<Sums> {
    let Scratch { seed, deltas, raw } = scratch;
    let count = piece.count as usize;
    let experts = models.len() - 1;
    deltas.resize_with(experts, Vec::new);
    seed.resize(count, 0.0);
    models[0]
        .source
        .checkpoint
        .read_values(tensor.entries[0], piece.first, seed, raw)?;
    let mut sums = Sums::new(experts);
    sums.values = piece.count;
    sums.seed = dot(seed, seed);
    check_finite(sums.seed, &models[0], tensor, 0)?;
    for (number, delta) in deltas.iter_mut().enumerate() {
        delta.resize(count, 0.0);
        models[number + 1].source.checkpoint.read_values(
            tensor.entries[number + 1],
            piece.first,
            delta,
            raw,
        )?;
        delta
            .iter_mut()
            .zip(&*seed)
            .for_each(|(value, seed)| *value -= seed);
        sums.along[number] = dot(seed, delta);
    }
    for row in 0..experts {
        for column in 0..=row {
            sums.gram[place(row, column)] = dot(&deltas[row], &deltas[column]);
        }
        check_finite(
            sums.gram[place(row, row)],
            &models[row + 1],
            tensor,
            row + 1,
        )?;
    }
    Ok(sums)
}

fn check_finite(sum: f64, model: &Model, tensor: &Tensor, number: usize) -> Result<()> {
    if sum.is_finite() {
        return Ok(());
    }
    let path = model.source.checkpoint.files[tensor.entries[number].file].path();
    Err(VerifyError::NotFinite {
        path: path.to_path_buf(),
        tensor: tensor.spec.name.clone(),
    }
    .into())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The index of the product of two changes, for `column <= row`.
fn place(row: usize, column: usize) -> usize {
    row * (row + 1) / 2 + column
}

impl Sums {
    fn new(experts: usize) -> Self {
        Self {
            values: 0,
            seed: 0.0,
            along: vec![0.0; experts],
            gram: vec![0.0; place(experts, 0)],
        }
    }

    fn add(&mut self, other: &Self) {
        self.values += other.values;
        self.seed += other.seed;
        self.along
            .iter_mut()
            .zip(&other.along)
            .for_each(|(sum, part)| *sum += part);
        self.gram
            .iter_mut()
            .zip(&other.gram)
            .for_each(|(sum, part)| *sum += part);
    }

    fn product(&self, a: usize, b: usize) -> f64 {
        self.gram[place(a.max(b), a.min(b))]
    }

    fn row(&self, role: Option<Role>, layer: Option<u64>, names: &[&str]) -> DivergenceRow {
        let experts = names.len();
        let length = self.seed.sqrt();
        let relative = |squared: f64| {
            if squared <= 0.0 {
                return Some(0.0);
            }
            Some(squared.sqrt() / length).filter(|relative| relative.is_finite())
        };
        // W̄ = W₀ + Σ Δ / (n + 1).
        let share = 1.0 / (experts + 1) as f64;
        let along_average =
            |a: usize| share * (0..experts).map(|b| self.product(a, b)).sum::<f64>();
        let average = share * (0..experts).map(along_average).sum::<f64>();
        let moved = |(number, name): (usize, &&str)| {
            let squared = self.product(number, number);
            let whole = self.seed + 2.0 * self.along[number] + squared;
            let cosine = (self.seed + self.along[number]) / (self.seed * whole).sqrt();
            Moved {
                expert: (*name).to_owned(),
                relative: relative(squared),
                cosine: Some(cosine)
                    .filter(|cosine| cosine.is_finite())
                    .map(|cosine| cosine.clamp(-1.0, 1.0)),
                from_average: relative(average - 2.0 * along_average(number) + squared),
            }
        };
        let pairs = (0..experts).flat_map(|a| (a + 1..experts).map(move |b| (a, b)));
        let together = |(a, b): (usize, usize)| {
            let cosine = self.product(a, b) / (self.product(a, a) * self.product(b, b)).sqrt();
            Together {
                experts: [names[a].to_owned(), names[b].to_owned()],
                cosine: Some(cosine)
                    .filter(|cosine| cosine.is_finite())
                    .map(|cosine| cosine.clamp(-1.0, 1.0)),
            }
        };
        DivergenceRow {
            role: role.map(|role| role.to_string()),
            layer,
            values: self.values,
            experts: names.iter().enumerate().map(moved).collect(),
            pairs: pairs.map(together).collect(),
        }
    }
}

impl Divergence {
    /// By role; then for each specialist the layers down and their roles across.
    pub fn table(&self) -> String {
        let mut heads = vec!["role".to_owned()];
        for expert in &self.experts {
            heads.extend([
                format!("{} moved", expert.name),
                "cosine".to_owned(),
                "from average".to_owned(),
            ]);
        }
        heads.extend(self.total.pairs.iter().map(|pair| pair.experts.join(" · ")));
        let rows = self.roles.iter().chain([&self.total]).map(|row| {
            let mut cells = vec![row.role.clone().unwrap_or_else(|| "all".to_owned())];
            for moved in &row.experts {
                cells.extend([
                    percent(moved.relative),
                    number(moved.cosine, 5),
                    percent(moved.from_average),
                ]);
            }
            cells.extend(row.pairs.iter().map(|pair| number(pair.cosine, 3)));
            cells
        });
        let mut text = table::facts([("seed".to_owned(), self.seed.display().to_string())]);
        text.push_str(
            "moved: ‖W − W₀‖ / ‖W₀‖; from average: how far averaging moves it; a · b: cosine of two changes\n\n",
        );
        text.push_str(&render(&heads, rows));
        let roles = self.layer_roles();
        for (number, expert) in self.experts.iter().enumerate() {
            text.push_str(&format!("\n{}, by layer\n", printable(&expert.name)));
            let heads: Vec<String> = std::iter::once("layer".to_owned())
                .chain(roles.iter().map(|role| (*role).to_owned()))
                .collect();
            let rows = self
                .grid(&roles, |row| row.experts[number].relative)
                .into_iter();
            let rows = rows.map(|(layer, values)| {
                std::iter::once(layer.to_string())
                    .chain(values.into_iter().map(percent))
                    .collect()
            });
            text.push_str(&render(&heads, rows));
        }
        text
    }

    /// Roles that layers have, in order.
    pub(super) fn layer_roles(&self) -> Vec<&str> {
        let mut roles: Vec<&str> = self
            .layers
            .iter()
            .filter_map(|row| row.role.as_deref())
            .collect();
        roles.dedup();
        roles
    }

    /// Each layer with a value for each role.
    pub(super) fn grid<T: Clone>(
        &self,
        roles: &[&str],
        value: impl Fn(&DivergenceRow) -> Option<T>,
    ) -> Vec<(u64, Vec<Option<T>>)> {
        let mut grid: BTreeMap<u64, Vec<Option<T>>> = BTreeMap::new();
        for row in &self.layers {
            let column = roles
                .iter()
                .position(|role| row.role.as_deref() == Some(*role));
            if let (Some(layer), Some(column)) = (row.layer, column) {
                grid.entry(layer).or_insert_with(|| vec![None; roles.len()])[column] = value(row);
            }
        }
        grid.into_iter().collect()
    }
}

/// The first column to the left, numbers to the right.
fn render(heads: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let align = |number: usize| {
        if number == 0 {
            Align::Left
        } else {
            Align::Right
        }
    };
    let columns: Vec<(&str, Align)> = heads
        .iter()
        .enumerate()
        .map(|(number, head)| (head.as_str(), align(number)))
        .collect();
    table::render(&columns, rows)
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(
        || "–".to_owned(),
        |share| match share {
            0.0 => "0".to_owned(),
            _ => format!("{} %", table::number(100.0 * share)),
        },
    )
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}"))
}
