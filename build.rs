//! Records the commit for `--version --verbose`.
//!
//! A development build records none: otherwise each commit would compile and link everything again.

use std::path::Path;
use std::process::Command;

/// Sets the commit where neither git nor the crate's own record is there, as in a container's build.
const GIVEN: &str = "BAM_CONVERT_BUILD_COMMIT";
/// What `cargo publish` writes into a crate.
const RECORD: &str = ".cargo_vcs_info.json";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={GIVEN}");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = if is_release { commit() } else { None };
    let commit = commit.unwrap_or_else(|| {
        let missing = if is_release {
            "unknown"
        } else {
            "not recorded in development builds"
        };
        missing.to_owned()
    });
    println!("cargo::rustc-env={GIVEN}={commit}");
}

fn commit() -> Option<String> {
    let given = std::env::var(GIVEN)
        .ok()
        .filter(|commit| !commit.is_empty());
    given.or_else(of_crate).or_else(of_repository)
}

/// The commit of a published crate.
fn of_crate() -> Option<String> {
    let text = std::fs::read_to_string(RECORD).ok()?;
    let (_, after) = text.split_once("\"sha1\"")?;
    after.split('"').nth(1).map(str::to_owned)
}

/// The commit of this repository; a crate inside another repository has none of its own.
fn of_repository() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    // The log grows with each commit, and `HEAD` changes with each branch.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        // Cargo would build again every time for a file that is not there.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let note = if changes.is_empty() {
        ""
    } else {
        ", with changes"
    };
    Some(format!("{commit}{note}"))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
