//! Where the gateway is, and who asks: flags, environment, or the folder of a running `dev`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use super::gateway::{CallError, Gateway};

/// Where `lastword dev` listens unless told otherwise.
const DEFAULT_URLS: [&str; 2] = ["http://127.0.0.1:8080", "http://127.0.0.1:8081"];

/// The flags that every client command takes.
#[derive(clap::Args, Clone)]
pub struct Address {
    /// A gateway's base URL; several are tried in turn
    #[arg(long = "url", env = "LASTWORD_URL", value_delimiter = ',', value_name = "URL", global = true)]
    urls: Vec<String>,
    /// The folder of a running `lastword dev`: its URLs and its operator token
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// A bearer token
    #[arg(long, env = "LASTWORD_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,
}

impl Address {
    /// The gateway meant by these flags. Flags go before the folder, the folder before defaults.
    pub fn gateway(&self) -> Result<Gateway, CallError> {
        let (urls, token) = self.resolve().map_err(|why| CallError::Setup(format!("{why:#}")))?;
        Gateway::new(&urls, token)
    }

    fn resolve(&self) -> anyhow::Result<(Vec<String>, Option<String>)> {
        let urls = match (&self.urls, &self.data) {
            (urls, _) if !urls.is_empty() => urls.clone(),
            (_, Some(dir)) => dev_urls(dir)?,
            (_, None) => DEFAULT_URLS.map(str::to_owned).to_vec(),
        };
        let token = match (&self.token, &self.data) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(dir)) => operator_token(dir)?,
            (None, None) => None,
        };
        Ok((urls, token))
    }
}

/// What `lastword dev` writes for others: only what is needed here.
#[derive(Deserialize)]
struct DevFile {
    urls: Vec<String>,
}

fn dev_urls(dir: &Path) -> anyhow::Result<Vec<String>> {
    let path = dir.join("dev.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}: is `lastword dev` running there?", path.display()))?;
    let dev: DevFile = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    anyhow::ensure!(!dev.urls.is_empty(), "{} names no URL", path.display());
    Ok(dev.urls)
}

/// A folder without a token is one of a gateway that needs none.
fn operator_token(dir: &Path) -> anyhow::Result<Option<String>> {
    let path = dir.join("operator.token");
    match std::fs::read_to_string(&path) {
        Ok(token) => Ok(Some(token.trim().to_owned())),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(why).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(urls: &[&str], data: Option<&Path>, token: Option<&str>) -> Address {
        Address {
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            data: data.map(Path::to_owned),
            token: token.map(str::to_owned),
        }
    }

    #[test]
    fn a_running_dev_tells_its_urls_and_token() {
        let dir = tempfile::tempdir().unwrap();
        let dev = r#"{"urls":["http://127.0.0.1:9000/"],"database_url":"postgres://x"}"#;
        std::fs::write(dir.path().join("dev.json"), dev).unwrap();
        std::fs::write(dir.path().join("operator.token"), "secret\n").unwrap();
        let gateway = address(&[], Some(dir.path()), None).gateway().unwrap();
        assert_eq!(gateway.urls(), ["http://127.0.0.1:9000"]);
        assert_eq!(gateway.token(), Some("secret"));
        let gateway = address(&["http://far:1"], Some(dir.path()), Some("mine")).gateway().unwrap();
        assert_eq!(gateway.urls(), ["http://far:1"]);
        assert_eq!(gateway.token(), Some("mine"));
    }

    #[test]
    fn without_flags_it_is_this_machine() {
        assert_eq!(address(&[], None, None).gateway().unwrap().urls(), DEFAULT_URLS);
    }

    #[test]
    fn a_folder_without_dev_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let why = address(&[], Some(dir.path()), None).gateway().err().unwrap();
        assert!(why.to_string().contains("is `lastword dev` running there?"), "{why}");
    }
}
