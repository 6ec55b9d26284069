//! `push` against a Hub server on loopback: what arrives, what is sent, what is refused, and what becomes of faults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{
    Noise, Run, bam, contents, copy_folder, edit_json, finish, fixture, read_json, sha256,
};
use hub_server::{Fault, FaultKind, Listener, Options, Request, Role, Server, Transfers};
use serde_json::Value;
use tempfile::TempDir;

const REPOSITORY: &str = "org/name";
/// A large file of the checkpoint.
const EXTRA: &str = "model/extra.npz";

/// A Hub, and a machine with a checkpoint in `model`.
struct World {
    server: Server,
    work: TempDir,
    token: &'static str,
}

impl World {
    fn new() -> Self {
        Self::with(Options::default())
    }

    /// A server with one way of uploading.
    fn over(transfer: &str) -> Self {
        let is = |name| transfer == name;
        let transfers = Transfers {
            basic: is("basic"),
            multipart: is("multipart"),
            xet: is("xet"),
        };
        Self::with(Options {
            transfers,
            part_size: 64 << 10,
            ..Options::default()
        })
    }

    fn with(options: Options) -> Self {
        let server = Server::start(options);
        let work = tempfile::tempdir().unwrap();
        copy_folder(&fixture("llama/seed"), &work.path().join("model"));
        let token = server.token();
        Self {
            server,
            work,
            token,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        crate::common::on_hub(self.work.path(), &self.server.url(), self.token, arguments)
    }

    /// Runs a command; whatever it says, it must not say the token.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Run {
        let run = finish(self.command(arguments));
        assert!(
            self.token.is_empty() || !format!("{}{}", run.stdout, run.stderr).contains(self.token),
            "{run}"
        );
        run
    }

    #[track_caller]
    fn push(&self, more: &[&str]) -> Run {
        self.run(&[&["push", "model", REPOSITORY], more].concat())
    }

    fn requests(&self, method: &str, part: &str) -> Vec<Request> {
        let all = self.server.requests().into_iter();
        all.filter(|request| request.method == method && request.target.contains(part))
            .collect()
    }

    /// Asserts that a revision holds the files of `model`, but for those that are written anew.
    #[track_caller]
    fn assert_pushed(&self, revision: &str) {
        for (path, bytes) in contents(&self.path("model")) {
            if !["README.md", "bam-manifest.json"].contains(&path.as_str())
                && !path.starts_with('.')
            {
                assert_eq!(
                    self.server
                        .file(REPOSITORY, revision, &path)
                        .map(|b| sha256(&b)),
                    Some(sha256(&bytes)),
                    "{path}"
                );
            }
        }
        self.assert_no_secret(revision);
    }

    /// Asserts that no file of a revision holds the token or a path of this machine, and that no other origin has seen it.
    #[track_caller]
    fn assert_no_secret(&self, revision: &str) {
        let work = self.work.path().to_str().unwrap();
        for path in self.server.paths(REPOSITORY, revision) {
            let text =
                String::from_utf8_lossy(&self.server.file(REPOSITORY, revision, &path).unwrap())
                    .into_owned();
            assert!(!text.contains(self.token) && !text.contains(work), "{path}");
        }
        for request in self.server.requests() {
            let told = request
                .headers
                .iter()
                .any(|(_, value)| value.contains(self.token));
            assert!(!told || request.listener == Listener::Hub, "{request:?}");
        }
    }

    /// Adds a file so large that it goes up in several parts, and that connections can be cut in its middle.
    fn enlarge(&self) {
        let mut noise = Noise(7);
        let extra: Vec<u8> = (0..1 << 20).map(|_| noise.word() as u8).collect();
        std::fs::write(self.path(EXTRA), extra).unwrap();
    }
}

// ---------------------------------------------------------------- what arrives

#[test]
fn a_checkpoint_goes_up_over_each_way_and_comes_back_the_same() {
    for (way, method, part) in [
        ("basic", "PUT", "/upload/"),
        ("multipart", "PUT", "/parts/"),
        ("xet", "GET", "/xet-write-token/"),
    ] {
        let world = World::over(way);
        let pushed = world.push(&["--json"]).ok().json();
        assert_eq!(pushed["repository"], REPOSITORY);
        assert_eq!(pushed["new_repository"], true);
        assert_eq!(
            pushed["commit"],
            world.server.head(REPOSITORY, "main").as_str()
        );
        assert_eq!(
            pushed["url"],
            format!(
                "{}/org/name/commit/{}",
                world.server.url(),
                pushed["commit"].as_str().unwrap()
            )
        );
        assert!(
            !world.requests(method, part).is_empty(),
            "{way} was not used"
        );
        world.assert_pushed("main");
        world.run(&["pull", REPOSITORY, "back"]).ok();
        for (path, bytes) in contents(&world.path("model")) {
            assert!(
                path == "README.md"
                    || std::fs::read(world.path("back").join(&path)).unwrap() == bytes,
                "{path}"
            );
        }
    }
}

#[test]
fn only_what_changed_is_sent() {
    let world = World::new();
    world.push(&[]).ok();
    let head = world.server.head(REPOSITORY, "main");
    world.server.forget_requests();
    let again = world.push(&["--json"]).ok().json();
    assert_eq!(
        (&again["url"], &again["sent"], &again["commit"]),
        (&Value::Null, &0.into(), &head.as_str().into())
    );
    assert!(world.requests("POST", "/commit/").is_empty() && world.requests("PUT", "").is_empty());
    assert_eq!(world.server.head(REPOSITORY, "main"), head);
    edit_json(&world.path("model/config.json"), |config| {
        config["rms_norm_eps"] = 2e-6.into()
    });
    let third = world
        .push(&["--json", "--message", "A change\n\nwith reasons"])
        .ok()
        .json();
    let sent = third["files"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|file| file["state"] != "unchanged");
    assert_eq!(
        sent.map(|file| file["path"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["config.json"]
    );
    assert_eq!(
        world.server.messages(REPOSITORY, "main")[0],
        ("A change".to_owned(), "with reasons".to_owned())
    );
    world.assert_pushed("main");
    assert!(world.requests("PUT", "").is_empty());
    // What another branch or repository has sent is not sent again either.
    world.push(&["--revision", "side"]).ok();
    world.run(&["push", "model", "org/other"]).ok();
    assert!(world.requests("PUT", "").is_empty());
    assert_eq!(
        world.server.paths("org/other", "main"),
        world.server.paths(REPOSITORY, "side")
    );
}

#[test]
fn the_weights_of_an_earlier_model_go() {
    let world = World::new();
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    let mut earlier: Vec<(&str, &[u8])> = shards.iter().map(|path| (*path, &b"old"[..])).collect();
    earlier.extend([
        ("bam-manifest.json", &b"{}"[..]),
        ("notes.txt", b"kept"),
        ("onnx/model.onnx", b"kept"),
    ]);
    world.server.put(REPOSITORY, "main", &earlier);
    let preview = world.push(&["--dry-run", "--json"]).ok().json();
    assert_eq!(preview["removed"].as_array().unwrap().len(), 4);
    let run = world.push(&[]).ok();
    assert!(
        run.stderr
            .contains("model-00001-of-00002.safetensors: to remove"),
        "{run}"
    );
    let paths = world.server.paths(REPOSITORY, "main");
    assert!(
        paths
            .iter()
            .all(|path| !shards.contains(&path.as_str()) && path != "bam-manifest.json"),
        "{paths:?}"
    );
    assert!(
        ["notes.txt", "onnx/model.onnx"]
            .iter()
            .all(|path| paths.iter().any(|found| found == path)),
        "{paths:?}"
    );
    world.assert_pushed("main");
    world.run(&["pull", REPOSITORY, "pulled"]).ok();
    world.run(&["validate", "pulled"]).ok();
}

#[test]
fn a_look_changes_nothing() {
    let world = World::new();
    let run = world.push(&["--dry-run"]).ok();
    assert!(
        run.stdout.contains("a new repository") && run.stdout.contains("model.safetensors"),
        "{run}"
    );
    // The card is shown as it would go up.
    assert!(
        run.stdout.contains("README.md:\n\n") && run.stdout.contains("# name"),
        "{run}"
    );
    assert!(world.server.paths(REPOSITORY, "main").is_empty());
    world.push(&[]).ok();
    std::fs::write(world.path("model/notes.txt"), "more").unwrap();
    let head = world.server.head(REPOSITORY, "main");
    let look = world.push(&["--dry-run", "--json"]).ok().json();
    assert_eq!(
        (&look["new_repository"], &look["sent"]),
        (&false.into(), &4.into())
    );
    world.push(&["--dry-run", "--revision", "side"]).ok();
    assert_eq!(world.server.head(REPOSITORY, "side"), "");
    assert_eq!(world.server.head(REPOSITORY, "main"), head);
}

#[test]
fn a_look_needs_no_token_and_says_what_a_push_needs_one_for() {
    let mut world = World::new();
    world.push(&[]).ok();
    std::fs::write(world.path("model/notes.txt"), "more").unwrap();
    world.token = "";
    let look = world.push(&["--dry-run", "--json"]).ok();
    assert!(
        look.stderr
            .contains("no token is set: to push to hf://org/name, set HF_TOKEN"),
        "{look}"
    );
    assert_eq!(look.json()["sent"], 4);
    let new = world.run(&["push", "model", "org/new", "--dry-run"]).ok();
    assert!(new.stdout.contains("a new repository"), "{new}");
    // Only the token says whose repository this is.
    world
        .run(&["push", "model", "name", "--dry-run"])
        .refused(2, &["token", "HF_TOKEN"]);
}

#[test]
fn repositories_branches_and_pull_requests_are_made() {
    let mut world = World::new();
    world.push(&["--private"]).ok();
    assert_eq!(world.server.private(REPOSITORY), Some(true));
    world.push(&["--private"]).ok();
    edit_json(&world.path("model/config.json"), |config| {
        config["rms_norm_eps"] = 2e-6.into()
    });
    let main = world.server.head(REPOSITORY, "main");
    world.push(&["--revision", "v2/x"]).ok();
    world.assert_pushed("v2/x");
    assert_eq!(world.server.head(REPOSITORY, "main"), main);
    // Somebody without write access can propose.
    world.server.set_private(REPOSITORY, false);
    world.token = Role::Outsider.token();
    let run = world.push(&["--create-pr", "--json"]).ok().json();
    assert_eq!(
        run["pull_request"],
        format!("{}/org/name/discussions/1", world.server.url())
    );
    assert_eq!(
        run["commit"],
        world.server.head(REPOSITORY, "refs/pr/1").as_str()
    );
    world.assert_pushed("refs/pr/1");
    assert_eq!(world.server.head(REPOSITORY, "main"), main);
    // What is private must not become public by mistake.
    world.token = world.server.token();
    world
        .push(&["--private"])
        .refused(2, &["expected a private repository", "hint"]);
    // Without an owner, the owner is the token's user.
    world.run(&["push", "model", "mine"]).ok();
    assert!(!world.server.paths("writer/mine", "main").is_empty());
}

#[test]
fn caches_made_of_links_are_pushed_and_what_is_not_complete_is_not() {
    let world = World::new();
    world.push(&[]).ok();
    let folder = world
        .run(&["pull", REPOSITORY])
        .ok()
        .stdout
        .trim()
        .to_owned();
    assert!(std::fs::read_link(Path::new(&folder).join("model.safetensors")).is_ok());
    for name in [".secret", "a.partial", "model.safetensors.incomplete"] {
        std::fs::write(Path::new(&folder).join(name), "x").unwrap();
    }
    std::fs::create_dir(Path::new(&folder).join("notes")).unwrap();
    std::fs::write(Path::new(&folder).join("notes/a.txt"), "").unwrap();
    let run = world.run(&["push", &folder, "org/copy"]).ok();
    for name in [".secret", "a.partial", "model.safetensors.incomplete"] {
        let note = format!(" note: {name}: is not pushed");
        assert!(run.stderr.contains(&note), "{run}");
    }
    let mut expected = world.server.paths(REPOSITORY, "main");
    expected.push("notes/a.txt".to_owned());
    expected.sort();
    assert_eq!(world.server.paths("org/copy", "main"), expected);
    assert_eq!(
        world.server.file("org/copy", "main", "notes/a.txt"),
        Some(Vec::new())
    );
}

#[test]
fn the_repository_may_leave_files_out() {
    let world = World::new();
    world
        .server
        .put(REPOSITORY, "main", &[(".gitignore", b"*.log\n")]);
    std::fs::write(world.path("model/train.log"), "long").unwrap();
    let run = world.push(&[]).ok();
    assert!(run.stderr.contains("train.log: left out"), "{run}");
    assert!(
        !world
            .server
            .paths(REPOSITORY, "main")
            .contains(&"train.log".to_owned())
    );
    world.assert_no_secret("main");
}

#[test]
fn a_gitignore_that_leaves_out_the_model_is_told_before_anything_is_sent() {
    for (patterns, part) in [
        ("*\n", "leaves out every file"),
        ("*.safetensors\n", "leaves out model.safetensors"),
        ("config.json\n", "leaves out config.json"),
    ] {
        let world = World::new();
        let stale: [(&str, &[u8]); 2] = [
            (".gitignore", patterns.as_bytes()),
            ("model-00001-of-00001.safetensors", b"of an earlier model"),
        ];
        world.server.put(REPOSITORY, "main", &stale);
        let head = world.server.head(REPOSITORY, "main");
        for flags in [&[][..], &["--dry-run"]] {
            let run = world.push(flags).refused(2, &[part, "hint"]);
            assert!(!run.stderr.contains("has all of it"), "{run}");
        }
        assert_eq!(world.server.head(REPOSITORY, "main"), head);
        assert!(world.requests("PUT", "").is_empty());
    }
    // What is there already but for a log is not all of it.
    let world = World::new();
    world.push(&[]).ok();
    world
        .server
        .put(REPOSITORY, "main", &[(".gitignore", b"*.log\n")]);
    std::fs::write(world.path("model/train.log"), "long").unwrap();
    let run = world.push(&[]).ok();
    assert!(
        run.stderr.contains("has all of it already but 1 file"),
        "{run}"
    );
}

// ---------------------------------------------------------------- manifest and card

#[test]
fn local_paths_become_repositories_and_the_copy_can_be_checked_against_them() {
    let world = World::new();
    let seed: BTreeMap<_, _> = contents(&fixture("llama/seed"));
    let seed: Vec<(&str, &[u8])> = seed
        .iter()
        .map(|(name, bytes)| (name.as_str(), &bytes[..]))
        .collect();
    let commit = world.server.put("org/seed", "main", &seed);
    let code = copy_folder(&fixture("llama/code"), &world.path("far/code"));
    world.run(&["pull", "org/seed", "seed"]).ok();
    let expert = format!("code={}", code.display());
    let upcycle = [
        "upcycle", "--method", "btx", "--seed", "seed", "--expert", &expert, "--out", "mixture",
        "-q",
    ];
    world.run(&upcycle).ok();
    let before = contents(&world.path("mixture"));
    std::fs::write(world.path("mixture/eval.json"), evaluation("mixture")).unwrap();
    world.run(&["push", "mixture", REPOSITORY]).ok();
    assert!(
        before.iter().all(
            |(name, bytes)| std::fs::read(world.path("mixture").join(name)).unwrap() == *bytes
        )
    );
    world
        .run(&["pull", REPOSITORY, "back", "--include", "*"])
        .ok();
    let manifest = read_json(world.path("back/bam-manifest.json"));
    assert_eq!(
        manifest["sources"][0]["path"],
        format!("hf://org/seed@{commit}")
    );
    assert_eq!(manifest["sources"][1]["path"], "code");
    let card = std::fs::read_to_string(world.path("back/README.md")).unwrap();
    let front = card.split("---").nth(1).unwrap();
    assert!(
        front.contains("base_model:\n- org/seed\n") && !front.contains("code"),
        "{card}"
    );
    for part in [
        "## Lineage",
        &format!("| seed | org/seed | {commit} |"),
        "code (not on the Hub)",
        "## Evaluation",
        "| mixture | 12.500 |",
    ] {
        assert!(card.contains(part), "{part}\n{card}");
    }
    // Its hashes match its files, and sources on the Hub need not be here.
    std::fs::remove_dir_all(world.path("seed")).unwrap();
    let run = world.run(&["validate", "back"]).ok();
    assert!(!run.stdout.contains("fault"), "{run}");
    std::os::unix::fs::symlink(&code, world.path("back-code")).unwrap();
    edit_json(&world.path("back/bam-manifest.json"), |manifest| {
        manifest["sources"][1]["path"] = "../far/code".into()
    });
    world.run(&["validate", "back", "--against"]).ok();
    // Nothing in it is new the next time.
    assert_eq!(
        world
            .run(&["push", "mixture", REPOSITORY, "--json"])
            .ok()
            .json()["sent"],
        0
    );
}

/// A checkpoint that a recipe with absolute paths has made, with files of this program and of its user beside it.
#[test]
fn no_path_of_this_machine_goes_up() {
    let world = World::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let far = |name: &str| elsewhere.path().join(name).display().to_string();
    for name in ["seed", "code"] {
        let folder = copy_folder(&fixture("llama").join(name), Path::new(&far(name)));
        for file in ["config.json", "tokenizer_config.json"] {
            edit_json(&folder.join(file), |value| {
                value["_name_or_path"] = far(name).into()
            });
        }
    }
    std::fs::write(far("text.txt"), "Words of a client. ".repeat(20)).unwrap();
    let work = world.path("here").display().to_string();
    let recipe = format!(
        "work: {work}\nvariables: {{seed: {}, text: {}}}\nstages:\n  \
         - name: text\n    shell: {{command: \"cp {} text.txt # {work}/x\", inputs: \"${{text}}\", outputs: text.txt}}\n  \
         - name: tokens\n    tokenize: {{tokenizer: \"${{seed}}\", paths: \"${{stage.text}}\", validation: 0, out: tokens}}\n  \
         - name: law\n    train: {{checkpoint: \"${{seed}}\", data: {{law: tokens}}, steps: 1, batch: 1, seq: 16, threads: 1, out: law}}\n  \
         - name: mixture\n    upcycle: {{method: btx, seed: \"${{seed}}\", expert: {{code: {}, law: law}}, out: mixture}}\n",
        far("seed"),
        far("text.txt"),
        far("text.txt"),
        far("code"),
    );
    std::fs::write(world.path("recipe.yaml"), recipe).unwrap();
    world.run(&["run", "recipe.yaml"]).ok();
    let mixture = world.path("here/mixture");
    let card = std::fs::read_to_string(mixture.join("README.md")).unwrap();
    assert!(
        card.contains(&far("seed")),
        "the recipe lacks a path\n{card}"
    );
    let data = format!("client={}", far("text.txt"));
    let path = mixture.display().to_string();
    let eval = world.run(&[
        "eval",
        &path,
        "--data",
        &data,
        "--max-tokens",
        "16",
        "--json",
    ]);
    std::fs::write(mixture.join("eval.json"), eval.ok().stdout).unwrap();
    let beside = [
        (
            "README.md",
            format!("{card}\nSee `{}` and {}.\n", far("notes"), far("seed/x")),
        ),
        (
            "run.json",
            format!(
                "{{\"out\": \"{path}\", \"data\": [\"a={}:0.5\"]}}\n",
                far("text.txt")
            ),
        ),
        ("settings.yaml", format!("checkpoint: {}\n", far("seed"))),
        (
            "logs/train.log",
            format!("reading {}\nwrote {path}\n", far("text.txt")),
        ),
        (
            "other.jsonl",
            "{\"from\": \"/mnt/of/another/machine\"}\n".to_owned(),
        ),
    ];
    std::fs::create_dir(mixture.join("logs")).unwrap();
    for (name, text) in &beside {
        std::fs::write(mixture.join(name), text).unwrap();
    }
    let before = contents(&mixture.join("logs"));
    let run = world.run(&["push", "here/mixture", REPOSITORY]).ok();
    for name in [
        "eval.json",
        "run.json",
        "logs/train.log",
        "config.json",
        "README.md",
    ] {
        let note = format!(" note: {name}: goes up without the paths of this machine");
        assert!(run.stderr.contains(&note), "{name}\n{run}");
    }
    assert_eq!(
        contents(&mixture.join("logs")),
        before,
        "the folder itself was changed"
    );
    let private = [
        world.work.path().to_str().unwrap(),
        elsewhere.path().to_str().unwrap(),
        "/mnt/of",
    ];
    let paths = world.server.paths(REPOSITORY, "main");
    assert!(paths.contains(&"logs/train.log".to_owned()), "{paths:?}");
    for path in &paths {
        let bytes = world.server.file(REPOSITORY, "main", path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for place in private {
            assert!(!text.contains(place), "{path} holds {place}");
        }
    }
    // The Hub has a checkpoint whose hashes match its files, and whose recipe names its sources.
    world
        .run(&["pull", REPOSITORY, "back", "--include", "*"])
        .ok();
    world.run(&["validate", "back"]).ok();
    let card = std::fs::read_to_string(world.path("back/README.md")).unwrap();
    assert!(
        card.contains("seed: seed\n") && card.contains("See `notes` and x."),
        "{card}"
    );
    assert_eq!(
        read_json(world.path("back/run.json"))["data"][0],
        "a=text.txt:0.5"
    );
    assert_eq!(
        read_json(world.path("back/eval.json"))["models"][0]["path"],
        "mixture"
    );
    assert_eq!(
        world
            .run(&["push", "here/mixture", REPOSITORY, "--json"])
            .ok()
            .json()["sent"],
        0
    );
}

/// A line of Markdown without its code, which ends at as many backticks as it began with.
fn outside_code(line: &str) -> String {
    let (mut outside, mut rest) = (String::new(), line.replace("\\`", ""));
    while let Some(at) = rest.find('`') {
        let count = rest[at..].chars().take_while(|c| *c == '`').count();
        let fence = "`".repeat(count);
        outside.push_str(&rest[..at]);
        let code = rest[at + count..].to_owned();
        let end = code
            .match_indices(&fence)
            .find(|(end, _)| !code[..*end].ends_with('`') && !code[end + count..].starts_with('`'));
        let (end, _) = end.unwrap_or_else(|| panic!("code without an end: {line}"));
        rest = code[end + count..].to_owned();
    }
    outside + &rest
}

/// Names and settings of strangers' files are text on a card: no HTML, no markup, no cell, no front matter.
#[test]
fn a_card_shows_names_and_does_not_obey_them() {
    const NAME: &str = "<img src=x>|[a](https://evil)`*b*\u{202e}\u{1b}";
    let world = World::new();
    let seed = world.path(NAME);
    copy_folder(&fixture("llama/seed"), &seed);
    let licence = format!(
        "---\nlicense: other\nlicense_name: {}\n---\n",
        Value::from(NAME)
    );
    std::fs::write(seed.join("README.md"), licence).unwrap();
    let expert = format!("code={}", fixture("llama/code").display());
    let line = [
        "upcycle", "--method", "btx", "--expert", &expert, "--out", "mixture", "--seed",
    ];
    world
        .run(&[&line[..], &[seed.to_str().unwrap()]].concat())
        .ok();
    edit_json(&world.path("mixture/bam-manifest.json"), |manifest| {
        manifest["method"] = NAME.into();
    });
    let evaluation = evaluation("mixture")
        .replace("law", "<i>l|w")
        .replace("\"mixture\"", "\"<b>\"");
    std::fs::write(world.path("mixture/eval.json"), evaluation).unwrap();
    world.run(&["push", "mixture", REPOSITORY]).ok();
    let card = world.server.file(REPOSITORY, "main", "README.md").unwrap();
    let card = String::from_utf8(card).unwrap();
    let raw = |c: char| c.is_control() || c == '\u{202e}';
    assert!(!card.lines().any(|line| line.contains(raw)), "{card}");
    let (_, body) = card[4..].split_once("\n---\n").unwrap();
    let mut in_block = false;
    for line in body.lines() {
        in_block ^= line.starts_with("```");
        if in_block || line.starts_with("```") {
            continue;
        }
        let outside = outside_code(line);
        for part in ["<img", "<i>", "<b>", "](https://"] {
            assert!(!outside.contains(part), "{part} in {line}");
        }
    }
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    for line in card.lines().filter(|line| line.starts_with("| seed")) {
        assert_eq!(cells(line), 4, "{line}");
    }
    assert!(card.contains("| &lt;i&gt;l\\|w |"), "{card}");
}

#[test]
fn a_file_that_goes_up_with_its_model_is_in_the_repository() {
    let world = World::new();
    let prompts = "gate_mode: hidden\nexperts:\n- {name: seed, positive_prompts: [a]}\n\
                   - {name: code, positive_prompts: [b]}\n";
    std::fs::write(world.path("prompts.yaml"), prompts).unwrap();
    std::fs::rename(world.path("model"), world.path("seed")).unwrap();
    let code = format!("code={}", fixture("llama/code").display());
    let line =
        "upcycle --method bam --seed seed --router prompts:prompts.yaml --out model --expert";
    let words: Vec<&str> = line.split(' ').chain([code.as_str()]).collect();
    world.run(&words).ok();
    let card = world.push(&["--dry-run", "--json"]).ok().json()["card"].clone();
    let card = card.as_str().unwrap();
    assert!(
        card.contains("router-rows.st (in this repository)")
            && card.contains("| seed | seed (not on the Hub) |"),
        "{card}"
    );
}

/// A result of `eval --json` of the model with this name.
fn evaluation(name: &str) -> String {
    r#"{"context": 512, "models": [{"name": "NAME", "path": "/home/me/NAME", "experts": [], "tasks": [],
        "domains": [{"domain": "law", "perplexity": 12.5, "bits_per_byte": 1.25, "nll": 2.5257, "tokens": 9, "bytes": 20, "windows": 1}],
        "average": {"perplexity": 12.5, "bits_per_byte": 1.25}, "task_average": null}]}"#
        .replace("NAME", name)
}

#[test]
fn a_person_s_card_is_kept_and_one_that_nobody_can_read_is_told() {
    let world = World::new();
    let card = "---\nlicense: mit\nbase_model: somebody/else\n---\n\n# Mine\n";
    std::fs::write(world.path("model/README.md"), card).unwrap();
    std::fs::write(world.path("evaluation"), evaluation("model")).unwrap();
    world.push(&["--evaluation", "evaluation"]).ok();
    let pushed =
        String::from_utf8(world.server.file(REPOSITORY, "main", "README.md").unwrap()).unwrap();
    assert!(
        pushed.starts_with("---\nlicense: mit\nbase_model: somebody/else\nmodel-index:\n")
            && pushed.contains("\n---\n\n# Mine\n")
            && pushed.contains("| model | 12.500 |")
            && !pushed.contains("/home/me"),
        "{pushed}"
    );
    assert_eq!(
        std::fs::read_to_string(world.path("model/README.md")).unwrap(),
        card
    );
    let head = world.server.head(REPOSITORY, "main");
    std::fs::write(world.path("model/README.md"), "---\nlicense: [\n---\n").unwrap();
    world.push(&[]).refused(2, &["README.md"]);
    std::fs::write(world.path("model/README.md"), "---\nlicense: mine\n---\n").unwrap();
    let refusal =
        r#"{"errors": [{"message": "\"license\" must be one of [mit]"}], "warnings": []}"#
            .to_owned();
    world.server.fault(Fault::new(
        Listener::Hub,
        "POST",
        "/validate-yaml",
        FaultKind::Status(200, vec![], refusal),
    ));
    world
        .push(&[])
        .refused(3, &["README.md", "must be one of", "hint"]);
    let answers = |code, text: &str| FaultKind::Status(code, vec![], text.to_owned());
    let refusal = answers(
        400,
        r#"{"errors": [{"message": "\"license\" must be one of [mit]"}], "warnings": []}"#,
    );
    world
        .server
        .fault(Fault::new(Listener::Hub, "POST", "/validate-yaml", refusal));
    let parts = [
        "README.md",
        "400 Bad Request: \"license\" must be one of [mit]\n",
        "correct the lines",
    ];
    world.push(&[]).refused(3, &parts);
    world
        .push(&["--evaluation", "model/config.json"])
        .refused(2, &["expected the result of an evaluation"]);
    // Scores of another model, by its name or by its manifest.
    std::fs::write(world.path("other"), evaluation("other")).unwrap();
    world.push(&["--evaluation", "other"]).refused(
        2,
        &["measures other, but not model", "bam-convert eval model"],
    );
    assert_eq!(world.server.head(REPOSITORY, "main"), head);
    // A Hub that reads no cards takes any.
    world.server.fault(Fault::new(
        Listener::Hub,
        "POST",
        "/validate-yaml",
        answers(404, "{\"detail\": \"Not Found\"}"),
    ));
    world.push(&[]).ok();
    assert_ne!(world.server.head(REPOSITORY, "main"), head);
}

#[test]
fn a_hub_that_tells_less_is_pushed_to() {
    let world = World::with(Options {
        hides_hashes: true,
        ..Options::default()
    });
    // The commit is looked for where the answer does not name it.
    world.server.fault(Fault::new(
        Listener::Hub,
        "POST",
        "/commit/",
        FaultKind::Instead("{}".to_owned()),
    ));
    let pushed = world.push(&["--json"]).ok().json();
    assert_eq!(
        pushed["commit"],
        world.server.head(REPOSITORY, "main").as_str()
    );
    world.assert_pushed("main");
    assert_eq!(world.push(&["--json"]).ok().json()["sent"], 0);
    assert_eq!(world.server.messages(REPOSITORY, "main").len(), 2);
    // Whether others may see it, it must say.
    let about = |body: &str| FaultKind::Status(200, vec![], body.to_owned());
    let after_the_tree =
        |kind| Fault::new(Listener::Hub, "GET", "/api/models/org/name", kind).after(2);
    world.server.fault(after_the_tree(about(
        r#"{"id": "org/name", "visibility": "private"}"#,
    )));
    world.push(&["--private"]).ok();
    world.server.mend();
    world
        .server
        .fault(after_the_tree(about(r#"{"id": "org/name"}"#)));
    world
        .push(&["--private"])
        .refused(3, &["whether the repository is private", "hint"]);
}

#[test]
fn a_mirror_that_takes_nothing_is_told() {
    let world = World::new();
    world
        .server
        .put(REPOSITORY, "main", &[("notes.txt", b"first")]);
    let status = |code| FaultKind::Status(code, vec![], r#"{"detail":"not here"}"#.to_owned());
    for (way, line, kind, said) in [
        (
            "/preupload/",
            &[][..],
            status(404),
            "404 Not Found: not here\n",
        ),
        (
            "/branch/",
            &["--revision", "a/b"],
            status(404),
            "404 Not Found: not here\n hint: this Hub cannot make a branch",
        ),
        (
            "/preupload/",
            &[],
            FaultKind::Status(405, vec![], String::new()),
            "answered 405 Method Not Allowed\n",
        ),
    ] {
        world
            .server
            .fault(Fault::new(Listener::Hub, "POST", way, kind));
        world.push(line).refused(2, &[said, "hint"]);
    }
    world.server.fault(Fault::new(
        Listener::Hub,
        "POST",
        "/repos/create",
        status(405),
    ));
    world
        .run(&["push", "model", "org/new"])
        .refused(2, &["405 Method Not Allowed: not here\n", "mirror"]);
    assert!(world.requests("PUT", "").is_empty());
}

#[test]
fn a_hub_without_pull_requests_says_so_once() {
    let world = World::new();
    world
        .server
        .put(REPOSITORY, "main", &[("notes.txt", b"first")]);
    let none = FaultKind::Status(
        501,
        vec![],
        r#"{"detail": {"error": "no pull requests here"}}"#.to_owned(),
    );
    world
        .server
        .fault(Fault::new(Listener::Hub, "POST", "/commit/", none).always());
    world
        .push(&["--create-pr"])
        .refused(2, &["501", "no pull requests here", "--revision"]);
    assert_eq!(world.requests("POST", "/commit/").len(), 1);
}

// ---------------------------------------------------------------- refusals

#[test]
fn what_must_not_leave_this_machine_does_not() {
    let world = World::new();
    let nothing_sent = || {
        assert!(
            world.requests("POST", "/commit/").is_empty() && world.requests("PUT", "").is_empty()
        );
        assert!(world.server.paths(REPOSITORY, "main").is_empty());
    };
    // The token, also across two reads.
    let mut text = vec![b'.'; (1 << 20) - 10];
    text.extend_from_slice(world.token.as_bytes());
    std::fs::write(world.path("model/run.sh"), &text).unwrap();
    world.push(&[]).refused(2, &["run.sh", "token", "hint"]);
    nothing_sent();
    std::fs::remove_file(world.path("model/run.sh")).unwrap();
    std::fs::create_dir(world.path("else")).unwrap();
    std::fs::write(world.path("else/key"), "private").unwrap();
    for (target, problem) in [
        ("else", "a link to a folder"),
        ("else/key", "outside of the folder"),
    ] {
        std::os::unix::fs::symlink(world.path(target), world.path("model/link")).unwrap();
        world.push(&[]).refused(2, &["link", problem, "hint"]);
        std::fs::remove_file(world.path("model/link")).unwrap();
    }
    std::fs::write(world.path("model/a\\b"), "").unwrap();
    world.push(&[]).refused(2, &["a repository can have"]);
    std::fs::remove_file(world.path("model/a\\b")).unwrap();
    nothing_sent();
    // A checkpoint with faults.
    edit_json(&world.path("model/config.json"), |config| {
        config["hidden_size"] = 5.into()
    });
    let run = world.push(&[]);
    assert_eq!(run.code, Some(1), "{run}");
    assert!(
        run.stdout.contains("fault") && run.stderr.contains("nothing was pushed"),
        "{run}"
    );
    nothing_sent();
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut world = World::new();
    world
        .run(&["push", "model", "a/b/c"])
        .refused(2, &["a/b/c", "hint"]);
    world
        .run(&["push", "nowhere", REPOSITORY])
        .refused(2, &["nowhere"]);
    world.push(&["--message", " "]).refused(2, &["message"]);
    world
        .push(&["--revision", "0123456789012345678901234567890123456789"])
        .refused(2, &["found a commit", "hint"]);
    world
        .run(&["push", "model", "org/name@a", "--revision", "b"])
        .refused(2, &["`a`", "`b`"]);
    world.push(&[]).ok();
    world
        .push(&["--create-pr", "--revision", "missing"])
        .refused(2, &["revision"]);
    world.token = "";
    world
        .run(&["push", "model", "org/new"])
        .refused(2, &["token", "HF_TOKEN"]);
}

#[test]
fn refusals_of_the_hub_are_told_apart() {
    let mut world = World::new();
    for (token, parts) in [
        (Role::Expired.token(), ["401", "HF_TOKEN"]),
        ("hf_wrongwrongwrongwrongwrongwrongwro", ["401", "HF_TOKEN"]),
        (Role::Read.token(), ["403", "write access"]),
    ] {
        world.token = token;
        world.push(&[]).refused(2, &parts);
    }
    world.token = world.server.token();
    world.push(&[]).ok();
    world.token = Role::Read.token();
    world.push(&[]).refused(2, &["403", "write access"]);
    world.token = world.server.token();
    edit_json(&world.path("model/config.json"), |config| {
        config["rms_norm_eps"] = 2e-6.into()
    });
    let full = FaultKind::Status(
        403,
        vec![],
        r#"{"error": "Private repository storage limit reached"}"#.to_owned(),
    );
    world
        .server
        .fault(Fault::new(Listener::Hub, "POST", "/commit/", full));
    world
        .push(&[])
        .refused(3, &["storage limit", "free some space"]);
    let gone = FaultKind::Status(
        404,
        vec![("x-error-code", "RepoNotFound".to_owned())],
        String::new(),
    );
    world
        .server
        .fault(Fault::new(Listener::Hub, "POST", "/preupload/", gone));
    world
        .push(&[])
        .refused(2, &["repository not found", "takes no pushes"]);
    let mut command = world.command(&["push", "model", REPOSITORY]);
    command.env("HF_HUB_OFFLINE", "1");
    finish(command).refused(2, &["HF_HUB_OFFLINE"]);
    let mut command = world.command(&["push", "model", REPOSITORY]);
    command.env("HF_ENDPOINT", "http://127.0.0.1:9");
    finish(command).refused(3, &["the connection failed", "hint"]);
}

// ---------------------------------------------------------------- faults

#[test]
fn somebody_else_s_commit_is_a_conflict() {
    let world = World::new();
    world.push(&[]).ok();
    edit_json(&world.path("model/config.json"), |config| {
        config["rms_norm_eps"] = 2e-6.into()
    });
    let files = vec![("notes.txt".to_owned(), b"theirs".to_vec())];
    let moved = FaultKind::MoveBranch {
        repository: REPOSITORY.to_owned(),
        branch: "main".to_owned(),
        files,
    };
    world
        .server
        .fault(Fault::new(Listener::Hub, "POST", "/commit/", moved));
    world
        .push(&[])
        .refused(2, &["412", "run the command again"]);
    assert_eq!(
        world.server.file(REPOSITORY, "main", "notes.txt"),
        Some(b"theirs".to_vec())
    );
    world.push(&[]).ok();
    world.assert_pushed("main");
    assert_eq!(
        world.server.file(REPOSITORY, "main", "notes.txt"),
        Some(b"theirs".to_vec())
    );
}

#[test]
fn a_commit_whose_answer_is_lost_is_made_once() {
    for kind in [
        FaultKind::LoseAnswer,
        FaultKind::CutUpload(100),
        FaultKind::CutAfter(10),
    ] {
        for more in [&[][..], &["--create-pr"]] {
            let world = World::new();
            world
                .server
                .put(REPOSITORY, "main", &[("notes.txt", b"first")]);
            world
                .server
                .fault(Fault::new(Listener::Hub, "POST", "/commit/", kind.clone()));
            let pushed = world.push(&[&["--json"], more].concat()).ok().json();
            let revision = if more.is_empty() { "main" } else { "refs/pr/1" };
            assert_eq!(
                pushed["commit"],
                world.server.head(REPOSITORY, revision).as_str(),
                "{kind:?}"
            );
            let titles = world.server.messages(REPOSITORY, revision);
            let own = titles
                .iter()
                .filter(|(title, _)| title.contains("bam-convert"));
            assert_eq!(own.count(), 1, "{kind:?}: {titles:?}");
            assert_eq!(world.server.head(REPOSITORY, "refs/pr/2"), "");
            world.assert_pushed(revision);
        }
    }
}

#[test]
fn uploads_survive_what_passes() {
    let status = |code, text: &str| FaultKind::Status(code, vec![], text.to_owned());
    let faults = [
        (Listener::Cdn, "PUT", "", status(503, "busy")),
        (
            Listener::Cdn,
            "PUT",
            "",
            FaultKind::Status(429, vec![("retry-after", "0".to_owned())], String::new()),
        ),
        (Listener::Cdn, "PUT", "", FaultKind::CutUpload(100_000)),
        (Listener::Cdn, "PUT", "", FaultKind::LoseAnswer),
        (Listener::Cdn, "PUT", "", FaultKind::ExpiredToken),
        (Listener::Cdn, "PUT", "", status(403, "Request has expired")),
        (Listener::Hub, "POST", "/objects/batch", status(502, "")),
        (Listener::Hub, "POST", "/preupload/", status(500, "")),
        (Listener::Hub, "POST", "/repos/create", status(503, "")),
        (
            Listener::Hub,
            "POST",
            "/repos/create",
            FaultKind::LoseAnswer,
        ),
        (Listener::Hub, "POST", "/verify", status(503, "")),
        (
            Listener::Hub,
            "POST",
            "/verify",
            status(404, "not uploaded"),
        ),
        (Listener::Hub, "POST", "/commit/", status(503, "")),
        (
            Listener::Hub,
            "POST",
            "/commit/",
            FaultKind::Status(429, vec![("retry-after", "0".to_owned())], String::new()),
        ),
    ];
    for way in ["basic", "multipart"] {
        for (listener, method, target, kind) in &faults {
            let world = World::over(way);
            world.enlarge();
            world
                .server
                .fault(Fault::new(*listener, method, target, kind.clone()));
            let run = world.push(&[]);
            assert_eq!(run.code, Some(0), "{way} {method} {target} {kind:?}\n{run}");
            world.assert_pushed("main");
            let titles = world.server.messages(REPOSITORY, "main");
            assert_eq!(titles.len(), 2, "{kind:?}: {titles:?}");
        }
    }
    let world = World::over("multipart");
    world.enlarge();
    world
        .server
        .fault(Fault::new(Listener::Cdn, "PUT", "/parts/", FaultKind::ChangedEtag).after(3));
    world.push(&[]).ok();
    world.assert_pushed("main");
}

#[test]
fn what_does_not_pass_is_an_error_and_no_commit() {
    let status = |code, text: &str| FaultKind::Status(code, vec![], text.to_owned());
    let always =
        |listener, method, target: &str, kind| Fault::new(listener, method, target, kind).always();
    // Where each file goes, with these headers.
    let batch = |edit: fn(&mut serde_json::Map<String, Value>)| {
        let mut header = serde_json::Map::new();
        edit(&mut header);
        let upload = serde_json::json!({"href": "/upload", "header": header});
        let object = |bytes: &Vec<u8>| serde_json::json!({"oid": sha256(bytes), "size": bytes.len(), "actions": {"upload": upload}});
        let files = contents(&fixture("llama/seed"));
        let objects: Vec<Value> = files.values().map(object).collect();
        let answer = serde_json::json!({"transfer": "basic", "objects": objects});
        always(
            Listener::Hub,
            "POST",
            "/objects/batch",
            status(200, &answer.to_string()),
        )
    };
    let faults = [
        (
            always(Listener::Cdn, "PUT", "", status(500, "broken")),
            3,
            "500",
        ),
        (
            always(Listener::Cdn, "PUT", "", status(507, "no room")),
            3,
            "free some space",
        ),
        (
            always(Listener::Cdn, "PUT", "", FaultKind::Stall),
            3,
            "no progress",
        ),
        (
            always(Listener::Hub, "POST", "/objects/batch", FaultKind::NotJson),
            3,
            "expected JSON",
        ),
        (
            always(Listener::Hub, "POST", "/objects/batch", status(200, "{}")),
            3,
            "expected to hear where it goes",
        ),
        (
            batch(|header| {
                for number in 0..40_000 {
                    header.insert(format!("x-{number}"), "y".into());
                }
            }),
            3,
            "at most 64 headers",
        ),
        (
            batch(|header| drop(header.insert("x".to_owned(), "y".repeat(1 << 20).into()))),
            3,
            "65536 bytes",
        ),
        (
            batch(|header| drop(header.insert("a b".to_owned(), "y".into()))),
            3,
            "headers that can be sent, found `a b`",
        ),
        (
            batch(|header| drop(header.insert("x".to_owned(), "a\nb".into()))),
            3,
            "headers that can be sent, found `x`",
        ),
        (
            batch(|header| drop(header.insert("chunk_size".to_owned(), 1.into()))),
            3,
            "expected addresses for",
        ),
        (
            always(
                Listener::Hub,
                "POST",
                "/objects/batch",
                status(200, &format!("[{}1]", "1,".repeat(2_100_000))),
            ),
            3,
            "more than 2000000 values",
        ),
        (
            always(
                Listener::Hub,
                "POST",
                "/preupload/",
                status(200, r#"{"files": []}"#),
            ),
            3,
            "expected to hear how",
        ),
        (
            always(Listener::Hub, "POST", "/commit/", status(200, "{}")),
            3,
            "expected the commit",
        ),
        (
            always(Listener::Hub, "POST", "/commit/", status(400, "no")),
            3,
            "400",
        ),
        (
            always(Listener::Hub, "POST", "/commit/", status(503, "")),
            3,
            "503",
        ),
        (
            always(Listener::Hub, "GET", "/tree/", FaultKind::NotJson).after(1),
            3,
            "expected JSON",
        ),
    ];
    for (fault, code, text) in faults {
        let world = World::over("basic");
        world
            .server
            .put(REPOSITORY, "main", &[("notes.txt", b"first")]);
        let head = world.server.head(REPOSITORY, "main");
        let reads_back = fault.method == "GET";
        let shown = format!("{fault:?}");
        world.server.fault(fault);
        let mut command = world.command(&["push", "model", REPOSITORY]);
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.2");
        let run = finish(command);
        assert_eq!(run.code, Some(code), "{shown}\n{run}");
        assert!(run.stderr.contains(text), "{shown}\n{run}");
        assert!(
            reads_back || world.server.head(REPOSITORY, "main") == head,
            "{shown}"
        );
        // As soon as it is mended the rest follows.
        world.server.mend();
        world.push(&[]).ok();
        world.assert_pushed("main");
    }
}

#[test]
fn a_token_of_xet_that_no_header_can_hold_is_an_error() {
    for token in ["a\nb", "a\u{7f}", "ä", ""] {
        let world = World::over("xet");
        let answer = serde_json::json!({"casUrl": world.server.url(), "accessToken": token, "exp": 9_999_999_999u64});
        let kind = FaultKind::Status(200, vec![], answer.to_string());
        world
            .server
            .fault(Fault::new(Listener::Hub, "GET", "xet-write-token", kind).always());
        world.push(&[]).refused(3, &["Xet storage", "a token"]);
    }
}

#[test]
fn a_commit_that_holds_something_else_is_told() {
    let world = World::new();
    world.push(&[]).ok();
    let held = world.server.head(REPOSITORY, "main");
    edit_json(&world.path("model/config.json"), |config| {
        config["rms_norm_eps"] = 2e-6.into()
    });
    // The server says that it has committed, and names what was there.
    let lie = FaultKind::Status(
        200,
        vec![],
        format!(r#"{{"success": true, "commitOid": "{held}"}}"#),
    );
    world
        .server
        .fault(Fault::new(Listener::Hub, "POST", "/commit/", lie));
    world.push(&[]).refused(
        3,
        &[
            "expected the commit to hold what was pushed",
            "config.json",
            "hint",
        ],
    );
}

#[test]
fn a_file_that_changes_meanwhile_is_an_error() {
    let world = World::over("basic");
    world.enlarge();
    let fault = Fault::new(
        Listener::Cdn,
        "PUT",
        "",
        FaultKind::Status(503, vec![], String::new()),
    )
    .times(3);
    world.server.fault(fault);
    let child = world
        .command(&["push", "model", REPOSITORY])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(|| !world.requests("PUT", "").is_empty());
    std::fs::write(world.path(EXTRA), "other").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("changed while it was read"),
        "{said}"
    );
    assert!(world.requests("POST", "/commit/").is_empty());
}

#[track_caller]
fn wait_for(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "it did not happen"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_push_that_is_killed_goes_on_where_it_was() {
    for way in ["basic", "xet"] {
        let world = World::over(way);
        world.enlarge();
        world.server.fault(Fault::new(
            Listener::Hub,
            "POST",
            "/commit/",
            FaultKind::Stall,
        ));
        let mut child = world
            .command(&["push", "model", REPOSITORY])
            .spawn()
            .unwrap();
        wait_for(|| !world.requests("POST", "/commit/").is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        world.server.mend();
        world.server.forget_requests();
        world.push(&[]).ok();
        world.assert_pushed("main");
        let sent = world.server.requests().into_iter().filter(|request| {
            request.method == "PUT" || request.method == "POST" && request.target.contains("xorb")
        });
        let sent: Vec<Request> = sent.collect();
        assert!(sent.is_empty(), "{way}: {sent:?}");
    }
}

#[test]
fn a_push_that_is_killed_within_a_file_begins_that_file_anew() {
    for way in ["basic", "multipart"] {
        let world = World::over(way);
        world.enlarge();
        // Of the last file or part, so that others are there already.
        let held = Fault::new(Listener::Cdn, "PUT", "", FaultKind::StallUpload(20_000))
            .after(1)
            .always();
        world.server.fault(held);
        let mut command = world.command(&["push", "model", REPOSITORY]);
        let mut child = command
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "60")
            .spawn()
            .unwrap();
        wait_for(|| world.server.stalled() > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(world.requests("POST", "/commit/").is_empty());
        assert_eq!(world.server.paths(REPOSITORY, "main"), [".gitattributes"]);
        world.server.mend();
        world.push(&[]).ok();
        world.assert_pushed("main");
        world
            .run(&["pull", REPOSITORY, "back", "--include", "*"])
            .ok();
        assert_eq!(
            std::fs::read(world.path("back/extra.npz")).unwrap(),
            std::fs::read(world.path(EXTRA)).unwrap()
        );
        // One commit made the repository, one filled it.
        assert_eq!(world.server.messages(REPOSITORY, "main").len(), 2);
    }
}

#[test]
fn bytes_that_no_address_gives_come_out_of_xet() {
    let world = World::over("xet");
    world.push(&[]).ok();
    let gone = FaultKind::Status(403, vec![], "expired".to_owned());
    world
        .server
        .fault(Fault::new(Listener::Cdn, "GET", "", gone.clone()).always());
    world.server.fault(
        Fault::new(
            Listener::Hub,
            "GET",
            "/resolve/",
            FaultKind::Status(
                404,
                vec![("x-error-code", "EntryNotFound".to_owned())],
                String::new(),
            ),
        )
        .always(),
    );
    world
        .run(&["pull", REPOSITORY, "back", "--include", "*.safetensors"])
        .ok();
    assert_eq!(
        std::fs::read(world.path("back/model.safetensors")).unwrap(),
        std::fs::read(world.path("model/model.safetensors")).unwrap()
    );
    assert!(!world.requests("GET", "/xet-read-token/").is_empty());
    let mut command = world.command(&["pull", REPOSITORY, "plain", "--include", "*.safetensors"]);
    command.env("HF_HUB_DISABLE_XET", "1");
    finish(command).refused(2, &["no"]);
}

#[test]
fn the_help_has_an_example() {
    let run = bam!("push", "--help").ok();
    assert!(
        run.stdout.contains("Examples:") && run.stdout.contains("--create-pr"),
        "{run}"
    );
}
