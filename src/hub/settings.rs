//! The settings of the Hub client, from the environment variables that `huggingface_hub` reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;

use super::request_error::HubRequestError;
use crate::{Error, Result};

const PUBLIC: &str = "https://huggingface.co";

/// Where the Hub is, who asks, and where files are kept.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Root of the Hub: `HF_ENDPOINT`.
    pub endpoint: Url,
    /// `HF_TOKEN`, or the file that a login has left.
    pub token: Option<Token>,
    /// `HF_HUB_CACHE`, else `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Whether Xet is not to be used: `HF_HUB_DISABLE_XET`.
    pub no_xet: bool,
    /// How long to wait for a connection or an answer: `HF_HUB_ETAG_TIMEOUT` in seconds.
    pub answer_timeout: Duration,
    /// How long a transfer may stand still: `HF_HUB_DOWNLOAD_TIMEOUT` in seconds.
    pub transfer_timeout: Duration,
}

/// A token, which is never printed.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The secret itself, for a header.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl HubSettings {
    /// The settings of this process's environment.
    ///
    /// # Errors
    /// An endpoint that is no `http` or `https` address, a time that is no number of seconds, a token with line breaks.
    pub fn from_environment() -> Result<Self> {
        Self::from(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| PUBLIC.to_owned());
        let refused = |expected: &'static str| HubRequestError::Variable {
            variable: "HF_ENDPOINT",
            expected,
            found: endpoint.clone(),
        };
        let url = Url::parse(&endpoint).map_err(|_| refused("an address"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(refused("an http or https address").into());
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(HubRequestError::SecretInEndpoint.into());
        }
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.clone()?.join("hub")));
        let cache = cache.ok_or(HubRequestError::NoCache)?;
        let is_on = |name: &str| {
            variable(name).is_some_and(|value| {
                matches!(value.to_lowercase().as_str(), "1" | "on" | "yes" | "true")
            })
        };
        let seconds = |name: &'static str, usual: u64| match variable(name) {
            None => Ok(Duration::from_secs(usual)),
            Some(text) => match text.parse::<f64>() {
                Ok(seconds) if seconds > 0.0 && seconds < 1e6 => {
                    Ok(Duration::from_secs_f64(seconds))
                }
                _ => Err(HubRequestError::Variable {
                    variable: name,
                    expected: "a number of seconds",
                    found: text,
                }),
            },
        };
        let file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let kept = || file.as_deref().map_or(Ok(None), read_token);
        let token = match variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(token),
            None if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            None => kept()?,
        };
        let token = token
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        if token
            .as_ref()
            .is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(HubRequestError::InvalidToken.into());
        }
        Ok(Self {
            endpoint: url,
            token: token.map(Token),
            cache,
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            no_xet: is_on("HF_HUB_DISABLE_XET"),
            answer_timeout: seconds("HF_HUB_ETAG_TIMEOUT", 10)?,
            transfer_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", 10)?,
        })
    }
}

fn read_token(file: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", file, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::HubError;
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<HubSettings> {
        HubSettings::from(&|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn places_and_switches_are_those_of_python() {
        let found = with(&[("HOME", "/h")]).unwrap();
        assert_eq!(
            (found.endpoint.as_str(), found.offline),
            ("https://huggingface.co/", false)
        );
        assert_eq!(found.cache, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")])
                .unwrap()
                .cache,
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(
            with(&[("HF_HOME", "/f"), ("XDG_CACHE_HOME", "/x")])
                .unwrap()
                .cache,
            Path::new("/f/hub")
        );
        assert_eq!(
            with(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")])
                .unwrap()
                .cache,
            Path::new("/c")
        );
        assert!(
            with(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "yes")])
                .unwrap()
                .offline
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5")])
                .unwrap()
                .transfer_timeout,
            Duration::from_millis(2500)
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (name, value) in [
            ("HF_ENDPOINT", "huggingface"),
            ("HF_ENDPOINT", "file:///etc"),
            ("HF_ENDPOINT", "https://me:secret@hub.example"),
            ("HF_HUB_ETAG_TIMEOUT", "soon"),
            ("HF_TOKEN", "hf_a\nb"),
        ] {
            let error = with(&[("HOME", "/h"), (name, value)]).unwrap_err();
            match &error {
                Error::Hub(HubError::Request(HubRequestError::Variable { variable, .. })) => {
                    assert_eq!(*variable, name)
                }
                Error::Hub(HubError::Request(HubRequestError::SecretInEndpoint)) => {
                    assert_eq!(name, "HF_ENDPOINT")
                }
                Error::Hub(HubError::Request(HubRequestError::InvalidToken)) => {
                    assert_eq!(name, "HF_TOKEN")
                }
                other => panic!("{name}: {other}"),
            }
            let error = error.to_string();
            assert!(
                !error.contains("secret") && !error.contains("hf_a"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        let found = with(&[("HOME", "/h"), ("HF_TOKEN", "hf_secret\n")]).unwrap();
        assert_eq!(found.token.as_ref().map(Token::secret), Some("hf_secret"));
        assert!(!format!("{found:?}").contains("secret"));
    }
}
