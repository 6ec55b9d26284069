//! Answers of the Hub that cannot be right: one variant per broken rule, and what to do next.
//!
//! `place` is a repository with its revision, and a file of it where the error is about one.

use std::borrow::Cow;

/// A rule that an answer of the Hub, or of a storage that it names, breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubAnswerError {
    /// The Hub cannot read the front matter of the model card.
    #[error("{place}: expected a card that the Hub can read: {said}")]
    CardRefused {
        /// Repository, revision and card.
        place: String,
        /// What the Hub says.
        said: String,
    },
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
    #[error("{place}: expected to hear how `{path}` is to be sent, found nothing")]
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
    #[error("{place}: expected to hear where it goes, found nothing")]
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
    /// The model card is not UTF-8.
    #[error("{place}: expected a card in UTF-8")]
    CardNotUtf8 {
        /// Repository, revision and card.
        place: String,
    },
}

impl HubAnswerError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        const ENDPOINT: &str = "is HF_ENDPOINT the address of a Hub?";
        const CARD: &str = "correct the lines between `---` of README.md";
        Some(Cow::Borrowed(match self {
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
            _ => return None,
        }))
    }
}
