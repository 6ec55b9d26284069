//! Pushing a folder: what the repository lacks goes up, in one commit, and what is there then is read back and compared.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::answer_error::HubAnswerError;
use super::client::HubClient;
use super::commit::{Changes, Committed, Target};
use super::error::{HubFault, HubStep};
use super::http::HubRequest;
use super::outgoing::{Outgoing, collect};
use super::repository::{Head, HeadOptions, with_owner};
use super::request_error::HubRequestError;
use super::tree::Snapshot;
use super::{lfs, xet};
use crate::Result;
use crate::checkpoint::folder::{CARD, INDEX};
use crate::checkpoint::manifest::MANIFEST;
use crate::checkpoint::reference::Reference;
use crate::checkpoint::weight_names::is_model_file;

/// What is pushed, and how.
pub struct PushOptions<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Contents that go up in the place of files of the folder, or beside them.
    pub replaced: BTreeMap<String, Vec<u8>>,
    /// A repository that has to be made is made so that nobody else sees it; one that all may see is refused.
    pub private: bool,
    /// Open a pull request instead of changing the branch.
    pub create_pr: bool,
    /// What the commit says; what follows the first line is its description.
    pub message: String,
    /// Make nothing, neither repository nor branch.
    pub dry_run: bool,
}

/// A push that has been worked out, and can be shown or carried out.
pub struct Push<'a> {
    client: &'a HubClient,
    target: Target,
    message: String,
    head: Head,
    outgoing: Vec<Outgoing>,
    /// The files and what becomes of each.
    pub files: Vec<PushedFile>,
    /// Files of the model that the repository holds now, which would not belong to the new one.
    pub removed: Vec<String>,
}

/// A file of a push.
#[derive(Clone, Debug, Serialize)]
pub struct PushedFile {
    /// Path in the repository.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of its content.
    pub sha256: String,
    /// What becomes of it.
    pub state: PushState,
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PushState {
    /// The repository has it as it is.
    Unchanged,
    /// The repository's `.gitignore` leaves it out.
    Ignored,
    /// It goes up in the commit itself.
    Small,
    /// It goes up on its own.
    Large,
    /// It goes up; how, is known once the repository is there.
    New,
}

/// What a push has come to.
#[derive(Debug, Serialize)]
pub struct Pushed {
    /// `ORG/NAME`.
    pub repository: String,
    /// Branch.
    pub revision: String,
    /// Whether the repository was made.
    pub new_repository: bool,
    /// The commit that holds the files: the new one, or that which held them already.
    pub commit: String,
    /// Page of the new commit; none where nothing had changed.
    pub url: Option<String>,
    /// Page of the pull request that was opened.
    pub pull_request: Option<String>,
    /// The files.
    pub files: Vec<PushedFile>,
    /// Files that belonged to an earlier model.
    pub removed: Vec<String>,
    /// Bytes of those that went up.
    pub sent: u64,
}

impl<'a> Push<'a> {
    /// Reads the folder and asks the Hub what it has; makes the repository and the branch where they are missing.
    /// `progress` is called with numbers of bytes that were read.
    ///
    /// # Errors
    /// What must not go up, and what the Hub refuses. No token, unless it is only a look at a repository with an owner.
    pub fn new(
        client: &'a HubClient,
        reference: &Reference,
        options: PushOptions,
        progress: &dyn Fn(u64),
    ) -> Result<Self> {
        if !options.dry_run || !reference.repository.contains('/') {
            client.require_token(reference)?;
        }
        let outgoing = collect(
            options.folder,
            options.replaced,
            client.settings.token.as_ref(),
            progress,
        )?;
        let reference = with_owner(client, reference)?;
        let head_options = HeadOptions {
            private: options.private,
            as_base: options.create_pr,
            only_look: options.dry_run,
        };
        let head = Head::find(client, &reference, head_options)?;
        let target = Target {
            reference,
            create_pr: options.create_pr,
        };
        let states = match &head.snapshot {
            None => vec![PushState::New; outgoing.len()],
            Some(snapshot) if client.has_token() => states(client, &target, snapshot, &outgoing)?,
            Some(snapshot) => compared(snapshot, &outgoing)?,
        };
        let files = outgoing.iter().zip(states).map(|(file, state)| PushedFile {
            path: file.path.clone(),
            size: file.size,
            sha256: file.sha256.clone(),
            state,
        });
        let files: Vec<PushedFile> = files.collect();
        check_ignored(&target, &files)?;
        let there = head
            .snapshot
            .iter()
            .flat_map(|snapshot| snapshot.files.keys());
        let is_stale =
            |path: &&String| is_of_model(path) && files.iter().all(|file| file.path != **path);
        let removed = there.filter(is_stale).cloned().collect();
        Ok(Self {
            client,
            target,
            message: options.message,
            head,
            outgoing,
            files,
            removed,
        })
    }

    /// Repository and branch.
    pub fn reference(&self) -> &Reference {
        &self.target.reference
    }

    /// Whether the repository is a new one.
    pub fn new_repository(&self) -> bool {
        self.head.new_repository
    }

    /// Bytes that are to go up.
    pub fn missing(&self) -> u64 {
        self.files
            .iter()
            .filter(|file| is_sent(file.state))
            .map(|file| file.size)
            .sum()
    }

    /// Sends what is missing and commits it; `progress` is called with numbers of bytes that were sent.
    ///
    /// # Errors
    /// What the Hub refuses, files that change meanwhile, somebody else's commit, and a commit that does not hold what was
    /// sent.
    pub fn run(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<Pushed> {
        let Some(parent) = &self.head.snapshot else {
            return Err(HubRequestError::OnlyPreview.into());
        };
        let of = |state: PushState| -> Vec<&Outgoing> {
            let all = self.outgoing.iter().zip(&self.files);
            all.filter(|(_, file)| file.state == state)
                .map(|(outgoing, _)| outgoing)
                .collect()
        };
        let removed = self.removed.iter().map(String::as_str).collect();
        let changes = Changes {
            small: of(PushState::Small),
            large: of(PushState::Large),
            removed,
        };
        let (small, large) = (&changes.small, &changes.large);
        if small.is_empty() && large.is_empty() && changes.removed.is_empty() {
            return Ok(self.pushed(Committed {
                commit: parent.commit.clone(),
                url: String::new(),
                pull_request: None,
            }));
        }
        if let Some(card) = small.iter().find(|file| file.path == CARD) {
            self.check_card(card)?;
        }
        let over_xet = lfs::upload(self.client, &self.target, large, progress)?;
        if !over_xet.is_empty() {
            xet::upload(self.client, &self.target, &over_xet, progress)?;
        }
        self.outgoing
            .iter()
            .try_for_each(Outgoing::check_unchanged)?;
        let done = self
            .target
            .commit(self.client, parent, &self.message, &changes)?;
        progress(small.iter().map(|file| file.size).sum());
        self.read_back(&done.commit)?;
        Ok(self.pushed(done))
    }

    fn pushed(&self, done: Committed) -> Pushed {
        Pushed {
            repository: self.target.reference.repository.clone(),
            revision: self.target.reference.revision().to_owned(),
            new_repository: self.head.new_repository,
            commit: done.commit,
            url: Some(done.url).filter(|url| !url.is_empty()),
            pull_request: done.pull_request,
            files: self.files.clone(),
            removed: self.removed.clone(),
            sent: self.missing(),
        }
    }

    /// Lets the Hub read the card's front matter before anything is sent.
    fn check_card(&self, card: &Outgoing) -> Result<()> {
        let place = format!("{}: {CARD}", self.target.place());
        let Ok(content) = String::from_utf8(card.bytes()?) else {
            return Err(HubAnswerError::CardNotUtf8 { place }.into());
        };
        let body = serde_json::json!({"repoType": "model", "content": content});
        let url = self.client.url(&["api", "validate-yaml"]);
        let answer = match self.client.json(&place, &HubRequest::post(url, &body)) {
            Ok((answer, _)) => answer,
            // A Hub that reads no cards refuses none.
            Err(error) if error.hub_fault() == Some(HubFault::NotOffered) => return Ok(()),
            Err(error) => return Err(error.during(HubStep::CheckCard)),
        };
        let errors = answer
            .get("errors")
            .and_then(|errors| errors.as_array())
            .into_iter()
            .flatten();
        let said: Vec<&str> = errors
            .filter_map(|error| error.get("message")?.as_str())
            .collect();
        if said.is_empty() {
            return Ok(());
        }
        let said = self.client.shown(&said.join("; "));
        Err(HubAnswerError::CardRefused { place, said }.into())
    }

    /// Compares what the commit holds with what was pushed.
    fn read_back(&self, commit: &str) -> Result<()> {
        let reference = Reference {
            revision: Some(commit.to_owned()),
            ..self.target.reference.clone()
        };
        let snapshot = Snapshot::of(self.client, &reference)?;
        let mut wrong = Vec::new();
        for (outgoing, file) in self.outgoing.iter().zip(&self.files) {
            if file.state == PushState::Ignored {
                continue;
            }
            match snapshot.files.get(&file.path) {
                Some(entry) if outgoing.is(entry)? => {}
                _ => wrong.push(file.path.clone()),
            }
        }
        let still_there = |path: &&String| snapshot.files.contains_key(*path);
        wrong.extend(self.removed.iter().filter(still_there).cloned());
        if wrong.is_empty() {
            return Ok(());
        }
        Err(HubAnswerError::WrongCommit {
            place: snapshot.place(),
            paths: wrong,
        }
        .into())
    }
}

/// Whether a file holds weights of the repository's model, or says where they are. A repository holds one model only.
fn is_of_model(path: &str) -> bool {
    is_model_file(path) || [INDEX, MANIFEST].contains(&path)
}

/// Refuses a push of which `.gitignore` leaves out files that the model needs.
fn check_ignored(target: &Target, files: &[PushedFile]) -> Result<()> {
    let ignored = |file: &&PushedFile| file.state == PushState::Ignored;
    let place = target.place();
    if !files.is_empty() && files.iter().all(|file| ignored(&file)) {
        return Err(HubRequestError::AllIgnored { place }.into());
    }
    let needed = |file: &&PushedFile| is_of_model(&file.path) || file.path == "config.json";
    match files.iter().filter(needed).find(ignored) {
        Some(file) => Err(HubRequestError::ModelIgnored {
            place,
            path: file.path.clone(),
        }
        .into()),
        None => Ok(()),
    }
}

fn is_sent(state: PushState) -> bool {
    matches!(state, PushState::Small | PushState::Large | PushState::New)
}

/// What becomes of each file by its hash alone: the Hub answers questions about `.gitignore` only to a token.
fn compared(snapshot: &Snapshot, files: &[Outgoing]) -> Result<Vec<PushState>> {
    let state = |file: &Outgoing| {
        let there = snapshot.files.get(&file.path);
        let is_there = there.map(|entry| file.is(entry)).transpose()?;
        Ok(if is_there == Some(true) {
            PushState::Unchanged
        } else {
            PushState::New
        })
    };
    files.iter().map(state).collect()
}

/// What becomes of each file, where the branch is at `snapshot`.
fn states(
    client: &HubClient,
    target: &Target,
    snapshot: &Snapshot,
    files: &[Outgoing],
) -> Result<Vec<PushState>> {
    let modes = target.modes(client, files)?;
    let state = |(file, mode): (&Outgoing, super::commit::Mode)| {
        let there = snapshot.files.get(&file.path);
        Ok(match there.map(|entry| file.is(entry)).transpose()? {
            Some(true) => PushState::Unchanged,
            _ if mode.ignored => PushState::Ignored,
            _ if mode.large => PushState::Large,
            _ => PushState::Small,
        })
    };
    files.iter().zip(modes).map(state).collect()
}
