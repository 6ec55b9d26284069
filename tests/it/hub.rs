//! `pull` and `hf://` against a Hub server on loopback: what arrives, what is kept between runs, and that no wrong byte counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use crate::common::{
    Run, Tensor, Tensors, contents, finish, fixture, listing, read_json, sha256, write_file,
};
use hub_server::{Fault, FaultKind, Keep, Listener, Options, Role, Server, Transfers};
use safetensors::Dtype;
use tempfile::TempDir;

pub const REPOSITORY: &str = "org/seed";

/// A Hub with the fixture seed in it, and a machine with an empty cache.
pub struct World {
    pub server: Server,
    work: TempDir,
    commit: String,
}

impl World {
    fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let server = Server::start(options);
        let files = contents(&fixture("llama/seed"));
        let commit = put(&server, REPOSITORY, &files);
        Self {
            server,
            work: tempfile::tempdir().unwrap(),
            commit,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        crate::common::on_hub(
            self.work.path(),
            &self.server.url(),
            self.server.token(),
            arguments,
        )
    }

    pub fn run(&self, arguments: &[&str]) -> Run {
        finish(self.command(arguments))
    }

    pub fn snapshot(&self) -> PathBuf {
        self.path("hf/hub/models--org--seed/snapshots")
            .join(&self.commit)
    }

    /// Requests of the CDN and of the Hub for the bytes of a file.
    fn transfers(&self, part: &str) -> usize {
        self.server
            .requests()
            .iter()
            .filter(|request| request.method == "GET" && request.target.contains(part))
            .count()
    }
}

pub fn put(server: &Server, repository: &str, files: &BTreeMap<String, Vec<u8>>) -> String {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), &bytes[..]))
        .collect();
    server.put(repository, "main", &files)
}

/// Asserts that a folder of links or files holds the fixture's files.
#[track_caller]
pub fn assert_is_seed(folder: &Path) {
    let mut found = contents(folder);
    found.remove(".hub.json");
    assert_eq!(found, contents(&fixture("llama/seed")));
}

#[test]
fn a_checkpoint_is_pulled_into_the_cache_that_python_shares() {
    let world = World::new();
    let run = world.run(&["pull", REPOSITORY]).ok();
    assert_eq!(run.stdout.trim(), world.snapshot().display().to_string());
    assert_is_seed(&world.snapshot());
    let cache = world.path("hf/hub/models--org--seed");
    assert_eq!(
        std::fs::read_to_string(cache.join("refs/main")).unwrap(),
        world.commit
    );
    let link = std::fs::read_link(world.snapshot().join("model.safetensors")).unwrap();
    let hash = sha256(&std::fs::read(fixture("llama/seed/model.safetensors")).unwrap());
    assert_eq!(link, Path::new("../../blobs").join(&hash));
    assert!(
        !listing(&cache)
            .keys()
            .any(|path| path.contains("incomplete")),
        "{:?}",
        listing(&cache)
    );
    // The second time nothing is transferred.
    let before = world.transfers("/resolve/");
    let again = world
        .run(&["pull", "hf://org/seed@main", "--json"])
        .ok()
        .json();
    assert_eq!(again["transferred"], 0);
    assert_eq!(again["commit"], world.commit.as_str());
    assert_eq!(world.transfers("/resolve/"), before);
}

#[test]
fn a_folder_is_complete_or_absent_and_tells_where_it_came_from() {
    let world = World::new();
    let run = world
        .run(&["pull", "org/seed", "deep/seed", "--json"])
        .ok()
        .json();
    assert_eq!(run["folder"], "deep/seed");
    assert_is_seed(&world.path("deep/seed"));
    assert!(!world.path("hf/hub").exists(), "the cache was used");
    // Nothing to do, nothing transferred; another revision is refused, or replaces it and takes what is the same.
    assert_eq!(
        world
            .run(&["pull", "org/seed", "deep/seed", "--json"])
            .ok()
            .json()["transferred"],
        0
    );
    world
        .server
        .put(REPOSITORY, "main", &[("config.json", b"{}")]);
    let before = listing(&world.path("deep"));
    world
        .run(&["pull", "org/seed", "deep/seed"])
        .refused(2, &["deep/seed", "exists already", "--force"]);
    assert_eq!(listing(&world.path("deep")), before);
    assert_eq!(
        world
            .run(&["pull", "org/seed", "deep/seed", "--force", "--json"])
            .ok()
            .json()["transferred"],
        2
    );
    assert_eq!(
        std::fs::read(world.path("deep/seed/config.json")).unwrap(),
        b"{}"
    );
    let origin = std::fs::read_to_string(world.path("deep/seed/.hub.json")).unwrap();
    assert!(
        origin.contains(&world.server.head(REPOSITORY, "main")),
        "{origin}"
    );
    assert!(
        !listing(&world.path("deep"))
            .keys()
            .any(|path| path.contains("partial"))
    );
}

#[test]
fn only_what_a_checkpoint_needs_is_pulled_unless_patterns_say_otherwise() {
    let world = World::new();
    let more: [(&str, &[u8]); 6] = [
        ("consolidated.safetensors", b"vendor"),
        ("pytorch_model.bin", b"pickle"),
        ("onnx/model.onnx", b"onnx"),
        ("LICENSE", b"licence"),
        ("modeling_own.py", b"code"),
        ("training_args.bin", b"pickle"),
    ];
    world.server.put(REPOSITORY, "more", &more);
    let files = |arguments: &[&str]| -> Vec<String> {
        let preview = world
            .run(&[&["pull", "org/seed@more", "--dry-run", "--json"], arguments].concat())
            .ok()
            .json();
        preview["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| file["path"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut needed: Vec<String> = contents(&fixture("llama/seed")).into_keys().collect();
    needed.extend(["LICENSE".to_owned(), "modeling_own.py".to_owned()]);
    needed.sort();
    assert_eq!(files(&[]), needed);
    assert_eq!(
        files(&["--include", "*.onnx", "--include", "config.json"]),
        ["config.json", "onnx/model.onnx"]
    );
    needed.retain(|path| !path.starts_with("tokenizer"));
    assert_eq!(files(&["--exclude", "tokenizer*"]), needed);
    assert!(!world.path("hf").exists(), "--dry-run wrote something");
    world
        .run(&["pull", "org/seed@more", "onnx", "--include", "onnx/*"])
        .ok();
    assert_eq!(
        std::fs::read(world.path("onnx/onnx/model.onnx")).unwrap(),
        b"onnx"
    );
    world
        .run(&["pull", "org/seed", "--include", "tokeniser.json"])
        .refused(2, &["no file matches", "`tokenizer.json`"]);
    // Neither other pickles nor a choice between models is made for the user.
    world.server.put(
        "org/pickle",
        "main",
        &[("config.json", b"{}"), ("consolidated.pth", b"pickle")],
    );
    world
        .run(&["pull", "org/pickle"])
        .refused(2, &["consolidated.pth, a pickle", "--include"]);
    world.server.put(
        "org/gguf",
        "main",
        &[("a-q4.gguf", b"GGUF"), ("a-q8.gguf", b"GGUF")],
    );
    world
        .run(&["pull", "org/gguf"])
        .refused(2, &["a-q4.gguf, a-q8.gguf", "--include"]);
}

#[test]
fn a_reference_stands_wherever_a_checkpoint_does() {
    let world = World::new();
    for name in ["code", "law"] {
        put(
            &world.server,
            &format!("org/{name}"),
            &contents(&fixture("llama").join(name)),
        );
    }
    // Headers alone are enough to look.
    let size = std::fs::metadata(fixture("llama/seed/model.safetensors"))
        .unwrap()
        .len();
    let summary = world
        .run(&["inspect", "hf://org/seed", "--tensors", "--json"])
        .ok()
        .json();
    let local = world
        .run(&[
            "inspect",
            fixture("llama/seed").to_str().unwrap(),
            "--tensors",
            "--json",
        ])
        .ok()
        .json();
    assert_eq!(summary["tensors"], local["tensors"]);
    assert_eq!(summary["architecture"], local["architecture"]);
    let upcycle = |tail: &[&str]| {
        let seed = format!("hf://org/seed@{}", world.commit);
        let line = [
            "upcycle",
            "--method",
            "bam",
            "--seed",
            &seed,
            "--expert",
            "code=hf://org/code",
        ];
        world.run(
            &[
                &line,
                &["--expert=law=hf://org/law", "--out", "bam"][..],
                tail,
            ]
            .concat(),
        )
    };
    upcycle(&["--dry-run"]).ok();
    assert!(
        !world.path("hf").exists(),
        "weights were pulled to look at them"
    );
    assert!(!world.path("bam").exists());
    upcycle(&[]).ok();
    // The mixture is the same as from folders, and its manifest names the repositories, wherever the cache is.
    let manifest = std::fs::read_to_string(world.path("bam/bam-manifest.json")).unwrap();
    let head = world.server.head("org/code", "main");
    for part in [
        format!("\"hf://org/seed@{}\"", world.commit),
        format!("\"commit\": \"{head}\""),
    ] {
        assert!(manifest.contains(&part), "{part} is not in {manifest}");
    }
    assert!(!manifest.contains("models--"), "{manifest}");
    let card = std::fs::read_to_string(world.path("bam/README.md")).unwrap();
    assert!(card.contains("base_model:\n- org/seed"), "{card}");
    world.run(&["validate", "bam", "--against"]).ok();
    world
        .run(&[
            "merge",
            "--model",
            "hf://org/code:0.5",
            "--model=hf://org/law:0.5",
            "--out",
            "merged",
        ])
        .ok();
    assert!(size > 0 && world.path("merged/config.json").exists());
    // Sources are where the manifest says, also on a machine that has never seen them.
    std::fs::remove_dir_all(world.path("hf")).unwrap();
    world.run(&["validate", "bam", "--against"]).ok();
    world
        .run(&["inspect", "hf://org/absent"])
        .refused(2, &["hf://org/absent", "repository"]);
    // So they do in settings, ours and mergekit's, which knows repositories by their bare names.
    let own = "method: btx\nseed: hf://org/seed\nexpert: {code: hf://org/code, law: hf://org/law}\nout: own\n";
    let mergekit = "base_model: org/seed\ngate_mode: random\nexperts:\n- source_model: org/code\n- source_model: org/law@main\n";
    for (text, out) in [(own, "own"), (mergekit, "mergekit")] {
        std::fs::write(world.path("settings.yaml"), text).unwrap();
        let tail: &[&str] = if out == "own" { &[] } else { &["--out", out] };
        world
            .run(&[&["upcycle", "--config", "settings.yaml"], tail].concat())
            .ok();
        world.run(&["validate", out, "--against"]).ok();
    }
    // Words that are no path stay words.
    world
        .run(&["generate", "absent", "--prompt", "hf://org/seed"])
        .refused(2, &["absent"]);
}

#[test]
fn offline_the_cache_is_all_there_is() {
    let world = World::new();
    let offline = |arguments: &[&str]| {
        finish({
            let mut command = world.command(arguments);
            command.env("HF_HUB_OFFLINE", "1");
            command
        })
    };
    offline(&["pull", "org/seed"]).refused(2, &["hf://org/seed", "HF_HUB_OFFLINE"]);
    world.run(&["pull", "org/seed"]).ok();
    world.server.forget_requests();
    assert_eq!(
        offline(&["pull", "org/seed"]).ok().stdout.trim(),
        world.snapshot().display().to_string()
    );
    offline(&["inspect", "hf://org/seed"]).ok();
    offline(&["inspect", "hf://org/seed@other"]).refused(2, &["HF_HUB_OFFLINE"]);
    assert_eq!(world.server.requests().len(), 0);
}

#[test]
fn refusals_are_told_apart_and_hold_no_secret() {
    let world = World::new();
    world.server.put(
        "org/gated",
        "main",
        &[("config.json", b"{}"), ("model.safetensors", b"x")],
    );
    world.server.set_gated("org/gated", true);
    world.server.put(
        "org/private",
        "main",
        &[("config.json", b"{}"), ("model.safetensors", b"x")],
    );
    world.server.set_private("org/private", true);
    let with = |token: &str, arguments: &[&str]| {
        let mut command = world.command(arguments);
        command.env("HF_TOKEN", token);
        let run = finish(command);
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(token.is_empty() || !said.contains(token), "{said}");
        run
    };
    let (write, outsider) = (world.server.token(), Role::Outsider.token());
    with(write, &["pull", "org/absent"])
        .refused(2, &["hf://org/absent", "repository not found", "spelling"]);
    with(write, &["pull", "org/seed@absent"]).refused(
        2,
        &["hf://org/seed@absent", "revision", "a tag or a commit"],
    );
    with(outsider, &["pull", "org/gated"]).refused(2, &["org/gated", "gated", "ask for access"]);
    with(outsider, &["pull", "org/private"])
        .refused(2, &["org/private", "repository not found", "HF_TOKEN"]);
    with("", &["pull", "org/private"]).refused(2, &["org/private", "HF_TOKEN"]);
    with(Role::Expired.token(), &["pull", "org/seed"]).refused(2, &["HF_TOKEN to a valid token"]);
    with("hf_nobodynobodynobody", &["pull", "org/seed"]).refused(2, &["HF_TOKEN to a valid token"]);
    with(write, &["pull", "../seed"]).refused(2, &["`../seed`", "hf://org/name"]);
    with(write, &["pull", "datasets/org/seed"]).refused(2, &["expected a model repository"]);
    // Not every Hub says what it has not found.
    let bare = FaultKind::Status(404, vec![], r#"{"detail":"Not Found"}"#.to_owned());
    world
        .server
        .fault(Fault::new(Listener::Hub, "GET", "/revision/a%2Fb", bare.clone()).always());
    with(write, &["pull", "org/seed@a/b"])
        .refused(2, &["hf://org/seed@a/b", "no revision of this name"]);
    world
        .server
        .fault(Fault::new(Listener::Hub, "GET", "/revision/", bare).always());
    with(write, &["pull", "org/seed@a/b"])
        .refused(2, &["hf://org/seed@a/b", "repository not found"]);
    world.server.mend();
    let mut command = world.command(&["pull", "org/seed"]);
    command.env("HF_ENDPOINT", "http://127.0.0.1:9");
    finish(command).refused(3, &["hf://org/seed", "refused", "run the command again"]);
    let token = world.path("hf/token");
    std::fs::create_dir_all(world.path("hf")).unwrap();
    std::fs::write(token, "hf_fromfilefromfile\n").unwrap();
    with("", &["pull", "org/seed"]).refused(2, &["valid token"]);
}

/// What a pull must come to under a fault.
enum Ends {
    /// The right bytes.
    Well,
    /// An error of this code with these words, and no file.
    Badly(i32, &'static [&'static str]),
}

/// Pulls under a fault, and checks that nothing wrong counts.
fn under(fault: Fault, ends: &Ends) {
    let world = World::new();
    let name = format!("{fault:?}");
    println!("under {name}");
    world.server.fault(fault);
    let run = world.run(&["pull", REPOSITORY]);
    match ends {
        Ends::Well => assert_is_seed(Path::new(run.ok().stdout.trim())),
        Ends::Badly(code, parts) => {
            run.refused(*code, parts);
            assert!(
                !world.path("hf/hub/models--org--seed/refs/main").exists(),
                "{name}"
            );
        }
    }
    // A blob in its place is what its name says.
    let blobs = world.path("hf/hub/models--org--seed/blobs");
    for (name, hash) in blobs
        .exists()
        .then(|| listing(&blobs))
        .into_iter()
        .flatten()
    {
        assert!(name.len() != 64 || name == hash, "{name} holds {hash}");
    }
    // Once the fault is gone, what is left serves.
    world.server.mend();
    assert_is_seed(Path::new(
        world.run(&["pull", REPOSITORY]).ok().stdout.trim(),
    ));
    println!("right under {name}");
}

/// As [`under`] for each fault, in a Hub of its own. Some run at once, because they wait for most of their time.
fn each_under(faults: Vec<(Fault, Ends)>) {
    const AT_ONCE: usize = 4;
    let faults = Mutex::new(faults.into_iter());
    let next = || faults.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((fault, ends)) = next() {
                    under(fault, &ends);
                }
            });
        }
    });
}

#[test]
fn faults_of_connections_cost_time_and_no_bytes() {
    let mut faults = Vec::new();
    let cdn = |kind| Fault::new(Listener::Cdn, "GET", "", kind);
    let hub = |target, kind| Fault::new(Listener::Hub, "GET", target, kind);
    let second = Duration::from_secs(1);
    for kind in [0, 1, 100, 4096, 100_000].map(FaultKind::CutAfter) {
        faults.push((cdn(kind).times(3), Ends::Well));
    }
    for kind in [
        FaultKind::Status(429, vec![("retry-after", "1".to_owned())], String::new()),
        FaultKind::Status(503, vec![], "busy".to_owned()),
        FaultKind::WrongBytes,
        FaultKind::ShortBody(1000),
        FaultKind::LongBody(1000),
        FaultKind::NoContentLength(1000),
        FaultKind::Stall,
        FaultKind::StallAfter(5000),
        FaultKind::ExpiredToken,
        FaultKind::ChangedEtag,
        FaultKind::Drip {
            bytes: 100,
            every: second / 5,
        },
    ] {
        faults.push((cdn(kind), Ends::Well));
    }
    faults.push((
        hub("/api/", FaultKind::Status(500, vec![], String::new())).times(2),
        Ends::Well,
    ));
    faults.push((
        hub("/resolve/", FaultKind::CutAfter(10)).times(4),
        Ends::Well,
    ));
    faults.push((hub("/tree/", FaultKind::CutAfter(50)), Ends::Well));
    each_under(faults);
}

#[test]
fn what_cannot_be_right_is_refused() {
    let mut faults = Vec::new();
    let cdn = |kind| Fault::new(Listener::Cdn, "GET", "", kind).always();
    let hub = |target, kind| Fault::new(Listener::Hub, "GET", target, kind).always();
    let answer = |body: &str| FaultKind::Status(200, vec![], body.to_owned());
    faults.push((
        cdn(FaultKind::WrongBytes),
        Ends::Badly(
            3,
            &["model.safetensors", "expected a content with the hash"],
        ),
    ));
    faults.push((
        cdn(FaultKind::ShortBody(9)),
        Ends::Badly(3, &["model.safetensors", "found the end after"]),
    ));
    faults.push((
        cdn(FaultKind::Status(503, vec![], String::new())),
        Ends::Badly(3, &["model.safetensors", "503"]),
    ));
    // A storage knows no repositories, and says so in XML.
    let gone = "<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>The key does not exist.</Message></Error>";
    faults.push((
        cdn(FaultKind::Status(404, vec![], gone.to_owned())),
        Ends::Badly(
            3,
            &[
                "model.safetensors: the storage that the Hub names answered 404 Not Found: The key does not",
            ],
        ),
    ));
    for words in [
        r#"{"detail":{"error":"unknown endpoint"}}"#,
        r#"{"errors":[{"message":"unknown endpoint"}]}"#,
    ] {
        let refusal = FaultKind::Status(400, vec![], words.to_owned());
        faults.push((
            hub("/tree/", refusal),
            Ends::Badly(
                3,
                &["the server answered 400 Bad Request: unknown endpoint\n"],
            ),
        ));
    }
    faults.push((
        hub(
            "/resolve/",
            FaultKind::Status(
                404,
                vec![("x-error-code", "EntryNotFound".to_owned())],
                String::new(),
            ),
        ),
        Ends::Badly(2, &["no file of this name"]),
    ));
    faults.push((
        hub(
            "/api/",
            FaultKind::Status(429, vec![("retry-after", "4000".to_owned())], String::new()),
        ),
        Ends::Badly(3, &["429", "wait"]),
    ));
    faults.push((
        hub("/api/", FaultKind::NotJson),
        Ends::Badly(3, &["expected JSON", "HF_ENDPOINT"]),
    ));
    faults.push((
        hub("/tree/", FaultKind::HugeJson(200 << 20)),
        Ends::Badly(3, &["at most"]),
    ));
    faults.push((
        hub("/revision/", answer("{\"sha\": \"../../x\"}")),
        Ends::Badly(3, &["expected the commit"]),
    ));
    let oid = "0".repeat(40);
    for path in ["../config.json", "/etc/config.json", "a\\\\b", "a//b", ""] {
        let listing = format!(r#"[{{"type":"file","path":"{path}","size":1,"oid":"{oid}"}}]"#);
        faults.push((
            hub("/tree/", answer(&listing)),
            Ends::Badly(3, &["inside the repository"]),
        ));
    }
    let twice = format!(r#"{{"type":"file","path":"config.json","size":1,"oid":"{oid}"}}"#);
    faults.push((
        hub("/tree/", answer(&format!("[{twice},{twice}]"))),
        Ends::Badly(3, &["`config.json` twice"]),
    ));
    let huge = twice.replace("\"size\":1", "\"size\":-1");
    faults.push((
        hub("/tree/", answer(&format!("[{huge}]"))),
        Ends::Badly(3, &["the size of `config.json`"]),
    ));
    each_under(faults);
}

#[test]
fn a_token_goes_to_the_hub_and_nowhere_else() {
    let (world, other) = (World::new(), Server::start(Options::default()));
    world.server.fault(
        Fault::new(
            Listener::Hub,
            "GET",
            "/resolve/",
            FaultKind::RedirectTo(other.url()),
        )
        .times(2),
    );
    let run = world.run(&["pull", REPOSITORY]);
    assert!(
        run.code == Some(0) || run.code == Some(2) || run.code == Some(3),
        "{run}"
    );
    let next = format!(
        "<{}/api/models/org/seed/tree/main?cursor=2>; rel=\"next\"",
        other.url()
    );
    let listing = FaultKind::Status(200, vec![("link", next)], "[]".to_owned());
    world
        .server
        .fault(Fault::new(Listener::Hub, "GET", "/tree/", listing).always());
    world
        .run(&["pull", REPOSITORY])
        .refused(3, &["another address"]);
    assert!(!other.requests().is_empty(), "nobody was redirected");
    let all = world
        .server
        .requests()
        .into_iter()
        .filter(|request| request.listener != Listener::Hub)
        .chain(other.requests());
    for request in all {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
}

#[test]
fn listings_end_and_take_the_memory_that_they_are_worth() {
    let world = World::new();
    let page = |from: &str, to: &str, body: &str| {
        let path = format!("/api/models/org/seed/tree/{}", world.commit);
        let next = format!("<{path}?cursor={to}>; rel=\"next\"");
        let kind = FaultKind::Status(200, vec![("link", next)], body.to_owned());
        Fault::new(Listener::Hub, "GET", from, kind).always()
    };
    // Two pages that each name the other, and each a folder more.
    let folder = r#"[{"type": "directory", "path": "deep", "oid": ""}]"#;
    world.server.fault(page("cursor=1", "2", folder));
    world.server.fault(page("cursor=2", "1", folder));
    world.server.fault(page("/tree/", "1", folder));
    world
        .run(&["pull", REPOSITORY])
        .refused(3, &["org/seed@", "at most 1000 pages"]);
    let many =
        |entry: &str, count: usize| format!("[{}{entry}]", format!("{entry},").repeat(count));
    let bodies = [
        (many("0", 2_000_000), "more than 2000000 values"),
        (
            many(r#"{"type":"directory","path":"d"}"#, 100_001),
            "at most 100000 files",
        ),
        (
            many(
                &format!(r#"{{"type":"file","path":"a","size":{}}}"#, i64::MAX),
                1,
            ),
            "sum",
        ),
    ];
    for (body, part) in bodies {
        let world = World::new();
        let kind = FaultKind::Status(200, vec![], body);
        world
            .server
            .fault(Fault::new(Listener::Hub, "GET", "/tree/", kind).always());
        let plain = world.command(&["pull", REPOSITORY]);
        let mut command = Command::new("bash");
        command
            .args(["-c", "ulimit -v 2097152; exec timeout 60 \"$@\"", "bash"])
            .arg(plain.get_program())
            .args(plain.get_args())
            .current_dir(world.work.path());
        for (name, value) in plain.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        finish(command).refused(3, &["org/seed@", part]);
        assert!(!world.path("hf/hub").exists());
    }
}

#[test]
fn names_that_this_program_uses_itself_are_pulled_into_the_cache_and_refused_in_a_folder() {
    for (name, beside) in [
        (".lock", "a"),
        (".hub.json", "a"),
        (".progress.json", "a"),
        ("a.incomplete", "a"),
    ] {
        let world = World::new();
        let files: [(&str, &[u8]); 2] = [(name, b"{\"its\": 1}"), (beside, b"other")];
        world.server.put(REPOSITORY, "main", &files);
        let folder = world.run(&["pull", REPOSITORY, "--include", "*"]).ok();
        let found = std::fs::read(Path::new(folder.stdout.trim()).join(name)).unwrap();
        assert_eq!(found, b"{\"its\": 1}", "{name}");
        let line = ["pull", REPOSITORY, "here", "--include", "*", "--dry-run"];
        for line in [&line[..], &line[..5]] {
            world
                .run(line)
                .refused(2, &[&format!("`{name}`"), "--exclude", "without DIR"]);
            assert!(!world.path("here").exists());
        }
        let line = [
            "pull",
            REPOSITORY,
            "here",
            "--include",
            "*",
            "--exclude",
            name,
        ];
        world.run(&line).ok();
        assert_eq!(
            std::fs::read(world.path("here").join(beside)).unwrap(),
            b"other"
        );
    }
    // Names that only look so are files like any other.
    let world = World::new();
    let names = [
        ".gitattributes",
        ".cache/x",
        "b.lock",
        "b.incomplete",
        "c/.lock",
        "d.partial",
    ];
    let files = names.map(|name| (name, name.as_bytes()));
    world.server.put(REPOSITORY, "main", &files);
    world
        .run(&["pull", REPOSITORY, "here", "--include", "*"])
        .ok();
    for name in names {
        assert_eq!(
            std::fs::read(world.path("here").join(name)).unwrap(),
            name.as_bytes()
        );
    }
}

#[test]
fn a_branch_that_moves_during_a_pull_does_not_mix_commits() {
    let world = World::new();
    let files = vec![
        ("config.json".to_owned(), b"{}".to_vec()),
        ("model.safetensors".to_owned(), vec![7; 100]),
    ];
    let (repository, branch) = (REPOSITORY.to_owned(), "main".to_owned());
    let kind = FaultKind::MoveBranch {
        repository,
        branch,
        files,
    };
    world
        .server
        .fault(Fault::new(Listener::Hub, "GET", "/tree/", kind));
    let pulled = world.run(&["pull", REPOSITORY, "--json"]).ok().json();
    assert_eq!(pulled["commit"], world.commit.as_str());
    assert_is_seed(&world.snapshot());
    let moved = world.run(&["pull", REPOSITORY, "--json"]).ok().json();
    assert_eq!(
        moved["commit"],
        world.server.head(REPOSITORY, "main").as_str()
    );
    assert_is_seed(&world.snapshot());
}

#[test]
fn a_cut_or_killed_pull_goes_on_where_it_ended() {
    let world = World::new();
    let size = std::fs::metadata(fixture("llama/seed/model.safetensors"))
        .unwrap()
        .len();
    // Each connection brings a piece; the next asks for the rest only.
    world
        .server
        .fault(Fault::new(Listener::Cdn, "GET", "", FaultKind::CutAfter(size / 3)).times(2));
    world.run(&["pull", REPOSITORY]).ok();
    let ranges: Vec<String> = world
        .server
        .requests()
        .iter()
        .filter(|request| request.listener == Listener::Cdn)
        .map(|request| request.header("range").unwrap_or_default().to_owned())
        .collect();
    assert!(
        ranges.len() == 3
            && ranges[0].is_empty()
            && ranges[1..].iter().all(|range| range.ends_with('-')),
        "{ranges:?}"
    );
    // The same across a kill, into the cache and into a folder.
    for (line, place) in [
        (&["pull", REPOSITORY][..], "hf"),
        (&["pull", REPOSITORY, "folder"], ".folder.partial"),
    ] {
        let world = World::new();
        world
            .server
            .fault(Fault::new(Listener::Cdn, "GET", "", FaultKind::StallAfter(size / 2)).always());
        let mut command = world.command(line);
        let mut child = command
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "60")
            .spawn()
            .unwrap();
        let grown = || {
            listing(&world.path(place)).keys().any(|path| {
                path.ends_with(".incomplete")
                    && std::fs::metadata(world.path(place).join(path))
                        .is_ok_and(|file| file.len() >= size / 2)
            })
        };
        let begun = std::time::Instant::now();
        while !(world.path(place).exists() && grown()) {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing came");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        world.server.mend();
        world.server.forget_requests();
        let run = world.run(line).ok();
        assert_is_seed(&world.work.path().join(run.stdout.trim()));
        let asked = world.server.requests();
        let range = asked
            .iter()
            .find(|request| request.listener == Listener::Cdn)
            .unwrap()
            .header("range")
            .unwrap()
            .to_owned();
        assert_eq!(range, format!("bytes={}-", size / 2));
    }
}

#[test]
fn servers_that_do_not_keep_to_ranges_are_put_up_with() {
    for kind in [FaultKind::IgnoreRange, FaultKind::WrongContentRange] {
        let world = World::new();
        world.server.fault(Fault::new(
            Listener::Cdn,
            "GET",
            "",
            FaultKind::CutAfter(5000),
        ));
        world
            .server
            .fault(Fault::new(Listener::Cdn, "GET", "", kind).after(1));
        world.run(&["pull", REPOSITORY]).ok();
        assert_is_seed(&world.snapshot());
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let world = World::new();
    let line = world.command(&["pull", REPOSITORY]);
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -f 20; trap '' XFSZ; exec \"$@\"", "bash"])
        .arg(line.get_program())
        .args(line.get_args());
    command.current_dir(world.work.path()).env_clear();
    command.envs(
        line.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    finish(command).refused(3, &["cannot write", "incomplete"]);
    world.server.forget_requests();
    world.run(&["pull", REPOSITORY]).ok();
    assert_is_seed(&world.snapshot());
    let asked = world.server.requests();
    let request = asked
        .iter()
        .find(|request| request.listener == Listener::Cdn)
        .unwrap();
    assert!(request.header("range").is_some(), "{request:?}");
}

#[test]
fn two_pulls_at_once_transfer_a_file_once() {
    let world = World::new();
    world.server.fault(
        Fault::new(
            Listener::Cdn,
            "GET",
            "",
            FaultKind::Drip {
                bytes: 4096,
                every: Duration::from_millis(5),
            },
        )
        .always(),
    );
    let mut children: Vec<_> = (0..3)
        .map(|_| {
            world
                .command(&["pull", REPOSITORY, "--quiet"])
                .spawn()
                .unwrap()
        })
        .collect();
    assert!(
        children
            .iter_mut()
            .all(|child| child.wait().unwrap().success())
    );
    assert_is_seed(&world.snapshot());
    let weights = world
        .server
        .requests()
        .iter()
        .filter(|request| request.listener == Listener::Cdn)
        .count();
    assert_eq!(weights, 1);
}

#[test]
fn a_damaged_file_of_the_cache_is_fetched_again() {
    let world = World::new();
    world.run(&["pull", REPOSITORY]).ok();
    let blob = std::fs::canonicalize(world.snapshot().join("model.safetensors")).unwrap();
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    world.run(&["pull", REPOSITORY]).ok();
    assert_is_seed(&world.snapshot());
}

#[test]
fn however_the_hub_keeps_files_they_arrive() {
    let transfers = Transfers {
        xet: true,
        ..Options::default().transfers
    };
    for options in [
        Options {
            page_size: 2,
            ..Options::default()
        },
        Options {
            resolve_cache: true,
            ..Options::default()
        },
        Options {
            transfers,
            keep: Keep::Xet,
            ..Options::default()
        },
    ] {
        let world = World::with(options);
        world.run(&["pull", REPOSITORY]).ok();
        assert_is_seed(&world.snapshot());
    }
}

#[test]
fn hashes_that_only_the_files_own_headers_tell_are_asked_for() {
    let world = World::with(Options {
        hides_hashes: true,
        ..Options::default()
    });
    world.run(&["inspect", "hf://org/seed"]).ok();
    world.run(&["pull", REPOSITORY]).ok();
    assert_is_seed(&world.snapshot());
    assert_eq!(
        world.run(&["pull", REPOSITORY, "--json"]).ok().json()["transferred"],
        0
    );
    // The hashes in headers are believed no more than the hashes in a listing.
    world
        .server
        .fault(Fault::new(Listener::Hub, "HEAD", "/resolve/", FaultKind::ChangedEtag).always());
    let wrong = ["config.json", "expected a content with the hash 0123456789"];
    world
        .run(&["pull", REPOSITORY, "wrong", "--include", "config.json"])
        .refused(3, &wrong);
    // What nobody tells the hash of is not taken, and keeps nobody from the rest.
    world.server.mend();
    let untold = FaultKind::Status(405, vec![], String::new());
    world
        .server
        .fault(Fault::new(Listener::Hub, "HEAD", "/tokenizer.json", untold).always());
    world
        .run(&["pull", REPOSITORY, "some"])
        .refused(3, &["expected the hash of `tokenizer.json`", "--exclude"]);
    assert!(!world.path("some").exists() && !world.path("wrong").exists());
    world
        .run(&["pull", REPOSITORY, "some", "--exclude", "tokenizer.json"])
        .ok();
    assert!(
        world.path("some/model.safetensors").exists()
            && !world.path("some/tokenizer.json").exists()
    );
}

#[test]
fn headers_come_by_ranges_however_long_they_are() {
    let world = World::new();
    // A header of more than one request, in front of more data than that.
    let names =
        (0..6000).map(|number| format!("model.layers.{number}.a_name_that_takes_its_room.weight"));
    let tensors: Tensors = names
        .map(|name| (name, Tensor::new(Dtype::F32, &[64], &[1.5; 64])))
        .collect();
    write_file(&world.path("long.safetensors"), &tensors);
    let long = std::fs::read(world.path("long.safetensors")).unwrap();
    let gguf = std::fs::read(fixture("gguf/llama-q4_0.gguf")).unwrap();
    world
        .server
        .put("org/long", "main", &[("model.safetensors", &long)]);
    world
        .server
        .put("org/gguf", "main", &[("llama.gguf", &gguf)]);
    for (reference, local) in [
        ("hf://org/long", world.path("long.safetensors")),
        ("hf://org/gguf", fixture("gguf/llama-q4_0.gguf")),
    ] {
        world.server.forget_requests();
        let remote = world
            .run(&["inspect", reference, "--tensors", "--json"])
            .ok()
            .json();
        let expected = world
            .run(&["inspect", local.to_str().unwrap(), "--tensors", "--json"])
            .ok()
            .json();
        assert_eq!(remote["tensors"], expected["tensors"]);
        let asked = world.server.requests();
        let bytes: Vec<_> = asked
            .iter()
            .filter(|request| request.listener == Listener::Cdn)
            .collect();
        assert!(
            !bytes.is_empty()
                && bytes
                    .iter()
                    .all(|request| request.header("range").is_some()),
            "{bytes:?}"
        );
    }
    // A file of another kind gives the same error as a local file.
    world
        .server
        .put("org/broken", "main", &[("model.safetensors", &[255; 100])]);
    world
        .run(&["inspect", "hf://org/broken"])
        .refused(2, &["model.safetensors", "header"]);
    world.server.put(
        "org/cut",
        "main",
        &[("model.safetensors", &long[..500_000])],
    );
    world
        .run(&["inspect", "hf://org/cut"])
        .refused(2, &["model.safetensors"]);
}

#[test]
fn a_published_mixture_is_made_again_from_its_own_card_and_the_hub() {
    let world = World::new();
    put(&world.server, "org/law", &contents(&fixture("llama/law")));
    world.run(&["pull", "org/seed", "models/seed"]).ok();
    crate::common::copy_folder(&fixture("llama/code"), &world.path("models/code"));
    let recipe = "stages:\n  - name: bam\n    upcycle: {method: bam, seed: \"${recipe}/models/seed\", expert: \
                  {code: \"${recipe}/models/code\", law: \"hf://org/law\"}, out: bam}\n";
    std::fs::write(world.path("recipe.yaml"), recipe).unwrap();
    world.run(&["run", "recipe.yaml", "--work", "work"]).ok();
    world.run(&["push", "work/bam", "org/bam"]).ok();
    let manifest = world
        .server
        .file("org/bam", "main", "bam-manifest.json")
        .unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let sources =
        serde_json::json!({"code": "code", "seed": format!("hf://org/seed@{}", world.commit)});
    assert_eq!(manifest["recipe"]["sources"], sources);

    // On another machine only a copy of the expert exists, because no Hub has it.
    let bam = contents(&world.path("work/bam"));
    std::fs::rename(world.path("models/code"), world.path("code")).unwrap();
    for made in ["models", "work", "hf"] {
        std::fs::remove_dir_all(world.path(made)).unwrap();
    }
    world.run(&["pull", "org/bam", "bam"]).ok();
    std::fs::rename(world.path("code"), world.path("elsewhere")).unwrap();
    let again = ["run", "--from-manifest", "bam", "--work", "again"];
    world
        .run(&again)
        .refused(2, &["source `code` of the recipe", "--source code=PATH"]);
    world.server.forget_requests();
    world
        .run(
            &[
                &again[..],
                &["--source", "seed=x", "--source", "cod=hf://org/none"],
            ]
            .concat(),
        )
        .refused(2, &["has no source `cod`", "the nearest is `code`"]);
    assert!(
        world.server.requests().is_empty(),
        "{:?}",
        world.server.requests()
    );
    let run = world
        .run(&[&again[..], &["--source", "code=elsewhere"]].concat())
        .ok();
    assert!(run.stdout.contains("files have the same bytes"), "{run}");
    assert_eq!(
        contents(&world.path("again/bam"))["model.safetensors"],
        bam["model.safetensors"]
    );
}

#[test]
fn a_recipe_makes_a_mixtral_of_what_it_pulls_and_its_manifest_makes_it_again() {
    let world = World::new();
    let chat = put(&world.server, "org/chat", &contents(&fixture("llama/code")));
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/btx-from-hub.yaml");
    let recipe = recipe.to_str().unwrap();
    let set = ["--set", "seed=org/seed", "--set", "chat=org/chat@main"];
    world
        .run(&[&["run", recipe, "--work", "work"], &set[..]].concat())
        .ok();
    let config = crate::common::read_json(world.path("work/mixtral/config.json"));
    assert_eq!(config["model_type"], "mixtral");
    assert_eq!(
        crate::common::read_json(world.path("work/replay.json"))["checks"][0]["status"],
        "ok"
    );
    let recorded =
        crate::common::read_json(world.path("work/mixtral/bam-manifest.json"))["recipe"].clone();
    assert_eq!(
        recorded["stages"][0]["settings"]["repository"][0],
        format!("org/seed@{}", world.commit)
    );
    assert_eq!(
        recorded["stages"][1]["settings"]["repository"][0],
        format!("org/chat@{chat}")
    );
    assert_eq!(recorded["sources"], serde_json::json!({}));

    // The branch moves on; the manifest stays with its commits.
    put(&world.server, "org/chat", &contents(&fixture("llama/law")));
    std::fs::rename(world.path("work/mixtral"), world.path("mixtral")).unwrap();
    std::fs::remove_dir_all(world.path("work")).unwrap();
    let again = world
        .run(&["run", "--from-manifest", "mixtral", "--work", "again"])
        .ok();
    assert!(
        again.stdout.contains("files have the same bytes"),
        "{again}"
    );
    crate::common::assert_same_folder(&world.path("mixtral"), &world.path("again/mixtral"));
}

#[test]
fn a_recipe_that_pulls_is_looked_through_by_headers() {
    let world = World::new();
    put(&world.server, "org/code", &contents(&fixture("llama/code")));
    let recipe = "stages:\n  - name: seed\n    pull: {repository: org/seed, folder: seed}\n  - name: bam\n    upcycle: {method: bam, \
                  seed: seed, expert: {code: \"hf://org/code\"}, out: bam}\n";
    std::fs::write(world.path("recipe.yaml"), recipe).unwrap();
    let forecast = world
        .run(&[
            "run",
            "recipe.yaml",
            "--work",
            "work",
            "--dry-run",
            "--json",
        ])
        .ok()
        .json();
    let bytes: usize = contents(&fixture("llama/seed"))
        .values()
        .map(Vec::len)
        .sum();
    assert_eq!(
        forecast["stages"][0]["estimated_bytes"], bytes,
        "{forecast}"
    );
    // Nothing tells how fast the network is.
    assert_eq!(
        forecast["stages"][0]["estimated_seconds"],
        serde_json::Value::Null
    );
    assert!(
        forecast["stages"][1]["estimated_bytes"].as_u64().unwrap() > bytes as u64,
        "{forecast}"
    );
    assert!(
        !world.path("hf").exists() && !world.path("work").exists(),
        "a dry run pulls nothing"
    );
}

#[test]
fn shards_that_the_index_does_not_list_are_not_pulled() {
    let world = World::new();
    let mut files = contents(&fixture("llama_sharded/seed"));
    let stale = [
        "model-00001-of-00009.safetensors",
        "model-00009-of-00009.safetensors",
    ];
    for name in stale {
        files.insert(name.to_owned(), b"stale".to_vec());
    }
    put(&world.server, "org/sharded", &files);
    let run = world.run(&["pull", "org/sharded", "pulled"]).ok();
    assert!(
        run.stderr.contains(&format!(
            "does not list {}, which are not pulled",
            stale.join(", ")
        )),
        "{run}"
    );
    for name in stale {
        assert!(!world.path("pulled").join(name).exists(), "{name}");
        files.remove(name);
    }
    let mut pulled = contents(&world.path("pulled"));
    pulled.remove(".hub.json");
    assert_eq!(
        pulled.keys().collect::<Vec<_>>(),
        files.keys().collect::<Vec<_>>()
    );
    // A pattern is taken at its word.
    world
        .run(&["pull", "org/sharded", "all", "--include", "*.safetensors"])
        .ok();
    assert!(world.path("all").join(stale[0]).exists());
}

#[test]
fn a_base_and_an_adapter_are_added_from_the_hub() {
    let world = World::new();
    let adapter = contents(&fixture("adapters/patterns"));
    let files: Vec<(&str, &[u8])> = adapter
        .iter()
        .map(|(name, bytes)| (name.as_str(), &bytes[..]))
        .collect();
    let commit = world.server.put("org/lora", "main", &files);
    let both = "hf://org/seed+hf://org/lora";
    world.run(&["convert", both, "sum"]).ok();
    let local = format!(
        "{}+{}",
        fixture("llama/seed").display(),
        fixture("adapters/patterns").display()
    );
    world.run(&["convert", &local, "local"]).ok();
    world.run(&["diff", "sum", "local"]).ok();
    let manifest = read_json(world.path("sum/bam-manifest.json"));
    let source = &manifest["sources"][1];
    assert_eq!(source["path"], format!("hf://org/lora@{commit}"));
    world.run(&["validate", "sum", "--against"]).ok();
    // Headers are enough to look, but not for the configuration of an adapter.
    world.run(&["inspect", both]).ok();
    world.run(&["diff", both, "sum"]).ok();
}

#[test]
fn files_of_pytorch_are_pulled_where_there_are_no_safetensors() {
    let world = World::new();
    let sharded = contents(&fixture("pytorch/sharded"));
    let files: Vec<(&str, &[u8])> = sharded
        .iter()
        .map(|(name, bytes)| (name.as_str(), &bytes[..]))
        .collect();
    world.server.put("org/old", "main", &files);
    world.run(&["inspect", "hf://org/old"]).ok();
    world.run(&["diff", "hf://org/old", "hf://org/seed"]).ok();
    world.run(&["pull", "org/old", "old"]).ok();
    world.run(&["diff", "old", "hf://org/seed"]).ok();
}
