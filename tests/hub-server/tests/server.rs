//! The server, asked over plain sockets: nothing that a client library would smooth over.

mod common;

use std::time::{Duration, Instant};

use common::{ask, bearer, get};
use hub_server::{Fault, FaultKind, Listener, Options, Role, Server};

const WEIGHTS: &[u8] = &[7; 100_000];

fn started() -> Server {
    let server = Server::start(Options {
        page_size: 2,
        ..Options::default()
    });
    let files: [(&str, &[u8]); 3] = [
        ("config.json", b"{}"),
        ("model.safetensors", WEIGHTS),
        ("sub folder/a.txt", b"hello\n"),
    ];
    server.put("org/name", "main", &files);
    server
}

fn location(server: &Server) -> String {
    let answer = get(
        &format!("{}/org/name/resolve/main/model.safetensors", server.url()),
        "",
    );
    assert_eq!(answer.status, 302);
    answer.header("location").expect("a location").to_owned()
}

#[test]
fn files_out() {
    let server = started();
    let (url, head) = (server.url(), server.head("org/name", "main"));
    let info = get(
        &format!("{url}/api/models/org/name/revision/main?blobs=true"),
        "",
    );
    assert!(
        String::from_utf8_lossy(&info.body).contains(&format!("\"sha\":\"{head}\"")),
        "{}",
        info.head
    );

    let mut listing = get(
        &format!("{url}/api/models/org/name/tree/main?recursive=true"),
        "",
    );
    let mut listed = String::from_utf8_lossy(&listing.body).into_owned();
    while let Some(next) = listing.header("link") {
        let next = next
            .trim_start_matches('<')
            .split('>')
            .next()
            .expect("a url")
            .to_owned();
        listing = get(&next, "");
        listed.push_str(&String::from_utf8_lossy(&listing.body));
    }
    for told in [
        ".gitattributes",
        "ce013625030ba8dba906f756967f9e9ca394464a",
        "\"sub folder/a.txt\"",
        "\"pointerSize\":131",
    ] {
        assert!(listed.contains(told), "{told} in {listed}");
    }
    let text = get(
        &format!("{url}/org/name/resolve/main/sub%20folder/a.txt"),
        "range: bytes=1-2\r\n",
    );
    assert_eq!(
        (text.status, &text.body[..], text.header("content-range")),
        (206, &b"el"[..], Some("bytes 1-2/6"))
    );
    assert_eq!(text.header("x-repo-commit"), Some(&*head));
    assert_eq!(
        text.header("etag"),
        Some("\"ce013625030ba8dba906f756967f9e9ca394464a\"")
    );

    let cdn = location(&server);
    assert!(cdn.starts_with("http://localhost:"));
    assert_eq!(get(&cdn, "").body, WEIGHTS);
    assert_eq!(get(&cdn, "range: bytes=99990-\r\n").body.len(), 10);
    assert_eq!(get(&cdn, "range: bytes=100000-\r\n").status, 416);
    assert_eq!(get(&cdn, &bearer(Role::Write)).status, 400);
    assert_eq!(
        get(&cdn.replace("Signature=", "Signature=0"), "").status,
        403
    );
    assert_eq!(
        server
            .requests()
            .iter()
            .filter(|request| request.listener == Listener::Cdn)
            .count(),
        5
    );
}

#[test]
fn access() {
    let server = started();
    let url = format!("{}/org/name/resolve/main/config.json", server.url());
    let told = |headers: &str| {
        let answer = get(&url, headers);
        (
            answer.status,
            answer.header("x-error-code").map(str::to_owned),
        )
    };
    let coded = |status, code: &str| (status, Some(code.to_owned()));
    assert_eq!(told("authorization: Bearer nonsense\r\n"), (401, None));
    assert_eq!(told(&bearer(Role::Expired)), (401, None));
    server.set_gated("org/name", true);
    assert_eq!(told(""), coded(401, "GatedRepo"));
    assert_eq!(told(&bearer(Role::Outsider)), coded(403, "GatedRepo"));
    assert_eq!(told(&bearer(Role::Read)), (200, None));
    server.set_private("org/name", true);
    assert_eq!(told(""), (401, None));
    assert_eq!(told(&bearer(Role::Outsider)), coded(404, "RepoNotFound"));
    assert_eq!(told(&bearer(Role::Write)), (200, None));
    let missing = |part: &str| {
        get(
            &format!("{}/org/name/resolve/{part}", server.url()),
            &bearer(Role::Read),
        )
    };
    assert_eq!(
        missing("main/nothing").header("x-error-code"),
        Some("EntryNotFound")
    );
    assert_eq!(
        missing("nowhere/config.json").header("x-error-code"),
        Some("RevisionNotFound")
    );
}

#[test]
fn faults() {
    let server = started();
    let cdn = |kind| server.fault(Fault::new(Listener::Cdn, "GET", "/objects/", kind));
    let url = location(&server);

    cdn(FaultKind::CutAfter(1234));
    let answer = get(&url, "");
    assert!(answer.cut() && answer.body.len() == 1234);
    assert_eq!(get(&url, "").body, WEIGHTS, "once is once");

    cdn(FaultKind::WrongBytes);
    let body = get(&url, "").body;
    assert_eq!(
        (body.len(), body.iter().filter(|byte| **byte != 7).count()),
        (WEIGHTS.len(), 1)
    );

    cdn(FaultKind::ShortBody(10));
    let answer = get(&url, "");
    assert!(!answer.cut() && answer.body.len() == WEIGHTS.len() - 10);

    cdn(FaultKind::LongBody(10));
    let answer = get(&url, "");
    assert!(!answer.cut() && answer.body.len() == WEIGHTS.len() + 10);

    cdn(FaultKind::NoContentLength(10));
    let answer = get(&url, "");
    assert_eq!(
        (
            answer.header("content-length"),
            answer.header("transfer-encoding")
        ),
        (None, None)
    );
    assert_eq!(answer.body.len(), WEIGHTS.len() - 10);

    cdn(FaultKind::Drip {
        bytes: 50_000,
        every: Duration::from_millis(60),
    });
    let begun = Instant::now();
    assert_eq!(get(&url, "").body, WEIGHTS);
    assert!(begun.elapsed() > Duration::from_millis(110));

    cdn(FaultKind::Stall);
    assert!(ask("GET", &url, "", b"").is_none());

    cdn(FaultKind::StallAfter(5));
    assert_eq!(get(&url, "").body.len(), 5);

    cdn(FaultKind::IgnoreRange);
    assert_eq!(get(&url, "range: bytes=5-\r\n").status, 200);

    cdn(FaultKind::WrongContentRange);
    assert_eq!(
        get(&url, "range: bytes=5-6\r\n").header("content-range"),
        Some("bytes 6-7/100000")
    );

    cdn(FaultKind::ChangedEtag);
    assert!(
        get(&url, "")
            .header("etag")
            .is_some_and(|etag| etag.starts_with("\"0123"))
    );

    cdn(FaultKind::RedirectTo("http://127.0.0.1:1/elsewhere".into()));
    assert_eq!(
        get(&url, "").header("location"),
        Some("http://127.0.0.1:1/elsewhere")
    );

    server.fault(
        Fault::new(
            Listener::Cdn,
            "",
            "",
            FaultKind::Status(429, vec![("retry-after", "1".into())], "slow down".into()),
        )
        .after(1)
        .times(2),
    );
    let statuses: Vec<u16> = (0..4).map(|_| get(&url, "").status).collect();
    assert_eq!(statuses, [200, 429, 429, 200]);

    cdn(FaultKind::ExpiredToken);
    assert_eq!((get(&url, "").status, get(&url, "").status), (403, 403));
    assert_eq!(get(&location(&server), "").status, 200);

    let hub = |kind| server.fault(Fault::new(Listener::Hub, "GET", "/tree/", kind));
    let tree = format!("{}/api/models/org/name/tree/main", server.url());
    hub(FaultKind::HugeJson(1 << 20));
    assert!(get(&tree, "").body.len() > 1 << 20);
    hub(FaultKind::NotJson);
    assert!(get(&tree, "").body.starts_with(b"<!DOCTYPE"));
    let before = server.head("org/name", "main");
    hub(FaultKind::MoveBranch {
        repository: "org/name".into(),
        branch: "main".into(),
        files: vec![("config.json".into(), b"[]".to_vec())],
    });
    assert_eq!(get(&tree, "").status, 200);
    assert_ne!(server.head("org/name", "main"), before);
}

#[test]
fn faults_of_uploads() {
    let server = started();
    let url = format!("{}/api/repos/create", server.url());
    let headers = format!("{}content-type: application/json\r\n", bearer(Role::Write));
    let create = |name: &str| {
        ask(
            "POST",
            &url,
            &headers,
            format!("{{\"name\": \"{name}\"}}").as_bytes(),
        )
    };
    let post = |kind| server.fault(Fault::new(Listener::Hub, "POST", "/create", kind));
    post(FaultKind::CutUpload(5));
    assert!(create("one").is_none());
    assert_eq!(server.private("writer/one"), None);
    post(FaultKind::StallUpload(5));
    assert!(create("one").is_none());
    assert_eq!((server.private("writer/one"), server.stalled()), (None, 1));
    post(FaultKind::Instead("{}".into()));
    assert_eq!(
        create("two").map(|answer| answer.body),
        Some(b"{}".to_vec())
    );
    assert_eq!(server.private("writer/two"), Some(false));
    post(FaultKind::LoseAnswer);
    assert!(create("one").is_none());
    assert_eq!(server.private("writer/one"), Some(false));
    assert_eq!(create("one").map(|answer| answer.status), Some(409));
}
