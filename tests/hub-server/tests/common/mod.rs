//! One request at a time over a plain socket.
// Each test binary uses a part of this.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use hub_server::Role;

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Whether the body ended before its length or its last chunk.
    pub fn cut(&self) -> bool {
        match self.header("content-length") {
            Some(length) => (self.body.len() as u64) < length.parse().expect("a length"),
            None => {
                self.header("transfer-encoding").is_some() && !self.body.ends_with(b"0\r\n\r\n")
            }
        }
    }
}

/// One request on a connection of its own; nothing where the connection ended without an answer, or sent nothing.
pub fn ask(method: &str, url: &str, headers: &str, body: &[u8]) -> Option<Answer> {
    exchange(method, url, headers, body, Duration::from_millis(1500))
}

/// As [`ask`], where the server may stand still for up to `patience`.
fn exchange(
    method: &str,
    url: &str,
    headers: &str,
    body: &[u8],
    patience: Duration,
) -> Option<Answer> {
    let (origin, path) = url
        .strip_prefix("http://")
        .expect("http")
        .split_once('/')
        .expect("a path");
    let mut stream = TcpStream::connect(origin).expect("the server listens");
    stream.set_read_timeout(Some(patience)).expect("a timeout");
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nhost: {origin}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let _ = stream.write_all(body);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let end = all.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        head,
        body: all[end + 4..].to_vec(),
    })
}

/// An answer that comes, however slow the machine.
pub fn get(url: &str, headers: &str) -> Answer {
    exchange("GET", url, headers, b"", Duration::from_secs(60)).expect("an answer")
}

pub fn bearer(role: Role) -> String {
    format!("authorization: Bearer {}\r\n", role.token())
}
