//! What the crates that we build on ask for.

use std::process::Command;

use serde_json::Value;

/// `rust-version` promises a compiler that builds everything. clippy holds our own code to it (`incompatible_msrv`).
#[test]
fn no_dependency_needs_a_newer_compiler() {
    let host = Command::new("rustc")
        .args(["--version", "--verbose"])
        .output()
        .unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    let host = host
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let found = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--filter-platform",
            host,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        found.status.success(),
        "{}",
        String::from_utf8_lossy(&found.stderr)
    );
    let metadata: Value = serde_json::from_slice(&found.stdout).unwrap();
    let ours = version(env!("CARGO_PKG_RUST_VERSION"));
    let newer: Vec<String> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|package| Some((package, package["rust_version"].as_str()?)))
        .filter(|(_, needs)| version(needs) > ours)
        .map(|(package, needs)| format!("{} needs Rust {needs}", package["name"]))
        .collect();
    assert!(newer.is_empty(), "{newer:?}");
}

/// Major and minor number.
fn version(text: &str) -> (u64, u64) {
    let mut numbers = text.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap_or(0))
}
