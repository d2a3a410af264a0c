//! TLS for streaming clients: TLS 1.2 or newer, HTTP/1.1 alone, files read anew when they change (streaming 1.10).

use std::{
    cell::RefCell,
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};

use crate::{config::TlsFiles, io::blocking::Blocking};

/// How long reading the files may take.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How often, at most, the files are looked at; only when a client comes.
const LOOK: Duration = Duration::from_secs(5);

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} holds no certificate in PEM form", .0.display())]
    NoCertificate(PathBuf),
    #[error("{} holds no private key in PEM form", .0.display())]
    NoKey(PathBuf),
    #[error("the certificate, the key or the client CA cannot be used")]
    Rustls(#[source] rustls::Error),
    #[error("the client CA cannot be used")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// What is known of the files: when each was changed last.
type Stamps = Vec<Option<SystemTime>>;

struct Loaded {
    config: Arc<ServerConfig>,
    stamps: Stamps,
}

/// The server's side of TLS.
pub(super) struct Tls {
    files: Rc<TlsFiles>,
    blocking: Blocking,
    loaded: RefCell<Loaded>,
    looked: RefCell<Instant>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files for the first time, before there is a loop that this could hold up.
    pub(super) fn new(files: &TlsFiles, blocking: Blocking) -> Result<Self, TlsError> {
        let loaded = load(files)?;
        Ok(Self {
            files: Rc::new(files.clone()),
            blocking,
            loaded: RefCell::new(loaded),
            looked: RefCell::new(Instant::now()),
        })
    }

    /// Does the handshake.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.refresh().await;
        let config = self.loaded.borrow().config.clone();
        TlsAcceptor::from(config).accept(stream).await
    }

    /// Takes changed files over. Those that cannot be used leave the old ones in force.
    async fn refresh(&self) {
        if self.looked.borrow().elapsed() < LOOK {
            return;
        }
        *self.looked.borrow_mut() = Instant::now();
        let (files, known) = ((*self.files).clone(), self.loaded.borrow().stamps.clone());
        let job = move || (stamps(&files) != known).then(|| load(&files));
        match self.blocking.run("read", &self.files.certificate, READ_LIMIT, job, drop).await {
            Ok(None) => {}
            Ok(Some(Ok(loaded))) => {
                tracing::info!("the certificate of the streaming server was read anew");
                *self.loaded.borrow_mut() = loaded;
            }
            Ok(Some(Err(error))) => {
                let error = crate::model::one_line(&error);
                tracing::warn!(
                    error,
                    "the changed certificate of the streaming server cannot be used: the old one stays"
                );
            }
            Err(error) => tracing::warn!(%error, "the certificate of the streaming server cannot be looked at"),
        }
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()]
        .into_iter()
        .map(|path| path.and_then(|path| changed(path)))
        .collect()
}

fn load(files: &TlsFiles) -> Result<Loaded, TlsError> {
    // Taken first: a change while reading is then seen the next time.
    let stamps = stamps(files);
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|_| TlsError::NoKey(files.key.clone()))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Rustls)?;
    let builder = match &files.client_ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(TlsError::Rustls)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(TlsError::Verifier)?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Rustls)?;
    // An upgrade needs HTTP/1.1, so nothing else may be agreed on.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), stamps })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|_| TlsError::NoCertificate(path.to_owned()))?;
    if found.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Read(path.to_owned(), error))
}
