//! The stages of a recipe as `run --dry-run` shows them, with the disk and the time that they take.

use std::collections::BTreeMap;
use std::path::Path;

use bam_convert::checkpoint::output::free_space;
use bam_convert::estimate::{Estimate, Products};
use bam_convert::memory::MachineMemory;
use bam_convert::pipeline::{Forecast, Stage};
use bam_convert::printable::printable;
use bam_convert::table::{self, Align, grouped, quoted};
use serde_json::{Value, json};

use super::estimate::{memory_text, peak, warn_of_memory};
use super::printer::Printer;

/// What stages take of something.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Amount {
    sum: f64,
    /// Whether all of it was measured.
    is_measured: bool,
    /// Whether it is more than that, nobody knows how much.
    is_open: bool,
}

impl Amount {
    /// What the last run of this very stage took, else what is estimated.
    fn of(measured: Option<f64>, estimated: Option<f64>) -> Self {
        let sum = measured.or(estimated);
        Self {
            sum: sum.unwrap_or_default(),
            is_measured: measured.is_some(),
            is_open: sum.is_none(),
        }
    }

    fn total(amounts: impl Iterator<Item = Self>) -> Self {
        let add = |a: Self, b: Self| Self {
            sum: a.sum + b.sum,
            // What is not known says nothing of what is.
            is_measured: a.is_measured && (b.is_measured || b.is_open),
            is_open: a.is_open || b.is_open,
        };
        amounts.fold(
            Self {
                sum: 0.0,
                is_measured: true,
                is_open: false,
            },
            add,
        )
    }

    /// As a person reads it: `~` before what is estimated, `?` where nothing is known.
    fn text(self, show: impl Fn(f64) -> String) -> String {
        let mark = if self.is_measured { "" } else { "~" };
        if !self.is_open {
            format!("{mark}{}", show(self.sum))
        } else if self.sum == 0.0 {
            "?".to_owned()
        } else {
            format!("at least {mark}{}", show(self.sum))
        }
    }
}

/// What a run would do, and what it takes.
pub(super) struct Preview<'a> {
    stages: &'a [Stage],
    forecasts: &'a [Forecast],
    /// Estimated seconds of each.
    seconds: Vec<Option<f64>>,
}

impl<'a> Preview<'a> {
    /// Measures the machine where an estimate needs it.
    pub(super) fn new(stages: &'a [Stage], forecasts: &'a [Forecast]) -> Self {
        let mut peaks = BTreeMap::new();
        let mut peak_of = |products: &Products| {
            *peaks
                .entry((products.gpu, products.half))
                .or_insert_with(|| peak(products))
        };
        let seconds = forecasts.iter().map(|forecast| {
            let work = forecast.estimate.as_ref()?.work.as_ref()?;
            work.seconds(&mut peak_of)
        });
        Self {
            stages,
            forecasts,
            seconds: seconds.collect(),
        }
    }

    /// Stages that would run, by number.
    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.stages.len()).filter(|number| self.forecasts[*number].runs_because.is_some())
    }

    /// Estimated bytes of a stage: of what its command prints only where that is kept.
    fn bytes(&self, number: usize) -> Option<u64> {
        let estimate = self.forecasts[number].estimate.as_ref()?;
        Some(if self.stages[number].outputs.is_empty() {
            0
        } else {
            estimate.bytes
        })
    }

    fn disk(&self, number: usize) -> Amount {
        let forecast = &self.forecasts[number];
        let measured = forecast.last_bytes.filter(|_| forecast.is_measured);
        Amount::of(
            measured.map(|bytes| bytes as f64),
            self.bytes(number).map(|bytes| bytes as f64),
        )
    }

    fn time(&self, number: usize) -> Amount {
        let forecast = &self.forecasts[number];
        Amount::of(
            forecast.last_seconds.filter(|_| forecast.is_measured),
            self.seconds[number],
        )
    }

    /// The stages that would run, with their seconds where anything tells.
    pub(super) fn times(&self) -> impl Iterator<Item = (String, Option<f64>)> {
        self.running().map(|number| {
            let time = self.time(number);
            let seconds = (!time.is_open).then_some(time.sum);
            (self.stages[number].name.clone(), seconds)
        })
    }

    /// The stage that would run and takes most memory of this machine, with the peak in bytes.
    fn largest(&self) -> Option<(&Stage, u64)> {
        let peaks = self.running().filter_map(|number| {
            let estimate = self.forecasts[number].estimate.as_ref()?;
            let estimate = Some(estimate).filter(|estimate| estimate.ranks.is_none())?;
            Some((&self.stages[number], estimate.memory?))
        });
        peaks.max_by_key(|(_, memory)| *memory)
    }

    /// Says so where a stage needs more memory than is available.
    pub(super) fn warn_of_memory(&self, printer: &Printer) {
        if let Some((stage, needed)) = self.largest() {
            warn_of_memory(&format!("stage {}", stage.name), Some(needed), printer);
        }
    }

    fn total(&self, amount: impl Fn(&Self, usize) -> Amount) -> Amount {
        Amount::total(self.running().map(|number| amount(self, number)))
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let stage = |number: usize| {
            let (stage, forecast) = (&self.stages[number], &self.forecasts[number]);
            json!({"stage": stage.name, "command": stage.command, "stdout": stage.stdout, "outputs": stage.outputs,
                   "needs": forecast.needs, "computes": stage.computes(), "runs_because": forecast.runs_because,
                   "resumes": forecast.resumes,
                   "last_seconds": forecast.last_seconds, "last_bytes": forecast.last_bytes,
                   "is_measured": forecast.is_measured,
                   "estimated_seconds": self.seconds[number], "estimated_bytes": self.bytes(number),
                   "estimated_flops": forecast.estimate.as_ref().and_then(Estimate::flops),
                   "estimated_memory_bytes": forecast.estimate.as_ref().and_then(|estimate| estimate.memory),
                   "estimated_ranks": forecast.estimate.as_ref().and_then(|estimate| estimate.ranks),
                   "unknown_because": forecast.unknown_because})
        };
        let [disk, time] = [self.total(Self::disk), self.total(Self::time)];
        let total = json!({"stages": self.running().count(), "bytes": disk.sum, "bytes_are_all": !disk.is_open,
                           "seconds": time.sum, "seconds_are_all": !time.is_open});
        let machine = MachineMemory::now();
        json!({"stages": (0..self.stages.len()).map(stage).collect::<Vec<_>>(), "total": total,
               "machine_memory_bytes": machine.map(|machine| machine.total),
               "available_memory_bytes": machine.map(|machine| machine.available)})
    }

    /// What would be run, as one would type it, and what it takes.
    pub(super) fn text(&self, work: &Path) -> bam_convert::Result<String> {
        let mut text = format!("cd {}\n", printable(&quoted(&work.to_string_lossy())));
        for (stage, forecast) in self.stages.iter().zip(self.forecasts) {
            let why = forecast
                .runs_because
                .as_deref()
                .map_or("does not run".to_owned(), |reason| {
                    format!("runs: {reason}")
                });
            text.push_str(&format!(
                "\n# {}\n",
                printable(&format!("{}: {why}", stage.name))
            ));
            if !forecast.needs.is_empty() {
                text.push_str(&format!(
                    "# needs {}\n",
                    printable(&forecast.needs.join(", "))
                ));
            }
            text.push_str(&format!("{}\n", printable(&typed(stage))));
        }
        text.push('\n');
        self.table()
            .lines()
            .for_each(|line| text.push_str(&format!("# {line}\n")));
        let (all, free) = (self.stages.len(), table::bytes(free_space(work)?));
        let count = self.running().count();
        text.push_str(&format!("# {count} of {all} stages would run"));
        if count > 0 {
            let [disk, time] = [self.total(Self::disk), self.total(Self::time)];
            let (disk, time) = (
                disk.text(|bytes| table::bytes(bytes as u64)),
                time.text(table::duration),
            );
            text.push_str(&format!("; {disk} of disk; {time} one after the other"));
        }
        text.push_str(&format!("; {free} of disk are free\n"));
        if let Some((stage, needed)) = self.largest() {
            let (stage, memory) = (printable(&stage.name), memory_text(needed));
            text.push_str(&format!("# memory: {memory}, in {stage}\n"));
        }
        Ok(text)
    }

    /// The stages that would run with what they take.
    fn table(&self) -> String {
        let row = |number: usize| {
            let forecast = &self.forecasts[number];
            let estimate = forecast.estimate.as_ref();
            let flops = estimate.and_then(Estimate::flops);
            let memory = estimate.and_then(memory_column);
            let (disk, time) = (self.disk(number), self.time(number));
            let problem = forecast
                .unknown_because
                .as_deref()
                .filter(|_| disk.is_open || time.is_open);
            vec![
                self.stages[number].name.clone(),
                disk.text(|bytes| table::bytes(bytes as u64)),
                time.text(table::duration),
                memory.unwrap_or_default(),
                flops
                    .map(|flops| format!("~{}", table::number(flops)))
                    .unwrap_or_default(),
                problem.unwrap_or_default().to_owned(),
            ]
        };
        let columns = [
            ("stage", Align::Left),
            ("disk", Align::Right),
            ("time", Align::Right),
            ("memory", Align::Right),
            ("FLOPs", Align::Right),
            ("", Align::Left),
        ];
        match self.running().next() {
            Some(_) => table::render(&columns, self.running().map(row)),
            None => String::new(),
        }
    }
}

/// A stage's command for a shell.
fn typed(stage: &Stage) -> String {
    let words = stage.command.iter().map(|word| quoted(word));
    let program = stage.is_own.then(|| "bam-convert".to_owned());
    let words: Vec<String> = program.into_iter().chain(words).collect();
    let stdout = stage
        .stdout
        .iter()
        .map(|file| format!(" > {}", quoted(&file.to_string_lossy())));
    words.join(" ") + &stdout.collect::<String>()
}

/// The memory of a stage, and of how many processes it is.
fn memory_column(estimate: &Estimate) -> Option<String> {
    let memory = table::bytes(estimate.memory?);
    Some(match estimate.ranks {
        Some(ranks) => format!("{} x ~{memory}", grouped(ranks)),
        None => format!("~{memory}"),
    })
}
