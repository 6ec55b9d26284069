//! `--version --verbose`: which build this is, for reports of faults.

use std::ffi::OsString;

use bam_convert::model::cpu_features;

/// The features of the crate that change what the program can do, and whether this build has them.
const FEATURES: [(&str, bool); 2] = [
    ("hub", cfg!(feature = "hub")),
    ("cuda", cfg!(feature = "cuda")),
];

/// Whether a line that asks for the version asks for all of it: with `--verbose`, or `-v` alone or among other letters.
pub fn is_detailed(line: &[OsString]) -> bool {
    let mut words = line.iter().skip(1).filter_map(|word| word.to_str());
    words.any(|word| {
        let is_short = word.starts_with('-') && !word.starts_with("--");
        word == "--verbose" || (is_short && word.contains('v'))
    })
}

/// The version, the commit, the features of the crate, and the features of the processor that are in use.
pub fn details() -> String {
    let features = FEATURES.iter().filter(|(_, is_on)| *is_on);
    let rows = [
        ("commit", env!("BAM_CONVERT_BUILD_COMMIT").to_owned()),
        (
            "system",
            format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        ),
        (
            "features",
            listed(features.map(|(name, _)| *name).collect()),
        ),
        ("cpu", listed(cpu_features())),
    ];
    let mut text = format!("bam-convert {}\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in rows {
        text += &format!("{:<10}{value}\n", format!("{name}:"));
    }
    text
}

fn listed(names: Vec<&str>) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(" ")
    }
}
