//! A Postgres with a user `app` and its database, whose login rules a test changes.

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use lastword_devkit::postgres::{Binaries, Postgres};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{
    certificates::{Certificates, put},
    support::program,
};

pub struct Server {
    pub postgres: Postgres,
}

/// What a program came to that was asked to connect.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    In,
    /// And what was said.
    Not(String),
}

impl Server {
    pub async fn start() -> Server {
        let server = Server { postgres: Postgres::for_test().unwrap() };
        server.sql(&["create role app login password 'one'", "create database app owner app"]).await;
        server
    }

    /// As the superuser, by a way in that no test closes.
    pub async fn sql(&self, statements: &[&str]) {
        let mut conn = PgConnection::connect(&self.postgres.url()).await.unwrap();
        for statement in statements {
            conn.execute(AssertSqlSafe(*statement)).await.unwrap();
        }
    }

    pub async fn ask(&self, question: &str) -> String {
        let mut conn = PgConnection::connect(&self.postgres.url()).await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&mut conn).await.unwrap()
    }

    /// Speaks TLS with this certificate from now on; `doors` are lines of `pg_hba.conf` for `app`.
    pub async fn speak_tls(&self, certificates: &Certificates, name: &str, doors: &str) {
        let data = self.postgres.data();
        put(&certificates.file(&format!("{name}.crt")), data, "server.crt");
        put(&certificates.file(&format!("{name}.key")), data, "server.key");
        put(&certificates.file("ca.crt"), data, "clients.crt");
        let hba = certificates.file("pg_hba.conf");
        std::fs::write(&hba, format!("host all postgres 127.0.0.1/32 scram-sha-256\n{doors}\n")).unwrap();
        put(&hba, data, "pg_hba.conf");
        self.sql(&[
            "alter system set ssl_ca_file = 'clients.crt'",
            "alter system set ssl = on",
            "select pg_reload_conf()",
        ])
        .await;
        // A new backend has it once the server's first process has read it.
        let until = Instant::now() + Duration::from_secs(20);
        while self.ask("show ssl").await != "on" {
            assert!(Instant::now() < until, "TLS is not spoken");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where `app` connects.
    pub fn url(&self, password: &str, parameters: &str) -> String {
        format!("postgres://app:{password}@localhost:{}/app{parameters}", self.postgres.port())
    }
}

/// A program of ours without what this machine would tell it.
pub fn lastword(arguments: &[&str], url: &str, home: &Path) -> Command {
    let mut command = Command::new(program());
    alone(&mut command, home);
    command.args(arguments).env("DATABASE_URL", url);
    command
}

/// By `lastword doctor`; what it says of Postgres names the cause and a remedy.
pub fn doctor(url: &str, home: &Path) -> Came {
    let done = lastword(&["doctor", "--output", "json"], url, home).output().unwrap();
    let said = text(&done);
    let Ok(report) = serde_json::from_slice::<serde_json::Value>(&done.stdout) else {
        return Came::Not(said);
    };
    let exams = report["exams"].as_array().unwrap();
    // Whoever is in looks further.
    if exams.iter().any(|exam| exam["name"] == "migrations") {
        return Came::In;
    }
    let shut_out = exams.iter().find(|exam| exam["name"] == "postgres").unwrap();
    assert!(shut_out["remedy"].is_string(), "{shut_out}");
    Came::Not(shut_out["finding"].as_str().unwrap().to_owned())
}

pub fn psql(url: &str, home: &Path) -> Came {
    let mut command = Command::new(of_postgres("psql"));
    alone(&mut command, home);
    let done = command.args([url, "--no-psqlrc", "-Atc", "select 1"]).output();
    let done = done.expect("psql is there: `make setup` installs it");
    if done.status.success() { Came::In } else { Came::Not(text(&done)) }
}

pub fn text(done: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

fn alone(command: &mut Command, home: &Path) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["PG", "LASTWORD_", "OTEL_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.current_dir(home).env("HOME", home).env_remove("DATABASE_URL");
}

/// Beside the server's own program, or on the path.
fn of_postgres(name: &str) -> std::path::PathBuf {
    let beside = Binaries::find(None).unwrap().postgres().with_file_name(name);
    if beside.exists() { beside } else { name.into() }
}
