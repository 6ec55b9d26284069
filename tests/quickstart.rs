//! The README's first command, with the binary at hand instead of a release build.

mod common;

use common::{binary, read_json};
use std::path::Path;
use std::process::Command;

#[test]
fn the_quickstart_ends_with_a_verified_mixture() {
    let work = tempfile::TempDir::new().unwrap_or_else(|e| panic!("a temporary folder: {e}"));
    let out = work.path().join("quickstart");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/quickstart.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg(&out).env("BAM_CONVERT", binary());
    let text = common::finish(command).ok().stdout;
    assert!(text.contains("126 of 126 tensors equal to their expressions, bit for bit"), "{text}");
    assert_eq!(
        read_json(out.join("bam/config.json"))["expert_names"],
        serde_json::json!(["seed", "code", "law", "math"])
    );
}
