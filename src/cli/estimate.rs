//! What commands say of themselves before they run: for `run --dry-run`, and for people.

use bam_convert::checkpoint::output::free_space;
use bam_convert::estimate::{Estimate, Products};
use bam_convert::memory::{MachineMemory, warning};
use bam_convert::table::{self, grouped};
use bam_convert::train::{Outlook, matmul_peak};
use candle_core::DType;
use serde_json::{Value, json};

use super::device::DeviceName;
use super::printer::Printer;
use super::{Outcome, Verdict};

/// Prints an estimate as `run` reads it.
pub fn print(printer: &Printer, estimate: &Estimate) -> Outcome {
    printer.json(estimate)?;
    Ok(Verdict::Yes)
}

/// The rate of products on this machine, in floating-point operations a second; none where it lacks the device.
pub fn peak(products: &Products) -> Option<f64> {
    let device = match products.gpu {
        Some(number) => DeviceName::Cuda(Some(number)),
        None => DeviceName::Cpu,
    };
    let device = device.open().ok()?;
    matmul_peak(
        &device,
        if products.half {
            DType::BF16
        } else {
            DType::F32
        },
    )
    .ok()
}

/// A peak of memory beside the machine's, for people.
pub fn memory_text(needed: u64) -> String {
    let machine = MachineMemory::now().map(|machine| format!("; {}", machine.text()));
    let needed = table::bytes(needed);
    format!("~{needed} at the peak{}", machine.unwrap_or_default())
}

/// Says so where work needs more memory than is available.
pub fn warn_of_memory(what: &str, needed: Option<u64>, printer: &Printer) {
    if let Some(text) = needed.and_then(|needed| warning(what, needed)) {
        printer.note(&format!(" note: {text}"));
    }
}

/// Seconds for people; none where the machine lacks the device.
fn time_text(seconds: Option<f64>) -> String {
    seconds.map_or("? (this machine lacks the device)".to_owned(), |seconds| {
        format!("~{}", table::duration(seconds))
    })
}

/// An estimate as a program reads it, with the machine's part.
fn with_machine(mut value: Value, seconds: Option<f64>) -> Value {
    let machine = MachineMemory::now();
    value["seconds"] = json!(seconds);
    value["machine_memory_bytes"] = json!(machine.map(|machine| machine.total));
    value["available_memory_bytes"] = json!(machine.map(|machine| machine.available));
    value
}

/// `eval --dry-run`.
pub fn show_evaluation(
    estimate: &Estimate,
    models: usize,
    json: bool,
    printer: &Printer,
) -> Outcome {
    let work = estimate.work.as_ref();
    let seconds = work.and_then(|work| work.seconds(peak));
    warn_of_memory("the evaluation", estimate.memory, printer);
    if json {
        let flops = estimate.flops();
        let value = json!({"models": models, "flops": flops, "memory_bytes": estimate.memory});
        printer.json(&with_machine(value, seconds))?;
        return Ok(Verdict::Yes);
    }
    let flops = estimate.flops();
    let flops = flops.map_or("?".to_owned(), |flops| {
        format!("{} FLOPs", table::number(flops))
    });
    let time = match work {
        Some(_) => time_text(seconds),
        // Nothing tells how long answers to tasks are.
        None => "?".to_owned(),
    };
    let facts = [
        ("models", models.to_string()),
        ("memory", memory_text(estimate.memory.unwrap_or_default())),
        ("compute", flops),
        ("time", time),
    ];
    printer.result(&table::facts(
        facts.map(|(name, value)| (name.to_owned(), value)),
    ))?;
    Ok(Verdict::Yes)
}

/// The memory of a run: of each process, where PyTorch shares out the model.
fn memory_of(outlook: &Outlook) -> String {
    let Some(ranks) = outlook.ranks else {
        return memory_text(outlook.memory_bytes);
    };
    format!(
        "~{} in each of {}: {}",
        table::bytes(outlook.memory_bytes),
        table::counted(ranks, "rank"),
        outlook.memory.parts()
    )
}

/// `train --dry-run`.
pub fn show_training(
    outlook: &Outlook,
    out: &std::path::Path,
    json: bool,
    printer: &Printer,
) -> Outcome {
    let Estimate {
        bytes,
        work,
        memory,
        ..
    } = outlook.estimate();
    // What a GPU has left only its driver knows.
    let on_machine = memory.filter(|_| outlook.ranks.is_none() || outlook.products.gpu.is_none());
    let ranks = outlook.ranks.unwrap_or(1);
    let on_machine = on_machine.map(|memory| memory.saturating_mul(ranks));
    warn_of_memory("the run", on_machine, printer);
    if let Some(text) = outlook.disk_warning(out)? {
        printer.note(&format!(" note: {text}"));
    }
    let seconds = work.and_then(|work| work.seconds(peak));
    let free = free_space(out)?;
    if json {
        let mut value = serde_json::to_value(outlook)?;
        value["bytes"] = json!(bytes);
        value["disk_free_bytes"] = json!(free);
        printer.json(&with_machine(value, seconds))?;
        return Ok(Verdict::Yes);
    }
    let facts = [
        (
            "parameters",
            format!(
                "{}, {} of them trained",
                grouped(outlook.parameters),
                grouped(outlook.trained)
            ),
        ),
        ("steps left", grouped(outlook.steps)),
        ("tokens", grouped(outlook.tokens)),
        ("output", table::bytes(outlook.output_bytes)),
        (
            "beside it",
            format!(
                "{} of logs and checkpoints",
                table::bytes(outlook.run_bytes)
            ),
        ),
        ("disk free", table::bytes(free)),
        ("memory", memory_of(outlook)),
        (
            "compute",
            format!("{} FLOPs", table::number(outlook.products.flops)),
        ),
        ("time", time_text(seconds)),
    ];
    printer.result(&table::facts(
        facts.map(|(name, value)| (name.to_owned(), value)),
    ))?;
    Ok(Verdict::Yes)
}
