//! A run's log as charts.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::axes::Axes;
use super::colours::Colours;
use super::input::{Input, Subject};
use crate::train::metrics::{Detail, Record, Routing, Step};

/// Points of a line; runs longer than that are averaged, or pages would grow without bound.
const POINTS: usize = 600;

/// Charts of a group that a page shows at once; a group with more is closed.
const OPEN: usize = 12;

/// Steps and values.
type Points = Vec<(f64, f64)>;
/// Points by the number of the run.
type ByRun = BTreeMap<usize, Points>;

/// A group of charts of one kind.
#[derive(Debug, Serialize)]
pub(super) struct Group {
    pub(super) title: String,
    /// What is shown, in a sentence.
    pub(super) note: String,
    /// Whether the charts are small ones, several in a row.
    pub(super) small: bool,
    /// Whether the group is closed until a reader opens it.
    pub(super) folded: bool,
    pub(super) charts: Vec<Chart>,
}

/// Lines over steps.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    pub(super) title: String,
    /// Unit of the values.
    pub(super) unit: &'static str,
    pub(super) kind: Kind,
    /// Whether values are best read on a logarithmic axis.
    pub(super) log: bool,
    /// Whether the values are noisy, so that smoothing applies.
    pub(super) noisy: bool,
    /// Names of places along the axis, where it has names instead of steps.
    pub(super) labels: Vec<String>,
    pub(super) series: Vec<Series>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A line for each run.
    Lines,
    /// Shares that sum to one, stacked; a colour is an expert.
    Shares,
    /// Bars side by side, at places with names.
    Bars,
}

/// One line.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    /// The run's number on the page; none of a model that is no run of the page.
    pub(super) run: Option<usize>,
    /// Its colour in CSS.
    pub(super) colour: String,
    pub(super) name: String,
    /// Step and value.
    pub(super) points: Points,
}

/// A run as the page's script needs to know it.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) colour: String,
    pub(super) axes: Axes,
}

/// The subjects in the order of the page.
pub(super) fn runs(input: &Input, colours: &Colours) -> Vec<Run> {
    let run = |(number, subject): (usize, &Subject)| Run {
        name: subject.name.clone(),
        colour: colours.css(&subject.name, number),
        axes: Axes::of(subject),
    };
    input.subjects.iter().enumerate().map(run).collect()
}

/// Every group that has anything to show, those that most readers look for first.
pub(super) fn groups(input: &Input, colours: &Colours) -> Vec<Group> {
    let mut groups = vec![
        losses(input),
        validation_domains(input),
        training_domains(input),
        entropies(input),
    ];
    groups.extend(loads(input));
    groups.extend([
        gradients(input),
        by_role(input, true),
        by_role(input, false),
        speed(input),
    ]);
    for group in &mut groups {
        group
            .charts
            .retain(|chart| chart.series.iter().any(|series| !series.points.is_empty()));
        group.folded |= group.charts.len() > OPEN;
        for chart in &mut group.charts {
            for (number, series) in chart.series.iter_mut().enumerate() {
                series.colour = colours.css(&series.name, series.run.unwrap_or(number));
            }
        }
    }
    groups.retain(|group| !group.charts.is_empty());
    groups
}

fn details(subject: &Subject) -> impl Iterator<Item = &Detail> {
    subject
        .log
        .iter()
        .flatten()
        .filter_map(|record| match record {
            Record::Detail(detail) => Some(detail.as_ref()),
            _ => None,
        })
}

fn group(title: &str, note: &str, small: bool, charts: Vec<Chart>) -> Group {
    Group {
        title: title.to_owned(),
        note: note.to_owned(),
        small,
        folded: false,
        charts,
    }
}

/// A group that only some readers look for.
fn folded(title: &str, note: &str, small: bool, charts: Vec<Chart>) -> Group {
    Group {
        folded: true,
        ..group(title, note, small, charts)
    }
}

/// A line whose colour follows from its name, once all names are known.
fn line(run: usize, name: &str, points: Points) -> Series {
    Series {
        run: Some(run),
        colour: String::new(),
        name: name.to_owned(),
        points: thin(points),
    }
}

/// A chart of a value of every step, a line for each run.
fn of_steps(
    input: &Input,
    title: &str,
    unit: &'static str,
    log: bool,
    value: impl Fn(&Step) -> Option<f64>,
) -> Chart {
    let series = input.subjects.iter().enumerate().map(|(run, subject)| {
        let points = subject
            .steps()
            .filter_map(|step| Some((step.step as f64, value(step)?)));
        line(run, &subject.name, points.collect())
    });
    let series = series.filter(|series| !series.points.is_empty()).collect();
    Chart {
        title: title.to_owned(),
        unit,
        kind: Kind::Lines,
        log,
        noisy: true,
        labels: Vec::new(),
        series,
    }
}

fn losses(input: &Input) -> Group {
    let some = |value: f64| (value != 0.0).then_some(value);
    let charts = vec![
        of_steps(
            input,
            "loss, all that is minimised",
            "nats",
            false,
            |step| Some(step.loss),
        ),
        of_steps(
            input,
            "negative log-likelihood",
            "nats a token",
            false,
            |step| Some(step.nll),
        ),
        of_steps(
            input,
            "load-balancing loss, unweighted",
            "sum over layers",
            false,
            move |step| some(step.load_balance),
        ),
        of_steps(
            input,
            "router z-loss, unweighted",
            "sum over layers",
            false,
            move |step| some(step.z),
        ),
    ];
    group("Loss", "On the batches trained on.", false, charts)
}

fn training_domains(input: &Input) -> Group {
    let names: BTreeSet<&String> = input
        .subjects
        .iter()
        .flat_map(Subject::steps)
        .flat_map(|step| step.domains.keys())
        .collect();
    let chart = |name: &&String| {
        let value = |step: &Step| step.domains.get(*name).map(|domain| domain.nll);
        of_steps(input, name, "nats a token", false, value)
    };
    group(
        "Training loss by domain",
        "Negative log-likelihood of the rows of each domain.",
        true,
        names.iter().map(chart).collect(),
    )
}

fn validation_domains(input: &Input) -> Group {
    let mut lines: BTreeMap<&String, ByRun> = BTreeMap::new();
    for (run, subject) in input.subjects.iter().enumerate() {
        for record in subject.log.iter().flatten() {
            let Record::Validation { step, domains } = record else {
                continue;
            };
            for (name, found) in domains {
                lines
                    .entry(name)
                    .or_default()
                    .entry(run)
                    .or_default()
                    .push((*step as f64, found.perplexity));
            }
        }
    }
    let charts = lines.into_iter().map(|(name, runs)| Chart {
        title: name.clone(),
        unit: "perplexity",
        kind: Kind::Lines,
        log: true,
        noisy: false,
        labels: Vec::new(),
        series: series(input, runs),
    });
    group(
        "Perplexity on held-back text",
        "Measured while training, lower is better.",
        true,
        charts.collect(),
    )
}

fn series(input: &Input, runs: ByRun) -> Vec<Series> {
    let named = |(run, points): (usize, Points)| line(run, &input.subjects[run].name, points);
    runs.into_iter().map(named).collect()
}

type OfDetail = fn(&Detail) -> &[Routing];

/// The two kinds of routers of a log's line.
const ROUTERS: [(&str, OfDetail); 2] = [
    ("feed-forward", |detail| &detail.ffn_routing),
    ("attention", |detail| &detail.attention_routing),
];

fn entropies(input: &Input) -> Group {
    let mut charts = Vec::new();
    for (kind, routers) in ROUTERS {
        let mut lines: BTreeMap<usize, ByRun> = BTreeMap::new();
        for (run, subject) in input.subjects.iter().enumerate() {
            for detail in details(subject) {
                for router in routers(detail) {
                    let line = lines
                        .entry(router.layer)
                        .or_default()
                        .entry(run)
                        .or_default();
                    line.push((detail.step as f64, router.entropy));
                }
            }
        }
        charts.extend(lines.into_iter().map(|(layer, runs)| Chart {
            title: format!("{kind}, layer {layer}"),
            unit: "of the largest",
            kind: Kind::Lines,
            log: false,
            noisy: true,
            labels: Vec::new(),
            series: series(input, runs),
        }));
    }
    let note = "By its largest value: of a feed-forward router's load, 1 is even and 0 a single expert; of a token's attention gates, 1 prefers nobody.";
    folded("Entropy of routers", note, true, charts)
}

/// Where each mixture's routers send tokens: a group for each run and kind of router.
fn loads(input: &Input) -> Vec<Group> {
    let mut groups = Vec::new();
    for (run, subject) in input.subjects.iter().enumerate() {
        for (kind, routers) in ROUTERS {
            let gates = kind == "attention";
            let mut layers: BTreeMap<usize, Vec<Points>> = BTreeMap::new();
            for detail in details(subject) {
                for router in routers(detail) {
                    // Soft attention sends every token everywhere; what tells experts apart is their gate.
                    let values = if gates {
                        &router.mean_gates
                    } else {
                        &router.load
                    };
                    let lines = layers
                        .entry(router.layer)
                        .or_insert_with(|| vec![Vec::new(); values.len()]);
                    for (line, value) in lines.iter_mut().zip(values) {
                        line.push((detail.step as f64, *value));
                    }
                }
            }
            let charts = layers.into_iter().map(|(layer, lines)| Chart {
                title: format!("layer {layer}"),
                unit: if gates { "mean gate" } else { "share" },
                kind: Kind::Shares,
                log: false,
                noisy: false,
                labels: Vec::new(),
                series: lines
                    .into_iter()
                    .enumerate()
                    .map(|(expert, points)| line(run, &expert_name(subject, expert), points))
                    .collect(),
            });
            let note = if gates {
                "Mean gate of each expert."
            } else {
                "Share of the tokens that each expert got."
            };
            groups.push(folded(
                &format!("{kind} routers of {}", subject.name),
                note,
                true,
                charts.collect(),
            ));
        }
    }
    groups
}

fn expert_name(subject: &Subject, expert: usize) -> String {
    subject
        .experts
        .get(expert)
        .cloned()
        .unwrap_or_else(|| format!("expert {expert}"))
}

fn gradients(input: &Input) -> Group {
    let charts = vec![
        of_steps(input, "gradient norm, before clipping", "", true, |step| {
            Some(step.gradient_norm)
        }),
        of_steps(input, "learning rate", "", false, |step| {
            Some(step.learning_rate)
        }),
        of_steps(input, "learning rate of routers", "", false, |step| {
            (step.router_learning_rate != step.learning_rate).then_some(step.router_learning_rate)
        }),
    ];
    folded("Gradients and learning rate", "", false, charts)
}

/// Gradient norms by role, or else update ratios.
fn by_role(input: &Input, gradients: bool) -> Group {
    let mut lines: BTreeMap<&String, ByRun> = BTreeMap::new();
    for (run, subject) in input.subjects.iter().enumerate() {
        for detail in details(subject) {
            for (role, found) in &detail.roles {
                let value = if gradients {
                    found.gradient_norm
                } else {
                    found.update_ratio
                };
                lines
                    .entry(role)
                    .or_default()
                    .entry(run)
                    .or_default()
                    .push((detail.step as f64, value));
            }
        }
    }
    let charts = lines.into_iter().map(|(role, runs)| Chart {
        title: role.replace('_', " "),
        unit: "",
        kind: Kind::Lines,
        log: true,
        noisy: true,
        labels: Vec::new(),
        series: series(input, runs),
    });
    let charts = charts.collect();
    let (title, text) = if gradients {
        (
            "Gradient norm by role",
            "Norm of the gradients of all tensors of a role, before clipping.",
        )
    } else {
        (
            "Update ratio by role",
            "Norm of a step's change by the norm of the weights themselves.",
        )
    };
    folded(title, text, true, charts)
}

fn speed(input: &Input) -> Group {
    let charts = vec![
        of_steps(input, "tokens a second", "tokens/s", false, |step| {
            Some(step.tokens_per_second)
        }),
        of_steps(
            input,
            "share of the machine's peak",
            "of its matrix products",
            false,
            |step| Some(step.peak_share),
        ),
    ];
    folded("Speed", "", false, charts)
}

/// At most [`POINTS`] points, each the mean of as many neighbours.
fn thin(points: Points) -> Points {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let sum = part
            .iter()
            .fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    points.chunks(size).map(mean).collect()
}
