//! HTTPS with the certificate of a private authority, as networks with an inspecting proxy or a Hub of their own have it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::common::{finish, fixture, on_hub};

/// A server with the certificate in `fixtures/tls`, which has no repository; the address of it.
fn server() -> String {
    let certificates = CertificateDer::pem_file_iter(fixture("tls/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(fixture("tls/server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.map(Result::unwrap).collect(), key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that refuses the certificate goes away.
            let _ = answer(&config, stream.unwrap());
        }
    });
    address
}

fn answer(config: &Arc<ServerConfig>, stream: TcpStream) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    stream
        .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    stream.conn.send_close_notify();
    stream.flush()
}

fn pull(address: &str) -> (tempfile::TempDir, Command) {
    let work = tempfile::tempdir().unwrap();
    let command = on_hub(work.path(), address, "", &["pull", "org/seed"]);
    (work, command)
}

#[test]
fn a_private_authority_counts_where_ssl_cert_file_names_it() {
    let address = server();
    let (_work, mut command) = pull(&address);
    command.env("SSL_CERT_FILE", fixture("tls/authority.pem"));
    finish(command).refused(2, &["repository not found"]);

    // Refused at the first attempt, because another has the same certificate.
    let (_work, command) = pull(&address);
    let begun = std::time::Instant::now();
    finish(command).refused(
        3,
        &["certificate of the server is refused", "SSL_CERT_FILE"],
    );
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[test]
fn a_machine_without_certificates_is_told_what_to_install() {
    let (work, mut command) = pull("https://localhost:1");
    let empty = work.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    command.env("SSL_CERT_FILE", empty);
    finish(command).refused(3, &["cannot prepare connections", "ca-certificates"]);
}
