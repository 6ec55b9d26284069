//! Scripts for Slurm: whatever a recipe says, nothing but the intended commands and directives comes out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

/// What a value may be made of.
const PIECES: [&str; 20] = [
    "\"",
    "'",
    "\n",
    "\r",
    "\t",
    "$(touch PWNED)",
    "`touch PWNED`",
    ";touch PWNED;",
    "&touch PWNED&",
    "|touch PWNED",
    "\\",
    "#",
    "%j",
    "-x",
    "--wrap=touch",
    " ",
    "\nEND\ntouch PWNED\n",
    "\n#SBATCH --uid=0\n",
    "\u{85}",
    "a",
];
/// Where a value may stand.
const PLACES: [&str; 12] = [
    "work",
    "set",
    "variable",
    "folder",
    "stage",
    "account",
    "constraint",
    "cpus",
    "mem",
    "partition",
    "reservation",
    "time",
];

/// A folder with a link to the binary, and an `sbatch` that records what it is given.
struct Cluster {
    folder: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        // Beside the binary, so that a hard link can lead to it: scripts hold the path of the program that ran.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let cluster = Self { folder };
        fs::create_dir(cluster.path("bin")).unwrap();
        cluster.stub("sbatch", "cat > \"$RECORDED/script\"; for a; do printf '%s\\0' \"$a\"; done > \"$RECORDED/flags\"; echo 1");
        fs::hard_link(crate::common::binary(), cluster.path("bin/bam-convert")).unwrap();
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn stub(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a script with bash, this cluster's programs first.
    fn bash(&self, script: &str) {
        let ran = Command::new("bash")
            .args(["-c", script])
            .current_dir(self.folder.path())
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.path("bin").display()),
            )
            .env("RECORDED", self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{script}\n{}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }

    fn words(&self, name: &str) -> Vec<String> {
        let bytes = fs::read(self.path(name)).unwrap();
        let mut words: Vec<String> = bytes
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8(word.to_vec()).unwrap())
            .collect();
        words.pop();
        words
    }
}

/// The options of a script as sbatch reads them: from the lines before the first command, in sbatch's own quotes.
fn directives(script: &str) -> Vec<String> {
    let head = script
        .lines()
        .take_while(|line| line.starts_with('#') || line.trim().is_empty());
    let mut options = Vec::new();
    for line in head.filter_map(|line| line.strip_prefix("#SBATCH")) {
        let (mut option, mut quote, mut escaped) = (String::new(), None, false);
        for c in line.chars() {
            match (quote, c) {
                _ if escaped => {
                    option.push(c);
                    escaped = false;
                }
                (_, '\\') => escaped = true,
                (Some(open), c) if open == c => quote = None,
                (None, '"' | '\'') => quote = Some(c),
                (None, '#') => break,
                (None, c) if c.is_whitespace() => options.extend(Some(std::mem::take(&mut option))),
                (_, c) => option.push(c),
            }
        }
        options.push(option);
    }
    options.retain(|option| !option.is_empty());
    options
}

/// Whether any file below the folder is called as only an injected command would call it.
fn is_pwned(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let is_folder = entry.file_type().unwrap().is_dir();
        entry.file_name() == "PWNED" || (is_folder && is_pwned(&entry.path()))
    })
}

/// Puts the value into its place of a recipe; what is submitted must be that value, or nothing.
fn check(place: &str, value: &str) {
    let cluster = Cluster::new();
    let at = |wanted: &str, otherwise: &str| match place == wanted {
        true => value.to_owned(),
        false => otherwise.to_owned(),
    };
    let folder = cluster.path(&at("folder", "recipes").replace('/', "-"));
    fs::create_dir_all(&folder).unwrap();
    let mut slurm = json!({"partition": "cpu"});
    if !["work", "set", "variable", "folder", "stage"].contains(&place) {
        slurm[place] = value.into();
    }
    let name = at("stage", "s");
    let recipe = json!({
        "work": at("work", "w"), "variables": {"v": at("variable", "x")}, "slurm": slurm,
        "stages": [{"name": name, "shell": {"command": format!("echo {value}; true ${{v}}")}}],
    });
    let path = folder.join("r.yaml");
    fs::write(&path, recipe.to_string()).unwrap();
    let set = format!("v={}", at("set", "y"));
    let run = crate::common::finish({
        let mut command = Command::new(cluster.path("bin/bam-convert"));
        command
            .arg("run")
            .arg(&path)
            .args(["--executor", "slurm", "--dry-run", "--set", &set])
            .current_dir(cluster.folder.path());
        command
    });
    if run.code == Some(2) {
        assert!(
            run.stdout.is_empty() && run.stderr.contains("error: "),
            "{run}"
        );
        return;
    }
    assert_eq!(run.code, Some(0), "{run}");

    // The submission, and then the job itself, with a program that tells what it was given.
    cluster.bash(&run.stdout);
    assert_eq!(cluster.words("flags"), ["--parsable"]);
    let script = fs::read_to_string(cluster.path("script")).unwrap();
    cluster.stub(
        "bam-convert",
        "for a; do printf '%s\\0' \"$a\"; done > \"$RECORDED/ran\"",
    );
    cluster.bash(&script);
    let work = cluster.path(&at("work", "w")).display().to_string();
    let ran = [
        "run".to_owned(),
        path.display().to_string(),
        format!("--set={set}"),
        "--work".to_owned(),
        work.clone(),
        format!("--only={name}"),
        "--job".to_owned(),
    ];
    assert_eq!(cluster.words("ran"), ran, "{script}");
    assert!(!is_pwned(cluster.folder.path()), "{script}");

    let mut expected = vec![
        format!(
            "--output={}/.bam-run/logs/slurm-%j.out",
            work.replace('%', "%%")
        ),
        "--open-mode=append".to_owned(),
        "--requeue".to_owned(),
    ];
    for (key, value) in slurm.as_object().unwrap() {
        let flag = if key == "cpus" { "cpus-per-task" } else { key };
        expected.push(format!("--{flag}={}", value.as_str().unwrap()));
    }
    let mut found = directives(&script);
    assert!(found[0].starts_with("--job-name="), "{script}");
    found.remove(0);
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{script}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_value_of_a_recipe_becomes_a_command_or_a_directive(
        place in select(&PLACES[..]),
        pieces in proptest::collection::vec(select(&PIECES[..]), 1..4),
    ) {
        check(place, &pieces.concat());
    }
}

#[test]
fn values_that_would_leave_their_quotes_are_refused_or_quoted() {
    for place in ["work", "set", "partition", "time", "stage"] {
        check(place, "w\ntouch PWNED\n#");
        check(place, "x\" --uid=\"0");
    }
    check("set", "a\nEND\ntouch PWNED\n");
    check("folder", "-it's $(touch PWNED)");
    check("work", "100%j of $(touch PWNED) `touch PWNED`");
}

#[test]
fn a_work_folder_that_no_script_can_hold_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("r.yaml");
    for (work, part) in [
        (
            "w\ntouch PWNED\n#",
            "must be a path of printable characters",
        ),
        ("w\" --uid=\"0", "the path holds a quote"),
        ("w\\", "the path holds a quote, a backslash"),
        ("w#", "a `#`"),
    ] {
        let stage = json!({"name": "s", "shell": {"command": "true"}});
        fs::write(
            &recipe,
            json!({"work": work, "stages": [stage]}).to_string(),
        )
        .unwrap();
        let run = crate::common::bam!("run", recipe, "--executor", "slurm", "--dry-run");
        run.refused(2, &["w", part]);
    }
}

#[test]
fn numbers_of_jobs_that_are_none_reach_no_script() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("r.yaml");
    fs::write(
        &recipe,
        "work: w\nstages:\n- name: s\n  shell: {command: \"true\"}\n",
    )
    .unwrap();
    let work = folder.path().join("w");
    fs::create_dir_all(work.join(".bam-run")).unwrap();
    let job = "1;touch PWNED";
    fs::write(
        work.join(".bam-run/jobs.json"),
        json!({"s": job}).to_string(),
    )
    .unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let squeue = bin.join("squeue");
    fs::write(&squeue, format!("#!/bin/sh\necho '{job}|RUNNING|None'\n")).unwrap();
    fs::set_permissions(&squeue, fs::Permissions::from_mode(0o755)).unwrap();
    let run = crate::common::finish({
        let mut command = Command::new(crate::common::binary());
        command.arg("run").arg(&recipe).arg("--work").arg(&work);
        command.args(["--executor", "slurm", "--dry-run"]);
        command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        command
    })
    .ok();
    assert!(
        !run.stdout.contains("PWNED") && run.stdout.contains("job1=$(sbatch --parsable <<"),
        "{run}"
    );
}
