//! streaming 1.10: TLS on the streaming listener, in builds that have it.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use support::{BundleSpec, Sandbox};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};
use tokio_tungstenite::{client_async, tungstenite::client::IntoClientRequest as _};

/// An authority, and what it certified.
struct Authority(PathBuf);

impl Authority {
    fn new(directory: &Path) -> Self {
        let made = Self(directory.to_owned());
        made.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem");
        made
    }

    fn openssl(&self, words: &str) {
        let output = Command::new("openssl").current_dir(&self.0).args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes NAME.pem and NAME.key, in place of those there are.
    fn certify(&self, name: &str) {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -addext subjectAltName=IP:127.0.0.1 \
             -keyout {name}.new -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -days 2 -copy_extensions copy -out {name}.pem"
        ));
        fs::rename(self.path(&format!("{name}.new")), self.path(&format!("{name}.key"))).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()
    }

    /// Connects as a client, with a certificate of its own if it has a name.
    async fn connect(&self, url: &str, client: Option<&str>) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca")).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = match client {
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(vec![self.certificate(name)], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let address = url.strip_prefix("https://").unwrap().split('/').next().unwrap();
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// Runs a session to its end: what came on stdout.
    async fn session(&self, url: &str, client: Option<&str>) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let stream = self.connect(url, client).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let mut request = url.replacen("https", "wss", 1).into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", "v5.channel.k8s.io".parse()?);
        let (mut socket, _) = client_async(request, stream).await?;
        let mut stdout = Vec::new();
        while let Some(message) = socket.next().await {
            let bytes = message?.into_data();
            if bytes.first() == Some(&1) {
                stdout.extend_from_slice(&bytes[1..]);
            }
        }
        Ok(stdout)
    }
}

/// Runs a test with a daemon that serves TLS.
fn with_tls(client_ca: bool, test: impl AsyncFnOnce(&Sandbox, &Authority)) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    authority.certify("server");
    let configure = |command: &mut Command| {
        command.env("HOLDFAST_STREAM_TLS_CERT", authority.path("server.pem"));
        command.env("HOLDFAST_STREAM_TLS_KEY", authority.path("server.key"));
        if client_ca {
            command.env("HOLDFAST_STREAM_TLS_CLIENT_CA", authority.path("ca.pem"));
        }
    };
    support::e2e_with(configure, async |sandbox| {
        sandbox.run("c", &BundleSpec::shell("while :; do sleep 1; done")).await;
        test(sandbox, &authority).await;
    });
}

#[test]
fn a_session_over_tls_gets_all_output() {
    with_tls(false, async |sandbox, authority| {
        let url = sandbox.exec_url("c", &["seq", "1", "200000"]).await;
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let stdout = authority.session(&url, None).await.unwrap();
        assert_eq!(stdout, (1..=200_000).map(|n| format!("{n}\n")).collect::<String>().as_bytes());
    });
}

#[test]
fn a_client_without_the_certificate_asked_for_is_refused_and_its_token_stays_good() {
    with_tls(true, async |sandbox, authority| {
        authority.certify("client");
        let url = sandbox.exec_url("c", &["echo", "hello"]).await;
        authority.session(&url, None).await.unwrap_err();
        assert_eq!(authority.session(&url, Some("client")).await.unwrap(), b"hello\n");
    });
}

#[test]
fn a_renewed_certificate_is_taken_over_and_a_broken_one_is_not() {
    with_tls(false, async |sandbox, authority| {
        let url = sandbox.exec_url("c", &["echo", "hello"]).await;
        let served = async || {
            let stream = authority.connect(&url, None).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
        };
        // The files are looked at when a client comes, at most every five seconds.
        let until = async |what: &str, mut look: Box<dyn FnMut(&CertificateDer<'static>) -> bool>| {
            let looking = async {
                let mut tick = tokio::time::interval(Duration::from_millis(200));
                while !look(&served().await) {
                    tick.tick().await;
                }
            };
            tokio::time::timeout(support::DEADLINE, looking)
                .await
                .unwrap_or_else(|_| panic!("waited in vain for {what}"));
        };
        let old = authority.certificate("server");
        assert_eq!(served().await, old);
        fs::write(authority.path("server.pem"), "broken").unwrap();
        let log = sandbox.path().join("daemon.log");
        let warned = move |_: &_| fs::read_to_string(&log).unwrap().contains("the old one stays");
        until("the warning", Box::new(warned)).await;
        assert_eq!(served().await, old);
        authority.certify("server");
        let new = authority.certificate("server");
        until("the new certificate", Box::new(move |served| *served == new)).await;
    });
}
