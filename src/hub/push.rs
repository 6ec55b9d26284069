//! Pushing a folder: what the repository lacks goes up, in one commit, and what is there then is read back and compared.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::commit::{Changes, Committed, Target};
use super::http::{Client, Request};
use super::outgoing::{Outgoing, collect};
use super::repository::{Head, Wish, with_owner};
use super::tree::Snapshot;
use super::{lfs, xet};
use crate::checkpoint::folder::{CARD, INDEX, is_model_file};
use crate::checkpoint::manifest::MANIFEST;
use crate::checkpoint::reference::Reference;
use crate::error::HubFault;
use crate::{Error, Result};

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
    client: &'a Client,
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
    pub state: State,
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
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
    /// `progress` is told of bytes of the folder that were read.
    ///
    /// # Errors
    /// What must not go up, and what the Hub refuses; no token.
    pub fn new(
        client: &'a Client,
        reference: &Reference,
        options: PushOptions,
        progress: &dyn Fn(u64),
    ) -> Result<Self> {
        client.require_token(reference)?;
        let outgoing = collect(
            options.folder,
            options.replaced,
            client.settings.token.as_ref(),
            progress,
        )?;
        let reference = with_owner(client, reference)?;
        let wish = Wish {
            private: options.private,
            as_base: options.create_pr,
            only_look: options.dry_run,
        };
        let head = Head::find(client, &reference, wish)?;
        let target = Target {
            reference,
            create_pr: options.create_pr,
        };
        let states = match &head.snapshot {
            None => vec![State::New; outgoing.len()],
            Some(snapshot) => states(client, &target, snapshot, &outgoing)?,
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

    /// Sends what is missing and commits it; `progress` is told of bytes that have gone out.
    ///
    /// # Errors
    /// What the Hub refuses, files that change meanwhile, somebody else's commit, and a commit that does not hold what was
    /// sent.
    pub fn run(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<Pushed> {
        let Some(parent) = &self.head.snapshot else {
            return Err(Error::usage(
                "a look at what would be pushed cannot be carried out",
            ));
        };
        let of = |state: State| -> Vec<&Outgoing> {
            let all = self.outgoing.iter().zip(&self.files);
            all.filter(|(_, file)| file.state == state)
                .map(|(outgoing, _)| outgoing)
                .collect()
        };
        let removed = self.removed.iter().map(String::as_str).collect();
        let changes = Changes {
            small: of(State::Small),
            large: of(State::Large),
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
        let content = String::from_utf8(card.bytes()?)
            .map_err(|_| Error::hub(&place, HubFault::Answer, "expected a card in UTF-8"))?;
        let body = serde_json::json!({"repoType": "model", "content": content});
        let url = self.client.url(&["api", "validate-yaml"]);
        let hint = "correct the lines between `---` of README.md";
        let answer = match self.client.json(&place, &Request::post(url, &body)) {
            Ok((answer, _)) => answer,
            // A Hub that reads no cards refuses none.
            Err(Error::Hub {
                fault: HubFault::NotOffered,
                ..
            }) => return Ok(()),
            Err(
                error @ Error::Hub {
                    fault: HubFault::Answer,
                    ..
                },
            ) => return Err(error.with_hint(hint)),
            Err(error) => return Err(error),
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
        let problem = format!(
            "expected a card that the Hub can read: {}",
            self.client.shown(&said.join("; "))
        );
        Err(Error::hub(&place, HubFault::Answer, problem).with_hint(hint))
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
            if file.state == State::Ignored {
                continue;
            }
            match snapshot.files.get(&file.path) {
                Some(entry) if outgoing.is(entry)? => {}
                _ => wrong.push(file.path.as_str()),
            }
        }
        wrong.extend(
            self.removed
                .iter()
                .map(String::as_str)
                .filter(|path| snapshot.files.contains_key(*path)),
        );
        if wrong.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "expected the commit to hold what was pushed, found otherwise: {}",
            wrong.join(", ")
        );
        Err(Error::hub(snapshot.place(), HubFault::Answer, problem).with_hint(
            "do not use this commit; run the command again, and tell the server's maintainers if it stays so",
        ))
    }
}

/// Whether a file says where the weights of a repository's model are, or holds some: two models side by side are none.
fn is_of_model(path: &str) -> bool {
    is_model_file(path) || [INDEX, MANIFEST].contains(&path)
}

/// Refuses to push what would be no model, because `.gitignore` leaves out what belongs to it.
fn check_ignored(target: &Target, files: &[PushedFile]) -> Result<()> {
    let ignored = |file: &&PushedFile| file.state == State::Ignored;
    let problem = if !files.is_empty() && files.iter().all(|file| ignored(&file)) {
        "the repository's .gitignore leaves out every file".to_owned()
    } else {
        let needed = |file: &&PushedFile| is_of_model(&file.path) || file.path == "config.json";
        match files.iter().filter(needed).find(ignored) {
            Some(file) => format!("the repository's .gitignore leaves out {}", file.path),
            None => return Ok(()),
        }
    };
    let problem = format!("{}: {problem}, so nothing is pushed", target.place());
    Err(Error::usage(problem)
        .with_hint("correct .gitignore on the repository's page, then push again"))
}

fn is_sent(state: State) -> bool {
    matches!(state, State::Small | State::Large | State::New)
}

/// What becomes of each file, where the branch is at `snapshot`.
fn states(
    client: &Client,
    target: &Target,
    snapshot: &Snapshot,
    files: &[Outgoing],
) -> Result<Vec<State>> {
    let modes = target.modes(client, files)?;
    let state = |(file, mode): (&Outgoing, super::commit::Mode)| {
        let there = snapshot.files.get(&file.path);
        Ok(match there.map(|entry| file.is(entry)).transpose()? {
            Some(true) => State::Unchanged,
            _ if mode.ignored => State::Ignored,
            _ if mode.large => State::Large,
            _ => State::Small,
        })
    };
    files.iter().zip(modes).map(state).collect()
}
