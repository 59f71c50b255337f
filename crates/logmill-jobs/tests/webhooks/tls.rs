//! Receivers that speak TLS: their certificates are checked.
//!
//! The root, which signed `server.pem`, has no key any more. Both are valid until 2126.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use logmill_jobs::testing::{How, TestMill};
use logmill_jobs::webhooks::{Webhook, WebhookError, Webhooks};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::server::read;
use crate::{attempt, retried, webhooks};

const ROOT: &[u8] = include_bytes!("tls/root.pem");

/// Answers each request with 204. Its thread ends with the process.
fn start() -> SocketAddr {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream.unwrap());
            // A client that does not trust it goes away before.
            if read(&mut BufReader::new(&mut stream)).is_ok() {
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer);
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    address
}

fn hook(host: &str, address: SocketAddr) -> Webhook {
    let url = format!("https://{host}:{}/", address.port());
    Webhook::new(url, "invoice.paid", &17).unwrap()
}

#[test]
fn a_certificate_of_an_unknown_authority_is_a_failed_attempt() {
    let (mill, address) = (TestMill::open().unwrap(), start());
    mill.enqueue(hook("127.0.0.1", address)).unwrap();
    let reason = retried(&mill, &webhooks());
    assert!(reason.contains("UnknownIssuer"), "{reason}");
}

#[test]
fn an_authority_of_the_application_is_trusted_for_the_names_that_it_certifies() {
    let address = start();
    let webhooks = webhooks().root_certificates(ROOT).unwrap();
    let mill = TestMill::open().unwrap();
    mill.enqueue(hook("127.0.0.1", address)).unwrap();
    assert_eq!(attempt(&mill, &webhooks), How::Done);

    mill.enqueue(hook("localhost", address)).unwrap();
    let reason = retried(&mill, &webhooks);
    assert!(reason.contains("not valid for name"), "{reason}");
}

#[test]
fn what_has_no_certificates_is_refused_as_roots() {
    for pem in [
        &b""[..],
        b"no certificate",
        include_bytes!("tls/server.key"),
    ] {
        let refused = Webhooks::new().root_certificates(pem);
        assert!(matches!(refused, Err(WebhookError::Invalid(_))));
    }
}
