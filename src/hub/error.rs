//! What can go wrong with the Hub: one variant per broken rule, and what to do next.
//!
//! `place` is a repository with its revision, and a file of it where the error is about one.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use crate::Error;

/// What the Hub refused, what it answered that cannot be right, or what must not be sent to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    // ---- refusals
    /// The Hub, or a storage that it names, answered without success.
    #[error("{place}: {}", refusal_text(*fault, answer.as_deref()))]
    Refused {
        /// Repository, revision and file.
        place: String,
        /// What the answer means.
        fault: HubFault,
        /// Who answered what; none where the fault says all.
        answer: Option<String>,
        /// What was asked for.
        step: HubStep,
    },
    /// The Hub does not take one of the files of a batch.
    #[error("{place}: the server does not take it: {answer}")]
    ObjectRefused {
        /// Repository, revision and file.
        place: String,
        /// What the answer means.
        fault: HubFault,
        /// Status and words of the server.
        answer: String,
    },
    /// The Xet library reports an error.
    #[error("{place}: Xet: {problem}")]
    Xet {
        /// Repository, revision and file.
        place: String,
        /// What the error means.
        fault: HubFault,
        /// The library's words.
        problem: String,
    },
    /// The Hub cannot read the front matter of the model card.
    #[error("{place}: expected a card that the Hub can read: {said}")]
    CardRefused {
        /// Repository, revision and card.
        place: String,
        /// What the Hub says.
        said: String,
    },

    // ---- the network
    /// A connection failed or broke off.
    #[error("{place}: the connection {event}: {cause}")]
    Connection {
        /// Repository, revision and file.
        place: String,
        /// `failed` or `broke off`.
        event: &'static str,
        /// The innermost cause.
        cause: String,
    },
    /// The body of an answer did not end in time.
    #[error("{place}: expected the whole answer within {limit:?}")]
    SlowAnswer {
        /// Repository, revision and file.
        place: String,
        /// The time that it may take.
        limit: Duration,
    },
    /// A download ended before the file did.
    #[error("{place}: expected {size} bytes, found the end after {received}")]
    CutOff {
        /// Repository, revision and file.
        place: String,
        /// Length of the file.
        size: u64,
        /// Bytes that came.
        received: u64,
    },
    /// A download is too slow to ever end.
    #[error("{place}: expected at least {slowest} bytes/s, found {bytes} in {window:?}")]
    SlowDownload {
        /// Repository, revision and file.
        place: String,
        /// The least bytes per second.
        slowest: u64,
        /// Bytes that came in the window.
        bytes: u64,
        /// The time over which the speed is measured.
        window: Duration,
    },
    /// An upload makes no progress.
    #[error("{place}: the connection stood still after {sent} of {length} bytes")]
    StalledUpload {
        /// Repository, revision and file.
        place: String,
        /// Bytes that were sent.
        sent: u64,
        /// Bytes to send.
        length: u64,
    },
    /// The Xet storage ended a file too early.
    #[error("{place}: expected {missing} more bytes from Xet, found the end")]
    XetCutOff {
        /// Repository, revision and file.
        place: String,
        /// Bytes that did not come.
        missing: u64,
    },
    /// `HF_HUB_OFFLINE` forbids the request.
    #[error("{place}: expected to reach the Hub, found HF_HUB_OFFLINE set")]
    Offline {
        /// Repository, revision and file.
        place: String,
    },
    /// `HF_HUB_OFFLINE` is set, and the cache does not hold the revision.
    #[error(
        "{place}: expected it in the cache, because HF_HUB_OFFLINE is set, and found no such revision there"
    )]
    NotCached {
        /// Repository and revision.
        place: String,
    },

    // ---- answers that cannot be right
    /// An answer is larger than any that makes sense.
    #[error("{place}: expected an answer of at most {limit} bytes, found more")]
    LargeAnswer {
        /// Repository, revision and file.
        place: String,
        /// The most bytes that are read.
        limit: usize,
    },
    /// An answer is not JSON.
    #[error("{place}: expected JSON from the Hub, found something else: {problem}")]
    NotJson {
        /// Repository, revision and file.
        place: String,
        /// What the parser says.
        problem: String,
    },
    /// A redirect leads nowhere, or from https to http.
    #[error("{place}: expected a redirect to an http address as safe as this one, found none")]
    UnsafeRedirect {
        /// Repository, revision and file.
        place: String,
    },
    /// Redirects do not end.
    #[error("{place}: expected at most {limit} redirects")]
    ManyRedirects {
        /// Repository, revision and file.
        place: String,
        /// The most that are followed.
        limit: usize,
    },
    /// A range of bytes begins elsewhere than asked for.
    #[error("{place}: expected bytes from {start} on, found {found}")]
    WrongRange {
        /// Repository, revision and file.
        place: String,
        /// The first byte that was asked for.
        start: u64,
        /// The `Content-Range` of the answer.
        found: String,
    },
    /// The commit of a revision is missing in the answer.
    #[error("{place}: expected the commit of the revision, found none in the answer")]
    NoCommitOfRevision {
        /// Repository and revision.
        place: String,
    },
    /// The list of files is not a list.
    #[error("{place}: expected a list of files")]
    NotAListing {
        /// Repository and commit.
        place: String,
    },
    /// The next page of the list of files is at another address.
    #[error(
        "{place}: expected the next page of the list of files at the Hub, found another address"
    )]
    NextPageElsewhere {
        /// Repository and commit.
        place: String,
    },
    /// The list of files does not end.
    #[error("{place}: expected a list of files in at most {limit} pages")]
    ManyPages {
        /// Repository and commit.
        place: String,
        /// The most pages that are read.
        limit: usize,
    },
    /// The repository has more files than a checkpoint can have.
    #[error("{place}: expected at most {limit} files")]
    ManyFiles {
        /// Repository and commit.
        place: String,
        /// The most files that are read.
        limit: usize,
    },
    /// The sizes of the files do not fit into 63 bits.
    #[error("{place}: expected sizes whose sum is a number of 63 bits")]
    LargeSizes {
        /// Repository and commit.
        place: String,
    },
    /// The list has a file twice.
    #[error("{place}: expected each file once, found `{path}` twice")]
    RepeatedPath {
        /// Repository and commit.
        place: String,
        /// The file.
        path: String,
    },
    /// A path of the list leads out of the repository.
    #[error("{place}: expected paths of files inside the repository, found `{path}`")]
    UnsafePath {
        /// Repository and commit.
        place: String,
        /// The path.
        path: String,
    },
    /// An entry of the list is neither a file nor a folder.
    #[error("{place}: expected `{path}` to be a file or a folder")]
    UnknownEntry {
        /// Repository and commit.
        place: String,
        /// The entry.
        path: String,
    },
    /// The list does not say how long a file is.
    #[error("{place}: expected the size of `{path}`, found none that can be")]
    NoSize {
        /// Repository and commit.
        place: String,
        /// The file.
        path: String,
    },
    /// The list lacks the hashes of too many files to ask for each.
    #[error("{place}: expected a list of files with their hashes, found {count} files without")]
    NoHashes {
        /// Repository and commit.
        place: String,
        /// Files without a hash.
        count: usize,
    },
    /// The Hub does not give the hash of a file.
    #[error(
        "{place}: expected the hash of `{path}` in the list of files or in its ETag, found none"
    )]
    NoHash {
        /// Repository and commit.
        place: String,
        /// The file.
        path: String,
    },
    /// The bytes of a file do not have the hash that the commit lists.
    #[error("{place}: expected a content with the hash {expected}, found {found}")]
    WrongContent {
        /// Repository, commit and file.
        place: String,
        /// The hash of the commit.
        expected: String,
        /// The hash of the bytes that came.
        found: String,
    },
    /// The answer does not name the account of the token.
    #[error("{place}: expected the name of the token's account, found none in the answer")]
    NoAccountName {
        /// Repository without its owner.
        place: String,
    },
    /// The answer does not say who may see the repository.
    #[error(
        "{place}: expected to hear whether the repository is private, found neither `private` nor `visibility`"
    )]
    NoVisibility {
        /// Repository and revision.
        place: String,
    },
    /// The Hub does not say how a file is to be sent.
    #[error("{place}: expected to hear how `{path}` is to be sent, found no such answer")]
    NoUploadMode {
        /// Repository and revision.
        place: String,
        /// The file.
        path: String,
    },
    /// The Hub chose a kind of upload that was not offered.
    #[error("{place}: expected a transfer that was offered, found `{found}`")]
    UnknownTransfer {
        /// Repository and revision.
        place: String,
        /// What the Hub chose.
        found: String,
    },
    /// The Hub does not say where a file is to be sent.
    #[error("{place}: expected to hear where it goes, found no such answer")]
    NoUploadAddress {
        /// Repository, revision and file.
        place: String,
    },
    /// An address for an upload is missing, or less safe than the Hub's own.
    #[error("{place}: expected an address as safe as the Hub's to send it to, found none")]
    UnsafeAddress {
        /// Repository, revision and file.
        place: String,
    },
    /// The Hub does not say how large the parts of an upload are.
    #[error("{place}: expected the size of a part, found none")]
    NoPartSize {
        /// Repository, revision and file.
        place: String,
    },
    /// The Hub gives addresses for more or fewer parts than the file has.
    #[error("{place}: expected addresses for {expected} parts, found {found}")]
    WrongParts {
        /// Repository, revision and file.
        place: String,
        /// Parts of the file.
        expected: u64,
        /// Addresses in the answer.
        found: usize,
    },
    /// The storage gives no tag for a part.
    #[error("{place}: expected the ETag of part {part}, found none in the answer")]
    NoPartTag {
        /// Repository, revision and file.
        place: String,
        /// Number of the part, from 1.
        part: usize,
    },
    /// The Hub wants more headers with a request than any server takes.
    #[error(
        "{place}: expected at most {most} headers and {largest} bytes of them for a request, found {count} and {bytes}"
    )]
    ManyHeaders {
        /// Repository, revision and file.
        place: String,
        /// The most headers.
        most: usize,
        /// The most bytes of headers.
        largest: usize,
        /// Headers in the answer.
        count: usize,
        /// Bytes of them.
        bytes: usize,
    },
    /// The Hub wants a header that no request can hold.
    #[error("{place}: expected headers that can be sent, found `{name}`")]
    InvalidHeader {
        /// Repository, revision and file.
        place: String,
        /// Name of the header.
        name: String,
    },
    /// The Hub gives no address or no token of the Xet storage.
    #[error(
        "{place}: expected an address of the Xet storage as safe as the Hub's and a token, found none"
    )]
    NoXetAccess {
        /// Repository, revision and file.
        place: String,
    },
    /// The Hub wants more bytes inside the commit than a commit can hold.
    #[error(
        "{place}: expected to send at most {limit} bytes as small files, found {found} that the server wants so"
    )]
    LargeCommit {
        /// Repository and revision.
        place: String,
        /// The most bytes.
        limit: u64,
        /// Bytes of the files that the Hub calls small.
        found: u64,
    },
    /// The answer does not name the commit that was made.
    #[error("{place}: expected the commit that was made, found none in the answer")]
    NoCommit {
        /// Repository and revision.
        place: String,
    },
    /// Too many pull requests were opened meanwhile to look into each.
    #[error(
        "{place}: expected at most {limit} pull requests to be opened meanwhile, found {found}"
    )]
    ManyPullRequests {
        /// Repository and revision.
        place: String,
        /// The most that are looked into.
        limit: usize,
        /// New pull requests.
        found: usize,
    },
    /// The commit does not hold what was pushed.
    #[error("{place}: expected the commit to hold what was pushed, found otherwise: {}", paths.join(", "))]
    WrongCommit {
        /// Repository and commit.
        place: String,
        /// Files that differ.
        paths: Vec<String>,
    },

    // ---- requests and folders
    /// There is no token, and nobody may push without.
    #[error("{place}: expected a token to push with, found none")]
    NoToken {
        /// Repository and revision.
        place: String,
    },
    /// A variable of the environment has a value that makes no sense.
    #[error("{variable}: expected {expected}, found `{found}`")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// The values that it may have.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// The endpoint holds a password or a query, which may be secret.
    #[error("HF_ENDPOINT: expected an address without a password or a query")]
    SecretInEndpoint,
    /// The token holds characters that no header can hold.
    #[error("the Hub's token: expected visible ASCII characters without spaces")]
    InvalidToken,
    /// No variable of the environment says where the cache is.
    #[error("no place for the Hub's cache: set HF_HOME")]
    NoCache,
    /// No variable of the environment says where headers can be kept.
    #[error("no place for headers: set XDG_CACHE_HOME")]
    NoHeaderCache,
    /// A library cannot prepare connections.
    #[error("cannot prepare connections to {to}: {problem}")]
    Client {
        /// `the Hub` or `Xet`.
        to: &'static str,
        /// What the library says.
        problem: String,
    },
    /// A pattern of paths cannot be read.
    #[error("expected a pattern of paths, found `{pattern}`: {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The patterns choose no file.
    #[error("{place}: no file matches what is included and not excluded")]
    NothingSelected {
        /// Repository and commit.
        place: String,
        /// The path that is nearest to the first pattern.
        nearest: Option<String>,
    },
    /// The repository holds no weights that bam-convert pulls.
    #[error(
        "{place}: expected weights as safetensors or GGUF, found {}",
        pickle.as_ref().map_or_else(|| "none".to_owned(), |path| format!("{path}, a pickle"))
    )]
    NoWeights {
        /// Repository and commit.
        place: String,
        /// A pickle that it holds.
        pickle: Option<String>,
    },
    /// The repository holds several GGUF files.
    #[error("{place}: expected one GGUF file, found {}", paths.join(", "))]
    SeveralGguf {
        /// Repository and commit.
        place: String,
        /// The files.
        paths: Vec<String>,
    },
    /// A file would take the place of one of bam-convert's own in a folder.
    #[error(
        "{place}: `{path}` cannot be in a folder: bam-convert keeps a file `{own}` of its own there"
    )]
    ReservedName {
        /// Repository and commit.
        place: String,
        /// The file.
        path: String,
        /// The file of bam-convert.
        own: String,
    },
    /// A file has the name under which another one grows.
    #[error(
        "{place}: `{path}` cannot be in a folder: bam-convert writes another file under this name first"
    )]
    PartialName {
        /// Repository and commit.
        place: String,
        /// The file.
        path: String,
    },
    /// A weight file does not begin as its format does.
    #[error("{}: expected a safetensors file, found {size} bytes", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// Its length.
        size: u64,
    },
    /// A commit was given where a branch is needed.
    #[error("{place}: expected a branch to push to, found a commit")]
    CommitAsBranch {
        /// Repository and commit.
        place: String,
    },
    /// The repository is public, and a private one was asked for.
    #[error("{place}: expected a private repository, found one that all may see")]
    PublicRepository {
        /// Repository and revision.
        place: String,
    },
    /// The `.gitignore` of the repository leaves out every file.
    #[error("{place}: the repository's .gitignore leaves out every file, so nothing is pushed")]
    AllIgnored {
        /// Repository and revision.
        place: String,
    },
    /// The `.gitignore` of the repository leaves out a file of the model.
    #[error("{place}: the repository's .gitignore leaves out {path}, so nothing is pushed")]
    ModelIgnored {
        /// Repository and revision.
        place: String,
        /// The file.
        path: String,
    },
    /// A dry run was to be carried out.
    #[error("a look at what would be pushed cannot be carried out")]
    OnlyPreview,
    /// The model card is not UTF-8.
    #[error("{place}: expected a card in UTF-8")]
    CardNotUtf8 {
        /// Repository, revision and card.
        place: String,
    },
    /// A file that would be pushed holds the token.
    #[error("{path}: holds the Hub's token, which would be public")]
    HoldsToken {
        /// Path in the repository.
        path: String,
    },
    /// The name of a file is not UTF-8.
    #[error("{}: expected a name in UTF-8", path.display())]
    NameNotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// No repository can have a file of this name.
    #[error("{}: expected a name that a repository can have", path.display())]
    InvalidName {
        /// The file.
        path: PathBuf,
    },
    /// A link to a folder.
    #[error("{}: a link to a folder, which is not pushed", path.display())]
    LinkToFolder {
        /// The link.
        path: PathBuf,
    },
    /// A link to a file outside of the folder.
    #[error("{}: a link to a file outside of the folder", path.display())]
    LinkOutside {
        /// The link.
        path: PathBuf,
    },
    /// Bytes beyond the end of a file were asked for.
    #[error("a piece lies beyond the end of its file")]
    BeyondEnd,
    /// A file could not be read while it was sent.
    #[error("{problem}")]
    Unreadable {
        /// The error of the file.
        problem: String,
        /// Its hint.
        hint: Option<String>,
    },
    /// The thread that hashes a download panicked.
    #[error("{}: the thread that hashes it has died", path.display())]
    HashThread {
        /// The file that grows.
        path: PathBuf,
    },
}

/// What was asked for, where a refusal needs other advice than usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubStep {
    /// Anything else.
    Other,
    /// How files are to be sent. The repository has just been read.
    Preupload,
    /// A commit on a branch.
    Commit,
    /// A commit in a pull request.
    PullRequest,
    /// A new repository.
    CreateRepository,
    /// A new branch.
    CreateBranch,
    /// A check of the model card.
    CheckCard,
}

/// Kinds of failure of the Hub, told apart because each asks for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubFault {
    /// There is no such repository, or it is private and the token may not see it.
    NoRepository,
    /// The repository is there, but its owner must grant access first.
    Gated,
    /// The repository has no such branch, tag or commit.
    NoRevision,
    /// The revision has no such file.
    NoFile,
    /// The token is not accepted.
    BadToken,
    /// The token is accepted, but may not do this.
    Forbidden,
    /// Something else was committed meanwhile, or the name is taken.
    Conflict,
    /// The server lacks this endpoint, as mirrors do.
    NotOffered,
    /// The account has no room left.
    Quota,
    /// Too many requests.
    RateLimited,
    /// `HF_HUB_OFFLINE` forbids the network, and the cache does not hold what was asked for.
    Offline,
    /// The other side could not be reached, was silent or broke off.
    Network,
    /// The other side answered what cannot be right: other bytes than promised, or no sense.
    Answer,
}

impl HubError {
    /// What kind of failure it is; none where the Hub has no part in it.
    pub fn fault(&self) -> Option<HubFault> {
        match self {
            Self::Refused { fault, .. }
            | Self::ObjectRefused { fault, .. }
            | Self::Xet { fault, .. } => Some(*fault),
            Self::NoToken { .. } => Some(HubFault::BadToken),
            Self::Offline { .. } | Self::NotCached { .. } => Some(HubFault::Offline),
            Self::Connection { .. }
            | Self::SlowAnswer { .. }
            | Self::CutOff { .. }
            | Self::SlowDownload { .. }
            | Self::StalledUpload { .. }
            | Self::XetCutOff { .. } => Some(HubFault::Network),
            Self::Variable { .. }
            | Self::SecretInEndpoint
            | Self::InvalidToken
            | Self::NoCache
            | Self::NoHeaderCache
            | Self::Client { .. }
            | Self::Pattern { .. }
            | Self::NothingSelected { .. }
            | Self::NoWeights { .. }
            | Self::SeveralGguf { .. }
            | Self::ReservedName { .. }
            | Self::PartialName { .. }
            | Self::NotSafetensors { .. }
            | Self::CommitAsBranch { .. }
            | Self::PublicRepository { .. }
            | Self::AllIgnored { .. }
            | Self::ModelIgnored { .. }
            | Self::OnlyPreview
            | Self::HoldsToken { .. }
            | Self::NameNotUtf8 { .. }
            | Self::InvalidName { .. }
            | Self::LinkToFolder { .. }
            | Self::LinkOutside { .. }
            | Self::BeyondEnd
            | Self::Unreadable { .. }
            | Self::HashThread { .. } => None,
            Self::CardRefused { .. }
            | Self::LargeAnswer { .. }
            | Self::NotJson { .. }
            | Self::UnsafeRedirect { .. }
            | Self::ManyRedirects { .. }
            | Self::WrongRange { .. }
            | Self::NoCommitOfRevision { .. }
            | Self::NotAListing { .. }
            | Self::NextPageElsewhere { .. }
            | Self::ManyPages { .. }
            | Self::ManyFiles { .. }
            | Self::LargeSizes { .. }
            | Self::RepeatedPath { .. }
            | Self::UnsafePath { .. }
            | Self::UnknownEntry { .. }
            | Self::NoSize { .. }
            | Self::NoHashes { .. }
            | Self::NoHash { .. }
            | Self::WrongContent { .. }
            | Self::NoAccountName { .. }
            | Self::NoVisibility { .. }
            | Self::NoUploadMode { .. }
            | Self::UnknownTransfer { .. }
            | Self::NoUploadAddress { .. }
            | Self::UnsafeAddress { .. }
            | Self::NoPartSize { .. }
            | Self::WrongParts { .. }
            | Self::NoPartTag { .. }
            | Self::ManyHeaders { .. }
            | Self::InvalidHeader { .. }
            | Self::NoXetAccess { .. }
            | Self::LargeCommit { .. }
            | Self::NoCommit { .. }
            | Self::ManyPullRequests { .. }
            | Self::WrongCommit { .. }
            | Self::CardNotUtf8 { .. } => Some(HubFault::Answer),
        }
    }

    /// Whether the request may be right, and the network or the Hub failed.
    pub fn is_outside(&self) -> bool {
        self.fault().is_some_and(HubFault::is_outside)
    }

    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        const ENDPOINT: &str = "is HF_ENDPOINT the address of a Hub?";
        const LIST: &str = "name files with --include; --include '*' --dry-run lists them all";
        const RENAME: &str = "rename the file";
        const CARD: &str = "correct the lines between `---` of README.md";
        let advice = match self {
            Self::Refused { fault, step, .. } => return fault.advice(*step).map(Cow::Borrowed),
            Self::CardRefused { .. } | Self::CardNotUtf8 { .. } => CARD,
            Self::NotJson { .. } | Self::NoCommitOfRevision { .. } => ENDPOINT,
            Self::NoHash { .. } => {
                "what cannot be checked is not pulled: leave it out with --exclude, or pull from a Hub that tells hashes"
            }
            Self::WrongContent { .. } => {
                "the bytes were changed on their way, or the server holds others than it lists: nothing was kept"
            }
            Self::NoVisibility { .. } => {
                "see on its page that nobody else can read it, then push without --private"
            }
            Self::LargeCommit { .. } => {
                "name the large ones in the repository's .gitattributes as files of LFS"
            }
            Self::NoCommit { .. } => {
                "run the command again: it says whether anything is left to send"
            }
            Self::ManyPullRequests { .. } => {
                "see on the repository's page whether one of them is yours"
            }
            Self::WrongCommit { .. } => {
                "do not use this commit; run the command again, and tell the server's maintainers if it stays so"
            }
            Self::NoToken { .. } => "set HF_TOKEN to a token with write access",
            Self::SecretInEndpoint => "give the token in HF_TOKEN",
            Self::InvalidToken => "check HF_TOKEN, or the token file",
            Self::NothingSelected {
                nearest: Some(path),
                ..
            } => {
                return Some(format!("the nearest path there is `{path}`").into());
            }
            Self::NothingSelected { nearest: None, .. } => {
                "--dry-run without patterns lists what would be pulled"
            }
            Self::NoWeights { .. } | Self::SeveralGguf { .. } => LIST,
            Self::ReservedName { path, .. } | Self::PartialName { path, .. } => {
                return Some(
                    format!(
                        "leave it out with --exclude '{path}', or pull into the cache, without DIR"
                    )
                    .into(),
                );
            }
            Self::CommitAsBranch { .. } => "name a branch with --revision",
            Self::PublicRepository { .. } => {
                "make it private in its settings, or push without --private"
            }
            Self::AllIgnored { .. } | Self::ModelIgnored { .. } => {
                "correct .gitignore on the repository's page, then push again"
            }
            Self::HoldsToken { .. } => {
                "remove the token from the file, and revoke it if the file was ever shared"
            }
            Self::NameNotUtf8 { .. } | Self::InvalidName { .. } => RENAME,
            Self::LinkToFolder { .. } => "move the folder here, or remove the link",
            Self::LinkOutside { .. } => "copy the file here, or remove the link",
            Self::Unreadable { hint, .. } => {
                return Some(hint.as_deref().unwrap_or("run the command again").into());
            }
            other => return other.fault()?.advice(HubStep::Other).map(Cow::Borrowed),
        };
        Some(advice.into())
    }
}

impl Error {
    /// What kind of failure of the Hub it is, if it is one.
    pub(super) fn hub_fault(&self) -> Option<HubFault> {
        match self {
            Self::Hub(error) => error.fault(),
            _ => None,
        }
    }

    /// The same error with what was asked for, which decides the advice of a refusal.
    pub(super) fn during(mut self, asked: HubStep) -> Self {
        if let Self::Hub(HubError::Refused { step, .. }) = &mut self {
            *step = asked;
        }
        self
    }
}

impl HubFault {
    /// Whether the request may be right, and the network or the Hub failed.
    fn is_outside(self) -> bool {
        matches!(
            self,
            Self::Quota | Self::RateLimited | Self::Network | Self::Answer
        )
    }

    fn advice(self, step: HubStep) -> Option<&'static str> {
        Some(match (self, step) {
            (Self::NoRepository, HubStep::Preupload) => {
                "it can be read and takes no pushes: HF_ENDPOINT may name a mirror, or HF_TOKEN may not write"
            }
            (Self::Conflict, HubStep::Commit | HubStep::PullRequest) => {
                "somebody else has committed meanwhile: run the command again, which compares anew and sends only what is missing"
            }
            (Self::NotOffered, HubStep::PullRequest) => {
                "this Hub has no pull requests: push to a branch with --revision"
            }
            (Self::Forbidden, HubStep::CreateRepository) => {
                "the token must be one with write access, and its account the owner or a member of it; or push to a repository of your own"
            }
            (Self::NotOffered, HubStep::CreateBranch) => {
                "this Hub cannot make such a branch: try a name without `/`"
            }
            (Self::Answer, HubStep::CheckCard) => "correct the lines between `---` of README.md",
            (Self::NoRepository, _) => {
                "check the spelling; for a private repository set HF_TOKEN to a token that may read it"
            }
            (Self::Gated, _) => {
                "ask for access on the repository's page, then set HF_TOKEN to a token of that account"
            }
            (Self::NoRevision, _) => {
                "name a branch, a tag or a commit that the repository has, as in org/name@main"
            }
            (Self::BadToken, _) => {
                "set HF_TOKEN to a valid token, or unset it where none is needed"
            }
            (Self::Forbidden, _) => "use a token with write access to this repository",
            (Self::Quota, _) => "free some space of the account, or push elsewhere",
            (Self::RateLimited, _) => {
                "wait, then run the command again: what has been transferred is kept"
            }
            (Self::Offline, _) => "unset HF_HUB_OFFLINE, or pull it while the network is there",
            (Self::Network, _) => "run the command again: what has been transferred is kept",
            (Self::NotOffered, _) => {
                "HF_ENDPOINT names a Hub that does not offer this, as a mirror that can only be pulled from"
            }
            (Self::NoFile | Self::Conflict | Self::Answer, _) => return None,
        })
    }
}

/// What a refusal says: the fault where it is clear, else the answer.
fn refusal_text(fault: HubFault, answer: Option<&str>) -> &str {
    match (fault, answer) {
        (HubFault::NoRepository, _) => "repository not found, or you have no access to it",
        (HubFault::Gated, _) => "the repository is gated, and you have no access to it",
        (HubFault::NoRevision, _) => "the repository has no revision of this name",
        (HubFault::NoFile, _) => "the revision has no file of this name",
        (_, Some(answer)) => answer,
        (_, None) => "the Hub refused",
    }
}
