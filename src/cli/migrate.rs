//! `lastword migrate`: migrates the schema to this release. Safe beside running replicas.

use std::process::ExitCode;

use super::database::{DatabaseArgs, explained};

/// Brings the database's tables up to this release.
#[derive(Debug, clap::Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    database: DatabaseArgs,
}

/// Migrates the schema; waits if another replica is migrating.
///
/// # Errors
/// Postgres is unreachable, or refuses a migration.
pub async fn run(args: MigrateArgs) -> anyhow::Result<ExitCode> {
    let store = args.database.store()?;
    store.knock().await.map_err(explained)?;
    store.migrate().await.map_err(explained)?;
    note!("migrated");
    Ok(ExitCode::SUCCESS)
}
