//! Configurations of mergekit, and prompts for routers.
#![no_main]

use bam_convert::evaluate::prompts::Prompts;
use bam_convert::mergekit::{MergeFile, MoeFile};
use bam_convert_fuzz::{bounded, file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("mergekit.yaml", data);
    bounded(data.len(), || {
        if let Ok(moe) = MoeFile::read(&path) {
            let _ = (
                moe.gate_mode(),
                moe.prompts(),
                moe.shared_prompts(),
                moe.translate(&|_| Ok(None), &|_| false),
            );
        }
        if let Ok(linear) = MergeFile::read(&path) {
            let _ = linear.translate(&|_| Ok(None));
        }
        let _ = Prompts::read(&path, &["code".to_owned(), "law".to_owned()]);
    });
});
