//! Files of Hugging Face's content-addressed store: read back plainly, and who may ask the store.

mod common;

use common::{ask, bearer, get};
use hub_server::{Fault, FaultKind, Keep, Listener, Options, Role, Server, Transfers};
use serde_json::Value;

fn started(data: Option<std::path::PathBuf>) -> Server {
    let transfers = Transfers {
        basic: true,
        multipart: true,
        xet: true,
    };
    Server::start(Options {
        transfers,
        keep: Keep::Xet,
        data,
        ..Options::default()
    })
}

#[test]
fn kept_in_xet() {
    let bytes: Vec<u8> = (0..40_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let folder = std::env::temp_dir().join(format!("hub-server-{}", std::process::id()));
    for data in [None, Some(folder.clone())] {
        let server = started(data);
        server.put("org/name", "main", &[("model.safetensors", &bytes)]);
        assert!(
            server
                .file("org/name", "main", "model.safetensors")
                .is_some_and(|read| read == bytes)
        );
        let url = format!("{}/org/name/resolve/main/model.safetensors", server.url());
        let cdn = get(&url, "")
            .header("location")
            .expect("a location")
            .to_owned();
        assert!(
            get(&cdn, "range: bytes=8388600-33554500\r\n").body == bytes[8_388_600..33_554_501]
        );
    }
    std::fs::remove_dir_all(folder).expect("the folder goes");
}

#[test]
fn tokens_of_the_store() {
    let server = started(None);
    server.put("org/name", "main", &[("model.safetensors", &[7; 1000])]);
    let file = get(
        &format!("{}/org/name/resolve/main/model.safetensors", server.url()),
        "",
    );
    let hash = file.header("x-xet-hash").expect("a hash");
    let route = file
        .header("link")
        .and_then(|link| link.strip_prefix('<')?.split('>').next())
        .expect("a link");
    assert!(route.ends_with(&format!(
        "/api/models/org/name/xet-read-token/{}",
        server.head("org/name", "main")
    )));
    let token = || {
        let told: Value = serde_json::from_slice(&get(route, "").body).expect("JSON");
        format!(
            "authorization: Bearer {}\r\n",
            told["accessToken"].as_str().expect("a token")
        )
    };
    let told: Value = serde_json::from_slice(&get(route, "").body).expect("JSON");
    let cas = told["casUrl"].as_str().expect("a url");
    let reconstruction = format!("{cas}/v1/reconstructions/{hash}");
    let first = token();
    assert_eq!(get(&reconstruction, "").status, 401);
    assert_eq!(get(&reconstruction, &bearer(Role::Write)).status, 401);
    assert_eq!(get(&reconstruction, &first).status, 200);
    assert_eq!(
        ask("POST", &format!("{cas}/v1/shards"), &first, b"").map(|answer| answer.status),
        Some(401)
    );
    server.fault(Fault::new(
        Listener::Cas,
        "GET",
        "/reconstructions/",
        FaultKind::ExpiredToken,
    ));
    assert_eq!(
        (
            get(&reconstruction, &first).status,
            get(&reconstruction, &first).status
        ),
        (401, 401)
    );
    assert_eq!(get(&reconstruction, &token()).status, 200);
}
