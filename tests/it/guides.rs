//! The guides: every block of shell commands in `docs/guides/` works as pasted, with fewer steps and tokens.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use crate::common::binary;

/// What makes a guide's commands quick: the same commands on less data.
const QUICKER: [(&str, &str); 2] = [
    (
        "--steps 50",
        "--steps 1 --batch 1 --seq 32 --validate-every 0",
    ),
    (
        "--context 256 --max-tokens 2048",
        "--context 64 --max-tokens 64",
    ),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The commands of a page's ```` ```bash ```` blocks, in order.
fn commands(page: &str) -> String {
    let mut commands = String::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```bash" => inside = true,
            "```" => inside = false,
            _ if inside => {
                commands.push_str(line);
                commands.push('\n');
            }
            _ => {}
        }
    }
    for (slow, quick) in QUICKER {
        commands = commands.replace(slow, quick);
    }
    commands
}

/// Runs a guide's commands where they say: in a folder with the repository's `recipes` and `fixtures`.
fn run(guide: &str) {
    let page = fs::read_to_string(root().join("docs/guides").join(guide)).unwrap();
    let commands = commands(&page);
    assert!(commands.contains("bam-convert"), "{guide} has no command");

    let folder = tempfile::tempdir().unwrap();
    for name in ["recipes", "fixtures"] {
        symlink(root().join(name), folder.path().join(name)).unwrap();
    }
    let programs = folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    symlink(binary(), programs.join("bam-convert")).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());

    let output = Command::new("bash")
        .args(["-e", "-x", "-c", &commands])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("HOME", folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{guide}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn from_a_seed_to_a_published_bam() {
    run("seed-to-published-bam.md");
}

#[test]
fn for_mergekit_users() {
    run("for-mergekit-users.md");
}

#[test]
fn from_fine_tunes_you_already_have() {
    run("from-fine-tunes-you-already-have.md");
}

#[test]
fn verifying_a_checkpoint() {
    run("verifying-a-checkpoint.md");
}

#[test]
fn on_a_cluster() {
    run("on-a-cluster.md");
}

#[test]
fn each_guide_has_a_test() {
    let tests = include_str!("guides.rs");
    for entry in fs::read_dir(root().join("docs/guides")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(tests.contains(&format!("run(\"{name}\")")), "{name}");
    }
}
