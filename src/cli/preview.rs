//! `--dry-run`: what a plan would write, grouped by layer, and what it would take.

use std::path::Path;

use bam_convert::checkpoint::dtype;
use bam_convert::checkpoint::output::free_space;
use bam_convert::family::Architecture;
use bam_convert::family::cost;
use bam_convert::memory::MachineMemory;
use bam_convert::surgery::gates::FreshGates;
use bam_convert::surgery::{Plan, PlannedTensor};
use bam_convert::table::{self, Align, counted, grouped};
use bam_convert::{Error, Result};
use serde::Serialize;

use super::estimate::memory_text;

/// A plan as a person or a program looks at it before it runs.
#[derive(Debug, Serialize)]
pub struct Preview {
    method: String,
    settings: serde_json::Map<String, serde_json::Value>,
    /// Tensors of one name pattern and expression.
    groups: Vec<Group>,
    tensors: usize,
    parameters: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    active_parameters: Option<u64>,
    bytes: u64,
    weight_files: usize,
    disk_free_bytes: u64,
    memory_bytes: u64,
    threads: usize,
    /// Peak of the memory of `--check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    check_memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_cache_bytes_per_token: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flops_per_token: Option<u64>,
    /// What the gates of a token sum to before training.
    #[serde(skip_serializing_if = "Option::is_none")]
    gates: Option<FreshGates>,
    /// Why a run at this moment would be refused, though the plan is sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused_now: Option<String>,
}

#[derive(Debug, Serialize)]
struct Group {
    /// Name with the layer number left open.
    name: String,
    /// Tensors of that name.
    count: usize,
    dtype: String,
    shape: Vec<u64>,
    /// What each of them is.
    expression: String,
    bytes: u64,
}

/// Context length for which attention's FLOPs are counted.
const CONTEXT: u64 = 256;

impl Preview {
    /// Looks at a plan; `architecture` adds active parameters, KV cache and FLOPs.
    pub fn new(
        plan: &Plan,
        architecture: Option<&Architecture>,
        out: &Path,
        weight_files: usize,
        memory: u64,
        threads: usize,
    ) -> Result<Self> {
        let report = architecture
            .map(|architecture| cost::Report::new(architecture, CONTEXT))
            .transpose()?;
        Ok(Self {
            method: plan.method.clone(),
            settings: plan.settings.clone(),
            groups: groups(&plan.tensors),
            tensors: plan.tensors.len(),
            parameters: plan.parameters(),
            active_parameters: report.as_ref().map(|report| report.active_parameters),
            bytes: plan.data_length(),
            weight_files,
            disk_free_bytes: free_space(out)?,
            memory_bytes: memory,
            threads,
            check_memory_bytes: None,
            available_memory_bytes: None,
            kv_cache_bytes_per_token: report
                .as_ref()
                .map(|report| report.kv_cache_bytes_per_token),
            flops_per_token: report.as_ref().map(|report| report.flops_per_token),
            gates: None,
            refused_now: None,
        })
    }

    /// The same preview with what the gates of the mixture sum to.
    pub fn with_gates(self, gates: Option<FreshGates>) -> Self {
        Self { gates, ..self }
    }

    /// The same preview with the reason why a run now would be refused.
    pub fn refused(mut self, refusal: Option<Error>) -> Self {
        self.refused_now = refusal.map(|error| error.to_string());
        self
    }

    /// The same preview with the peak of memory of a check after the surgery.
    pub fn checked(mut self, memory: Option<u64>) -> Self {
        self.check_memory_bytes = memory;
        let machine = memory.and_then(|_| MachineMemory::now());
        self.available_memory_bytes = machine.map(|machine| machine.available);
        self
    }

    /// The preview as a table and its totals.
    pub fn table(&self) -> String {
        let columns = [
            ("tensor", Align::Left),
            ("count", Align::Right),
            ("dtype", Align::Left),
            ("shape", Align::Left),
            ("is", Align::Left),
            ("size", Align::Right),
        ];
        let rows = self.groups.iter().map(|group| {
            let (count, shape) = (group.count.to_string(), format!("{:?}", group.shape));
            vec![
                group.name.clone(),
                count,
                group.dtype.clone(),
                shape,
                group.expression.clone(),
                table::bytes(group.bytes),
            ]
        });
        let totals = self.totals().into_iter();
        let totals = totals.map(|(name, value)| (name.to_owned(), value));
        let rows = table::render(&columns, rows);
        format!("{rows}\n{}", table::facts(totals))
    }

    /// The totals with their names.
    fn totals(&self) -> Vec<(&'static str, String)> {
        let files = counted(self.weight_files as u64, "weight file");
        let (size, bytes) = (table::bytes(self.bytes), grouped(self.bytes));
        let threads = counted(self.threads as u64, "thread");
        let memory = table::bytes(self.memory_bytes);
        let parameters = with_active(self.parameters, self.active_parameters);
        let mut totals = vec![
            ("parameters", parameters),
            ("tensors", format!("{} in {files}", self.tensors)),
            ("output", format!("{size} ({bytes} bytes)")),
            ("disk free", table::bytes(self.disk_free_bytes)),
            ("working memory", format!("{memory} on {threads}")),
        ];
        if let Some(bytes) = self.kv_cache_bytes_per_token {
            totals.push(("KV cache", format!("{} bytes a token", grouped(bytes))));
        }
        if let Some(flops) = self.flops_per_token {
            let flops = grouped(flops);
            let compute = format!("{flops} FLOPs a token at {CONTEXT} tokens of context");
            totals.push(("compute", compute));
        }
        if let Some(gates) = &self.gates {
            totals.push(("gates at step 0", gates.to_string()));
        }
        if let Some(bytes) = self.check_memory_bytes {
            totals.push(("check memory", memory_text(bytes)));
        }
        if let Some(refusal) = &self.refused_now {
            totals.push(("refused now", refusal.clone()));
        }
        totals
    }
}

fn with_active(total: u64, active: Option<u64>) -> String {
    match active {
        Some(active) if active != total => {
            format!("{}, {} active", grouped(total), grouped(active))
        }
        _ => grouped(total),
    }
}

/// Tensors that differ by their layer alone, in the order of their first.
fn groups(tensors: &[PlannedTensor]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut places = std::collections::BTreeMap::new();
    for tensor in tensors {
        let layout = &tensor.layout;
        let (name, expression) = (pattern(&layout.name), tensor.expression.to_string());
        let key = (
            name.clone(),
            expression.clone(),
            layout.dtype,
            layout.shape.clone(),
        );
        let place = *places.entry(key).or_insert(groups.len());
        if place == groups.len() {
            let (dtype, shape) = (dtype::name(layout.dtype), layout.shape.clone());
            groups.push(Group {
                name,
                count: 0,
                dtype,
                shape,
                expression,
                bytes: 0,
            });
        }
        groups[place].count += 1;
        groups[place].bytes += layout.length();
    }
    groups
}

/// The name with its first number, which is the layer, left open.
fn pattern(name: &str) -> String {
    let mut open = false;
    let parts = name.split('.').map(|part| {
        let layer = !open && !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        open |= layer;
        if layer { "{l}" } else { part }
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_layer_is_left_open() {
        assert_eq!(
            super::pattern("model.layers.3.mlp.experts.1.up_proj.weight"),
            "model.layers.{l}.mlp.experts.1.up_proj.weight"
        );
        assert_eq!(super::pattern("lm_head.weight"), "lm_head.weight");
    }
}
