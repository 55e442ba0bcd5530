//! Finds the gateway and the token: from flags, the environment, or the directory of a running `dev`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use lastword_client::gateway::{CallError, GatewayClient};

/// Default directory of `lastword dev`.
const DEFAULT_DATA: &str = ".lastword";
/// Default URLs of `lastword dev`.
const DEFAULT_URLS: [&str; 2] = ["http://127.0.0.1:8080", "http://127.0.0.1:8081"];

/// The flags that every client command takes.
#[derive(clap::Args, Clone)]
pub struct Address {
    /// Base URL of a gateway; several, separated by commas, are tried in turn
    #[arg(long = "url", env = "LASTWORD_URL", value_delimiter = ',', value_name = "URL", global = true)]
    urls: Vec<String>,
    /// Directory of a running `lastword dev`, for its URLs and its operator token [default: .lastword, if
    /// `lastword dev` runs there]
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    #[command(flatten)]
    token: TokenArgs,
}

/// How a command is told its bearer token: never among its arguments.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TokenArgs {
    /// A bearer token. Only its variable is taken: arguments are seen by every user of the machine
    #[arg(long, env = "LASTWORD_TOKEN", hide = true, hide_env_values = true, global = true)]
    token: Option<String>,
    /// File with a bearer token; LASTWORD_TOKEN may hold the token itself
    #[arg(long, env = "LASTWORD_TOKEN_FILE", value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
}

impl TokenArgs {
    /// The token. A named file takes precedence over the variable.
    pub fn read(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.token_file else { return Ok(self.token.clone()) };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // A replica's own token file may hold several.
        let first = text.split([',', '\n']).map(str::trim).find(|token| !token.is_empty());
        let token = first.with_context(|| format!("{} is empty", path.display()))?;
        Ok(Some(token.to_owned()))
    }
}

impl Address {
    /// The gateway for these flags. Flags take precedence over the directory, the directory over the defaults.
    pub fn gateway(&self) -> Result<GatewayClient, CallError> {
        let (urls, token) = self.resolve().map_err(|why| CallError::Setup(format!("{why:#}")))?;
        GatewayClient::new(&urls, token)
    }

    fn resolve(&self) -> anyhow::Result<(Vec<String>, Option<String>)> {
        self.resolve_in(Path::new(""))
    }

    /// Without flags, uses the `dev` that runs in this directory, if one does.
    fn resolve_in(&self, here: &Path) -> anyhow::Result<(Vec<String>, Option<String>)> {
        let usual = here.join(DEFAULT_DATA);
        let own = self.token.read()?;
        let says_nothing = self.urls.is_empty() && own.is_none() && self.data.is_none();
        let data = match says_nothing && usual.join("dev.json").is_file() {
            true => Some(usual),
            false => self.data.clone(),
        };
        let urls = match (&self.urls, &data) {
            (urls, _) if !urls.is_empty() => urls.clone(),
            (_, Some(dir)) => dev_urls(dir)?,
            (_, None) => DEFAULT_URLS.map(str::to_owned).to_vec(),
        };
        let token = match (own, &data) {
            (Some(token), _) => Some(token),
            (None, Some(dir)) => operator_token(dir)?,
            (None, None) => None,
        };
        Ok((urls, token))
    }
}

/// The part of `dev.json` that is needed here.
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

/// The token in the directory. A directory without one belongs to a gateway that needs none.
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
            token: TokenArgs { token: token.map(str::to_owned), token_file: None },
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
        let here = tempfile::tempdir().unwrap();
        let (urls, token) = address(&[], None, None).resolve_in(here.path()).unwrap();
        assert_eq!((urls, token), (DEFAULT_URLS.map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn without_flags_it_is_the_dev_that_runs_here() {
        let here = tempfile::tempdir().unwrap();
        let data = here.path().join(DEFAULT_DATA);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("dev.json"), r#"{"urls":["http://127.0.0.1:9000"]}"#).unwrap();
        std::fs::write(data.join("operator.token"), "secret\n").unwrap();
        let found = address(&[], None, None).resolve_in(here.path()).unwrap();
        assert_eq!(found, (vec!["http://127.0.0.1:9000".to_owned()], Some("secret".to_owned())));
        let (urls, token) = address(&["http://far:1"], None, None).resolve_in(here.path()).unwrap();
        assert_eq!((urls, token), (vec!["http://far:1".to_owned()], None), "its token goes to nobody else");
    }

    #[test]
    fn a_token_may_lie_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let args = TokenArgs { token: Some("variable".to_owned()), token_file: Some(path.clone()) };
        assert!(args.read().unwrap_err().to_string().contains("cannot read"));
        std::fs::write(&path, "\n").unwrap();
        assert!(args.read().unwrap_err().to_string().contains("is empty"));
        std::fs::write(&path, "\nfile\nother\n").unwrap();
        assert_eq!(args.read().unwrap().as_deref(), Some("file"));
    }

    #[test]
    fn a_folder_without_dev_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let why = address(&[], Some(dir.path()), None).gateway().err().unwrap();
        assert!(why.to_string().contains("is `lastword dev` running there?"), "{why}");
    }
}
