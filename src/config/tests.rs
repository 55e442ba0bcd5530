//! What a configuration promises.

use std::{collections::BTreeSet, ffi::OsString};

use super::*;
use crate::units::{Size, Span};

fn around(variables: &[(&str, &str)], file: Option<&str>) -> (tempfile::TempDir, Surroundings) {
    let dir = tempfile::tempdir().unwrap();
    if let Some(text) = file {
        std::fs::write(dir.path().join("lastword.toml"), text).unwrap();
    }
    let variables = variables.iter().map(|(n, v)| (OsString::from(n), OsString::from(v)));
    let around = Surroundings::new(variables, dir.path()).unwrap();
    (dir, around)
}

fn read(variables: &[(&str, &str)], file: Option<&str>) -> Result<Config, String> {
    let (_dir, around) = around(variables, file);
    Config::read(Overrides::default(), &around).map_err(|why| why.to_string())
}

/// A configuration in which every field differs from its default.
fn full() -> Config {
    Config {
        database_url: "postgres://me:s3cret-1@db/app".to_owned(),
        listener_database_url: Some("postgres://me:s3cret-2@direct/app".to_owned()),
        database_schema: Some("chat".to_owned()),
        database_url_file: Some("/run/secrets/url".into()),
        listener_database_url_file: Some("/run/secrets/direct".into()),
        listen: "[::1]:9000".parse().unwrap(),
        url: Some("https://one.example:8443".to_owned()),
        data_dir: "/var/lib/lastword".into(),
        client_tokens: vec!["s3cret-3".to_owned(), "s3cret-4".to_owned()],
        operator_tokens: vec!["s3cret-5".to_owned()],
        worker_tokens: vec!["s3cret-7".to_owned()],
        insecure: true,
        dev: true,
        body_max: Size(1537),
        bodies_max: Size::mib(3),
        queue_max: 1,
        conversation_depth_max: 2,
        turns_max: 3,
        workers_max: Some(6),
        worker_user: Some("agents".to_owned()),
        worker_env_pass: vec!["HTTPS_PROXY".to_owned()],
        worker_namespaces: false,
        worker_cgroups: false,
        worker_file_max: Size(1538),
        pool_max: 4,
        streams_max: 5,
        connections_max: 6,
        connections_per_address_max: Some(7),
        waits_max: 6,
        unread_max: Size(1538),
        token_share: 50,
        token_rows_per_minute_max: 7,
        doorbell: Doorbell::Off,
        drain: Span::seconds(90),
        retain: Span::seconds(86_400 * 45),
        keep_alive: "1500ms".parse().unwrap(),
        connection_idle_max: "75s".parse().unwrap(),
        stream_stall_max: "90s".parse().unwrap(),
        cors_origins: vec!["https://chat.example".to_owned()],
        log: "lastword=debug,info".to_owned(),
        log_format: LogFormat::Json,
        otlp_endpoint: Some("http://me:s3cret-6@collector:4318/".to_owned()),
        postgres_away_max: Span::seconds(20),
        kubernetes: true,
        kubernetes_namespace: Some("agents".to_owned()),
        kubernetes_fleet: "chat".to_owned(),
        kubernetes_owner: Some("gateway".to_owned()),
        kubernetes_gateway_url: Some("http://gateway:8080".to_owned()),
    }
}

#[test]
fn later_sources_win() {
    let file = Some("drain = \"1m\"\nlog = \"warn\"\nlisten = \"127.0.0.1:1\"\nqueue_max = 7\n");
    let variables = [("LASTWORD_LOG", "debug"), ("LASTWORD_LISTEN", "127.0.0.1:2"), ("HOME", "/root")];
    let (_dir, around) = around(&variables, file);
    let flags = Overrides { listen: "127.0.0.1:3".parse().ok(), ..Overrides::default() };
    let config = Config::read(flags, &around).unwrap();
    assert_eq!(config.queue_max, 7);
    assert_eq!(config.drain, Span::seconds(60));
    assert_eq!(config.log, "debug");
    assert_eq!(config.listen.port(), 3);
    assert_eq!(config.turns_max, Config::default().turns_max);
}

#[test]
fn every_shape_of_variable_is_understood() {
    let config = read(
        &[
            ("LASTWORD_CLIENT_TOKENS", "a, b,,c "),
            ("LASTWORD_INSECURE", "1"),
            ("LASTWORD_DEV", "false"),
            ("LASTWORD_POOL_MAX", "3"),
            ("LASTWORD_BODY_MAX", "2MiB"),
            ("LASTWORD_DOORBELL", "off"),
            ("LASTWORD_DRAIN", ""),
            ("LASTWORD_ADVERTISED_URL", "http://one"),
            ("LASTWORD_URL", "http://where-clients-call"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
        ],
        None,
    )
    .unwrap();
    assert_eq!(config.client_tokens, ["a", "b", "c"]);
    assert!(config.insecure && !config.dev);
    assert_eq!((config.pool_max, config.body_max), (3, Size::mib(2)));
    assert_eq!(config.doorbell, Doorbell::Off);
    assert_eq!(config.drain, Config::default().drain, "an empty variable is not set");
    assert_eq!(config.url.as_deref(), Some("http://one"));
    assert_eq!(config.otlp_endpoint.as_deref(), Some("http://collector:4318"));
}

#[test]
fn our_variable_beats_the_customary_one_and_secrets_may_lie_in_files() {
    let (dir, _) = around(&[], None);
    std::fs::write(dir.path().join("url"), "postgres://file\n").unwrap();
    std::fs::write(dir.path().join("tokens"), "one\ntwo\n").unwrap();
    let read = |variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(n, v)| (OsString::from(n), OsString::from(v)));
        Config::read(Overrides::default(), &Surroundings::new(variables, dir.path()).unwrap())
    };
    let customary = ("DATABASE_URL", "postgres://customary");
    assert_eq!(read(&[customary]).unwrap().database_url, "postgres://customary");
    let ours = ("LASTWORD_DATABASE_URL", "postgres://ours");
    assert_eq!(read(&[customary, ours]).unwrap().database_url, "postgres://ours");
    let file = ("LASTWORD_DATABASE_URL_FILE", "url");
    let by_file = read(&[customary, file]).unwrap();
    assert_eq!(by_file.database_url, "postgres://file");
    assert_eq!(by_file.database_url_file, Some(dir.path().join("url")), "it is read again later");
    assert_eq!(read(&[ours]).unwrap().database_url_file, None);
    let tokens = ("LASTWORD_OPERATOR_TOKENS_FILE", "tokens");
    assert_eq!(read(&[tokens]).unwrap().operator_tokens, ["one", "two"]);

    let both = read(&[ours, file]).unwrap_err().to_string();
    assert!(both.starts_with("LASTWORD_DATABASE_URL_FILE: LASTWORD_DATABASE_URL is set too"), "{both}");
    let absent = read(&[("LASTWORD_CLIENT_TOKENS_FILE", "nowhere")]).unwrap_err().to_string();
    assert!(absent.starts_with("LASTWORD_CLIENT_TOKENS_FILE: cannot read nowhere"), "{absent}");
}

#[test]
fn a_file_that_the_file_names_holds_the_url_until_something_nearer_does() {
    let (dir, _) = around(&[], None);
    std::fs::write(dir.path().join("url"), "postgres://file\n").unwrap();
    std::fs::write(dir.path().join("lastword.toml"), "database_url_file = \"url\"\n").unwrap();
    let read = |variables: &[(&str, &str)], database_url: Option<&str>| {
        let variables = variables.iter().map(|(n, v)| (OsString::from(n), OsString::from(v)));
        let flags = Overrides { database_url: database_url.map(str::to_owned), ..Overrides::default() };
        let config = Config::read(flags, &Surroundings::new(variables, dir.path()).unwrap()).unwrap();
        (config.database_url, config.database_url_file)
    };
    let file = Some(dir.path().join("url"));
    assert_eq!(read(&[], None), ("postgres://file".to_owned(), file));
    assert_eq!(read(&[("DATABASE_URL", "postgres://near")], None), ("postgres://near".to_owned(), None));
    assert_eq!(read(&[], Some("postgres://nearest")), ("postgres://nearest".to_owned(), None));
}

#[test]
fn errors_name_their_source_and_the_nearest_known_name() {
    for (variables, file, error) in [
        (&[][..], Some("que_max = 1"), "lastword.toml: que_max: unknown, did you mean queue_max?"),
        (&[], Some("queue_max = -1"), "lastword.toml: queue_max: invalid value: integer `-1`"),
        (&[], Some("drain = \"soon\""), "lastword.toml: drain: `soon`: "),
        (&[], Some("log = 's3cret"), "lastword.toml: line 1: "),
        (&[], Some("client_tokens = \"s3cret\""), "lastword.toml: client_tokens: must be a list of strings"),
        (&[("LASTWORD_DRIAN", "5s")], None, "LASTWORD_DRIAN: unknown, did you mean LASTWORD_DRAIN?"),
        (&[("LASTWORD_DRAIN", "soon")], None, "LASTWORD_DRAIN: `soon`: "),
        (&[("LASTWORD_QUEUE_MAX", "many")], None, "LASTWORD_QUEUE_MAX: `many` is not a whole number"),
        (&[("LASTWORD_DEV", "perhaps")], None, "LASTWORD_DEV: `perhaps` is neither true nor false"),
        (&[("LASTWORD_LISTEN", "here")], None, "LASTWORD_LISTEN: invalid socket address"),
        (&[("LASTWORD_DOORBELL", "loud")], None, "LASTWORD_DOORBELL: unknown variant `loud`"),
        (&[("LASTWORD_CONFIG", "absent.toml")], None, "LASTWORD_CONFIG: cannot read absent.toml"),
    ] {
        let said = read(variables, file).unwrap_err();
        assert!(said.starts_with(error), "wanted {error}\n  said {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

#[test]
fn a_door_beyond_loopback_needs_tokens() {
    let base = Config { database_url: "postgres://db".to_owned(), ..Config::default() };
    let listen = "0.0.0.0:8080".parse().unwrap();
    let refused = |config: Config| config.validate().is_err();
    assert!(!refused(base.clone()));
    assert!(refused(Config { listen, ..base.clone() }));
    assert!(!refused(Config { listen, insecure: true, ..base.clone() }));
    let tokens = |length| vec!["t".repeat(length)];
    assert!(!refused(Config { listen, client_tokens: tokens(16), ..base.clone() }));
    for config in [
        Config { client_tokens: tokens(15), ..base.clone() },
        Config { operator_tokens: tokens(1), client_tokens: tokens(16), ..base.clone() },
        Config { worker_tokens: tokens(3), client_tokens: tokens(16), ..base.clone() },
    ] {
        assert!(!refused(config.clone()), "only this machine can guess");
        let said = Config { listen, insecure: true, ..config }.validate().unwrap_err().to_string();
        assert!(
            said.contains("_tokens has a token of fewer than 16 characters") && !said.contains("tt"),
            "{said}"
        );
    }
    assert!(refused(Config { bodies_max: Size::mib(1), ..base.clone() }), "a worker's batch has no room");
    assert!(refused(Config { body_max: Size::mib(65), ..base.clone() }));
    assert!(refused(Config { listen, dev: true, insecure: true, ..base.clone() }));
    let alone = Config { operator_tokens: vec!["o".repeat(16)], ..base.clone() };
    let said = alone.validate().unwrap_err().to_string();
    assert!(said.starts_with("client_tokens ") && said.contains("insecure = true"), "{said}");
    assert!(!refused(Config { insecure: true, ..alone.clone() }));
    assert!(!refused(Config { dev: true, ..alone.clone() }));
    assert!(!refused(Config { client_tokens: vec!["t".to_owned()], ..alone.clone() }));
    assert!(!refused(Config { listen, ..alone }), "client routes are closed there");
    assert!(refused(Config { client_tokens: vec!["a b".to_owned()], ..base.clone() }));
    assert!(refused(Config { url: Some("one:8080".to_owned()), ..base.clone() }));
    assert!(refused(Config { turns_max: 0, ..base.clone() }));
    assert!(refused(Config { workers_max: Some(63), ..base.clone() }));
    assert!(!refused(Config { workers_max: Some(64), ..base.clone() }));
    assert!(refused(Config { token_share: 101, ..base.clone() }));
    assert!(refused(Config { keep_alive: Span::seconds(60), ..base }));
    assert!(refused(Config::default()), "there is no database");
}

#[test]
fn what_is_shown_hides_every_secret_and_reads_back_as_the_same() {
    let shown = full().redacted();
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(!format!("{:?}", full()).contains("s3cret"));
    let mut wanted = full();
    wanted.database_url = "postgres://me:***@db/app".to_owned();
    wanted.listener_database_url = Some("postgres://me:***@direct/app".to_owned());
    wanted.client_tokens = vec!["***".to_owned(); 2];
    wanted.operator_tokens = vec!["***".to_owned()];
    wanted.worker_tokens = vec!["***".to_owned()];
    wanted.otlp_endpoint = Some("http://me:***@collector:4318/".to_owned());
    assert!(read(&[], Some(&shown)).unwrap() == wanted, "{shown}");

    let default = Config::default().redacted();
    assert!(read(&[], Some(&default)).unwrap() == Config::default(), "{default}");
}

#[test]
fn a_secret_is_hidden_wherever_it_was_put() {
    let token = "0123456789abcdef".repeat(4);
    let config = Config {
        data_dir: format!("/data/{token}").into(),
        log: "info,password=s3cret".to_owned(),
        kubernetes_owner: Some("ghp_s3cret0123456789abcdefghij".to_owned()),
        kubernetes_gateway_url: Some(format!("https://one/?access_token={token}")),
        // Without a scheme.
        otlp_endpoint: Some("me:s3cret@collector:4318".to_owned()),
        kubernetes_fleet: "\u{1b}[2J\u{202e}\u{9b}".to_owned(),
        ..Config::default()
    };
    let shown = config.redacted();
    assert!(!shown.contains("s3cret") && !shown.contains(&token), "{shown}");
    assert!(!shown.contains(|c| c != '\n' && crate::text::is_command(c)), "{shown:?}");
    for variable in ["LASTWORD_QUEUE_MAX", "LASTWORD_DEV", "LASTWORD_DRAIN", "LASTWORD_CLIENT_TOKENS_FILE"] {
        for value in [token.as_str(), "postgres://me:s3cret@db/app"] {
            let said = read(&[(variable, value)], None).unwrap_err();
            assert!(said.starts_with(variable), "{said}");
            assert!(!said.contains("s3cret") && !said.contains(&token), "{said}");
        }
    }
}

#[test]
fn every_field_has_a_key_and_every_key_a_field() {
    let shown: toml::Table = full().redacted().parse().unwrap();
    let fields: BTreeSet<&str> = shown.keys().map(String::as_str).collect();
    assert_eq!(fields, keys::key_names().collect());
}

#[test]
fn an_advertised_address_can_be_called() {
    let config = Config::default();
    assert_eq!(config.advertised_url("0.0.0.0:81".parse().unwrap()), "http://127.0.0.1:81");
    assert_eq!(config.advertised_url("10.0.0.1:81".parse().unwrap()), "http://10.0.0.1:81");
    let config = Config { url: Some("https://one/".to_owned()), ..config };
    assert_eq!(config.advertised_url("0.0.0.0:81".parse().unwrap()), "https://one");
}
