//! What commands say of themselves before they run: for `run --dry-run`, and for people.

use bam_convert::checkpoint::output::free_space;
use bam_convert::estimate::{Estimate, Products};
use bam_convert::table::{self, grouped};
use bam_convert::train::{Outlook, matmul_peak};
use candle_core::DType;
use serde_json::json;

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
    let device = if products.gpu {
        DeviceName::Cuda
    } else {
        DeviceName::Cpu
    }
    .open()
    .ok()?;
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

/// `train --dry-run`.
pub fn show_training(
    outlook: &Outlook,
    out: &std::path::Path,
    json: bool,
    printer: &Printer,
) -> Outcome {
    let Estimate { bytes, work } = outlook.estimate();
    let seconds = work.and_then(|work| work.seconds(peak));
    let free = free_space(out)?;
    if json {
        let mut value = serde_json::to_value(outlook)?;
        value["bytes"] = json!(bytes);
        value["seconds"] = json!(seconds);
        value["disk_free_bytes"] = json!(free);
        printer.json(&value)?;
        return Ok(Verdict::Yes);
    }
    let time = seconds.map_or("? (this machine lacks the device)".to_owned(), |seconds| {
        format!("~{}", table::duration(seconds))
    });
    let facts = [
        (
            "parameters",
            format!(
                "{}, {} of them trained",
                grouped(outlook.parameters),
                grouped(outlook.trained)
            ),
        ),
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
        (
            "compute",
            format!("{} FLOPs", table::number(outlook.products.flops)),
        ),
        ("time", time),
    ];
    printer.result(&table::facts(
        facts.map(|(name, value)| (name.to_owned(), value)),
    ))?;
    Ok(Verdict::Yes)
}
