//! Starting and stopping the server, and what a test may ask of it directly.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use tokio::runtime::Runtime;

use crate::access::Signatures;
use crate::faults::Faults;
use crate::lfs::Uploads;
use crate::listener::serve;
use crate::repository::{ATTRIBUTES, Changes, Content, Entry, Repository, wants_lfs};
use crate::store::{Object, Store};
use crate::xet::Xet;
use crate::{Fault, Listener, Request, Role, api, resolve, xet};

/// Which ways of uploading large files the server offers.
#[derive(Clone, Copy, Debug)]
pub struct Transfers {
    /// LFS, a file in one request.
    pub basic: bool,
    /// LFS, a file in parts.
    pub multipart: bool,
    /// Xet.
    pub xet: bool,
}

/// Where [`Server::put`] keeps large files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As LFS objects.
    Lfs,
    /// In Xet's content-addressed store.
    Xet,
}

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ways of uploading.
    pub transfers: Transfers,
    /// Where `put` keeps large files; `Xet` needs that transfer.
    pub keep: Keep,
    /// A folder for large objects; in memory without one.
    pub data: Option<PathBuf>,
    /// Entries in a page of a listing.
    pub page_size: usize,
    /// Bytes of a part of a multipart upload. Larger files are uploaded in parts where both ways are offered.
    pub part_size: u64,
    /// From this size on, files are large whatever they are called.
    pub regular_limit: u64,
    /// How long signed URLs and tokens of the store are good.
    pub url_life: Duration,
    /// Whether regular files are redirected within the Hub first, as huggingface.co does.
    pub resolve_cache: bool,
    /// Whether listings hold no hashes, which only the tags of the files tell then.
    pub hides_hashes: bool,
    /// The origin that pages of listings name, as a Hub does that does not know its proxy.
    pub named: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transfers: Transfers {
                basic: true,
                multipart: true,
                xet: false,
            },
            keep: Keep::Lfs,
            data: None,
            page_size: 1000,
            part_size: 8 << 20,
            regular_limit: 10 << 20,
            url_life: Duration::from_secs(3600),
            resolve_cache: false,
            hides_hashes: false,
            named: None,
        }
    }
}

/// What the routes share.
pub(crate) struct Hub {
    pub(crate) options: Options,
    /// The origins: scheme, host and port.
    pub(crate) url: String,
    pub(crate) cdn: String,
    pub(crate) repositories: Mutex<BTreeMap<String, Repository>>,
    pub(crate) store: Store,
    pub(crate) signatures: Signatures,
    pub(crate) log: Mutex<Vec<Request>>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) uploads: Uploads,
    /// Uploads that a fault holds.
    pub(crate) stalled: AtomicUsize,
    pub(crate) xet: Option<Xet>,
}

/// The lock's content, also after a thread has panicked with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A large object, wherever it is kept.
    pub(crate) async fn object(&self, sha256: &str) -> Option<Object> {
        match (self.store.get(sha256), &self.xet) {
            (None, Some(xet)) => xet.find(sha256).await.map(Object::Xet),
            (kept, _) => kept,
        }
    }

    async fn keep(&self, bytes: &[u8]) -> io::Result<String> {
        match (&self.xet, self.options.keep) {
            (Some(xet), Keep::Xet) => xet.put(bytes).await,
            _ => self.store.put(bytes),
        }
    }

    /// The URL of `path` on an origin, signed.
    pub(crate) fn sign(&self, listener: Listener, path: &str) -> String {
        let origin = if listener == Listener::Hub {
            &self.url
        } else {
            &self.cdn
        };
        format!(
            "{origin}{path}?{}",
            self.signatures.query(listener, path, self.options.url_life)
        )
    }

    /// Commits files; the commit's id.
    pub(crate) async fn put(
        &self,
        id: &str,
        branch: &str,
        files: &[(&str, &[u8])],
    ) -> io::Result<String> {
        let mut changes = Changes::new();
        for (path, bytes) in files {
            let large =
                bytes.len() as u64 >= self.options.regular_limit || wants_lfs(ATTRIBUTES, path);
            let entry = if large && !bytes.is_empty() {
                Entry::large(self.keep(bytes).await?, bytes.len() as u64)
            } else {
                Entry::regular(Bytes::copy_from_slice(bytes))
            };
            changes.insert((*path).to_owned(), Some(entry));
        }
        let mut repositories = lock(&self.repositories);
        let repository = repositories
            .entry(id.to_owned())
            .or_insert_with(|| Repository::new(id, false));
        let parent = repository
            .revision(branch)
            .or_else(|_| repository.revision("main"))
            .ok();
        Ok(repository.commit(
            &format!("refs/heads/{branch}"),
            parent.as_deref(),
            changes,
            "Files of a test",
            "",
        ))
    }
}

/// A running server. Ends when dropped.
pub struct Server {
    hub: Arc<Hub>,
    runtime: Option<Runtime>,
}

impl Server {
    /// Starts a server on free ports of the loopback interface.
    ///
    /// # Panics
    /// Here and below: if the machine refuses what a test cannot do without, as ports or memory.
    pub fn start(options: Options) -> Self {
        Self::try_start(options, 0).expect("the Hub server starts")
    }

    /// Starts a server; the Hub itself on `port`, or a free one for 0.
    pub fn try_start(options: Options, port: u16) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let bind = |port| {
            let socket = TcpListener::bind(("127.0.0.1", port))?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>((socket.local_addr()?.port(), socket))
        };
        let ((hub_port, hub_socket), (cdn_port, cdn_socket)) = (bind(port)?, bind(0)?);
        let (cas_port, cas_socket) = bind(0)?;
        let xet = match options.transfers.xet {
            false => None,
            true => {
                let folder = options.data.as_ref().map(|folder| folder.join("xet"));
                Some(runtime.block_on(Xet::start(
                    format!("http://127.0.0.1:{cas_port}"),
                    folder.as_deref(),
                ))?)
            }
        };
        let hub = Arc::new(Hub {
            url: format!("http://127.0.0.1:{hub_port}"),
            // Another host, as a CDN is.
            cdn: format!("http://localhost:{cdn_port}"),
            repositories: Mutex::default(),
            store: Store::new(options.data.clone())?,
            signatures: Signatures::default(),
            log: Mutex::default(),
            faults: Mutex::default(),
            uploads: Uploads::default(),
            stalled: AtomicUsize::new(0),
            xet,
            options,
        });
        let spawn = |listener, socket: TcpListener, router: axum::Router| {
            let socket = tokio::net::TcpListener::from_std(socket)?;
            runtime.spawn(serve(hub.clone(), listener, socket, router));
            Ok::<_, io::Error>(())
        };
        let guard = runtime.enter();
        spawn(Listener::Hub, hub_socket, api::router(hub.clone()))?;
        spawn(Listener::Cdn, cdn_socket, resolve::cdn(hub.clone()))?;
        spawn(Listener::Cas, cas_socket, xet::router(hub.clone()))?;
        drop(guard);
        Ok(Self {
            hub,
            runtime: Some(runtime),
        })
    }

    /// What `HF_ENDPOINT` should be.
    pub fn url(&self) -> String {
        self.hub.url.clone()
    }

    /// Where large files are downloaded from.
    pub fn cdn_url(&self) -> String {
        self.hub.cdn.clone()
    }

    /// A token that may write.
    pub fn token(&self) -> &'static str {
        Role::Write.token()
    }

    /// Commits files to a branch, making the repository and the branch where they are missing; the commit's id.
    pub fn put(&self, id: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        self.wait(self.hub.put(id, branch, files))
            .expect("files are kept")
    }

    /// The content of a file at a revision.
    pub fn file(&self, id: &str, revision: &str, path: &str) -> Option<Vec<u8>> {
        let commit = lock(&self.hub.repositories)
            .get(id)?
            .revision(revision)
            .ok()?;
        match &commit.files.get(path)?.content {
            Content::Regular(bytes) => Some(bytes.to_vec()),
            Content::Large(sha256) => {
                self.wait(async { self.hub.object(sha256).await?.bytes().await.ok() })
            }
        }
    }

    /// The paths of the files at a revision, sorted.
    pub fn paths(&self, id: &str, revision: &str) -> Vec<String> {
        let commit = lock(&self.hub.repositories)
            .get(id)
            .and_then(|repository| repository.revision(revision).ok());
        commit
            .map(|commit| commit.files.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// The commit that a branch, tag or pull request is at; empty where it does not exist.
    pub fn head(&self, id: &str, revision: &str) -> String {
        let repositories = lock(&self.hub.repositories);
        let commit = repositories
            .get(id)
            .and_then(|repository| repository.revision(revision).ok());
        commit.map(|commit| commit.id.clone()).unwrap_or_default()
    }

    /// Titles and messages of the commits that lead to a revision, newest first.
    pub fn messages(&self, id: &str, revision: &str) -> Vec<(String, String)> {
        let repositories = lock(&self.hub.repositories);
        let Some(repository) = repositories.get(id) else {
            return Vec::new();
        };
        let history = repository
            .revision(revision)
            .map(|commit| repository.history(commit))
            .unwrap_or_default();
        history
            .iter()
            .map(|commit| (commit.title.clone(), commit.message.clone()))
            .collect()
    }

    /// Hides a repository from callers without access to it, or shows it; it must be there.
    pub fn set_private(&self, id: &str, private: bool) {
        self.change(id, |repository| repository.private = private);
    }

    /// Keeps the files of a repository from callers without access to it.
    pub fn set_gated(&self, id: &str, gated: bool) {
        self.change(id, |repository| repository.gated = gated);
    }

    /// Whether a repository is private; `None` where it does not exist.
    pub fn private(&self, id: &str) -> Option<bool> {
        lock(&self.hub.repositories)
            .get(id)
            .map(|repository| repository.private)
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Repository)) {
        change(
            lock(&self.hub.repositories)
                .get_mut(id)
                .unwrap_or_else(|| panic!("there is no repository {id}")),
        );
    }

    /// All requests so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.hub.log).clone()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        lock(&self.hub.log).clear();
    }

    /// How many uploads [`StallUpload`](crate::FaultKind::StallUpload) holds, or has held.
    pub fn stalled(&self) -> usize {
        self.hub.stalled.load(Ordering::Relaxed)
    }

    /// Lets something go wrong. Of several faults that match, the first that has its turn is met.
    pub fn fault(&self, fault: Fault) {
        lock(&self.hub.faults).push((fault, 0));
    }

    /// Takes all faults back.
    pub fn mend(&self) {
        lock(&self.hub.faults).clear();
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime
            .as_ref()
            .expect("the runtime lives until the drop")
            .block_on(future)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Without waiting: a stalled connection would never end.
        self.runtime
            .take()
            .into_iter()
            .for_each(Runtime::shutdown_background);
    }
}
