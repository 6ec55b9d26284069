//! Results of an evaluation, as text and Markdown; token ids.
#![no_main]

use bam_convert::evaluate::logits::read_tokens;
use bam_convert::evaluate::report::EvaluationReport;
use bam_convert_fuzz::{bounded, file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("eval.json", data);
    bounded(data.len(), || {
        let _ = read_tokens(&path);
        if let Ok(report) = EvaluationReport::read(&path) {
            let _ = (report.table(), report.markdown());
        }
    });
});
