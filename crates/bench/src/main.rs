//! How fast `lastword` is, compared with the limits of this machine and this Postgres.
//!
//! Owns the flags, and the order: start what is needed, warm up, measure, report. The measures and their targets are in
//! [`measures`], how each is taken in [`acts`], the arithmetic in [`figures`].
//!
//! ```text
//! bench ──► site ──► rig (Postgres, replicas, agents)   or an existing installation (--url)
//!   └─────► course ──► limits, then act ──► reading ──► table, JSON
//! ```
//! The bench measures and changes nothing. `--program OLD,NEW` shows the effect of a change to the gateway.

mod acts;
mod client;
mod counts;
mod course;
mod crew;
mod figures;
mod frames;
mod machine;
mod measures;
mod plan;
mod replica;
mod report;
mod retention;
mod rig;
mod site;
mod sizes;
mod table;
mod times;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, error::ErrorKind};

use self::{
    course::Findings,
    figures::TargetVerdict,
    machine::{Machine, file_system, raise_file_limit},
    measures::{MEASURES, Measure, Needs},
    plan::{AgentScope, PastTurns, RigPlan},
    report::Setting,
    rig::Rig,
    site::{RemoteSite, Site},
    sizes::Sizes,
};
use lastword::{
    cli::{TokenArgs, refuse_secrets},
    note,
    task::Supervisor,
    text,
    units::Span,
};
use lastword_devkit::signals::Signals;

/// Turns of the history that `--history` alone makes.
const HISTORY_TURNS: &str = "2000000";
/// Events of each of them.
const HISTORY_EVENTS: i32 = 10;

/// Measures the speed of `lastword` against the limits of this machine.
#[derive(Debug, Parser)]
#[command(name = "lastword-bench", version)]
struct MeasureArgs {
    /// Number of runs of each measure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Take each measure once, in a short form, which judges counts but not speed
    #[arg(long)]
    short: bool,
    /// Only these measures
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1.., value_parser = measures::named)]
    only: Vec<&'static Measure>,
    /// Show the measures and their targets, and measure nothing
    #[arg(long)]
    list: bool,
    /// Also write the results as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exit with 1 if a target is missed
    #[arg(long)]
    strict: bool,
    /// Measure again on a database that holds this many ended turns of ten events each, and compare
    #[arg(long, value_name = "TURNS", num_args = 0..=1, require_equals = true, default_missing_value = HISTORY_TURNS,
        value_parser = clap::value_parser!(i64).range(1..))]
    history: Option<i64>,
    /// Measure again while another session holds one transaction open, and compare
    #[arg(long)]
    held: bool,
    /// Only count the database work of one turn, and compare with the baseline
    #[arg(long, conflicts_with_all = ["only", "history", "held", "list", "short"])]
    counts: bool,
    /// File with the baseline
    #[arg(long, value_name = "FILE", default_value = "benches/counts.json")]
    baseline: PathBuf,
    /// Write the counts to the baseline
    #[arg(long, requires = "counts")]
    write_baseline: bool,
    /// Only check retention: load for longer than this time, after which turns are dropped, and report whether tables
    /// stop growing
    #[arg(long, value_name = "SPAN", conflicts_with_all = ["only", "held", "list", "short", "counts"])]
    retain: Option<Span>,
    /// Duration of the load [default: four times `--retain`]. With `--history=TURNS` that many ended turns, spread
    /// over the retained time, exist from the start, and a shorter load is enough
    #[arg(long = "for", value_name = "SPAN", requires = "retain")]
    load_for: Option<Span>,
    /// Scope of the agent's workers
    #[arg(long, value_enum, default_value_t = SCOPE)]
    scope: AgentScope,
    /// Program that the replicas run [default: the `lastword` beside this program]; a second program is compared
    /// with the first
    #[arg(long = "program", value_name = "FILE", value_delimiter = ',')]
    programs: Vec<PathBuf>,
    /// Additional environment variable of the replicas
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
    env: Vec<(String, String)>,
    /// Directory for the database; use a disk: in memory, commits cost nothing
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Directory of the programs `postgres` and `initdb` [default: searched for]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// The scope that is measured unless another one is asked for.
const SCOPE: AgentScope = AgentScope::Shared;

/// Flags that measure an installation which is there already.
#[derive(Debug, clap::Args)]
struct RemoteArgs {
    /// Measure a running installation at these base URLs, from outside
    #[arg(long = "url", value_name = "URL", value_delimiter = ',', requires = "agent",
        conflicts_with_all = ["history", "held", "counts", "programs", "env", "dir", "postgres_bin", "scope"])]
    urls: Vec<String>,
    #[command(flatten)]
    token: TokenArgs,
    /// Agent of that installation to talk to
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Message to send
    #[arg(long, value_name = "TEXT", default_value = "Hello")]
    input: String,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() {
        Err("expected NAME=VALUE".to_owned())
    } else {
        Ok((name.to_owned(), value.to_owned()))
    }
}

fn main() -> ExitCode {
    let args = MeasureArgs::parse();
    if let Err(why) = refuse_secrets(std::env::args_os().skip(1)) {
        MeasureArgs::command().error(ErrorKind::ValueValidation, why).exit();
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        note!("error: another part of this process has chosen a crypto provider");
        return ExitCode::FAILURE;
    }
    let ran = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from);
    ran.and_then(|runtime| runtime.block_on(run(args))).unwrap_or_else(|why| {
        note!("error: {why:#}");
        ExitCode::FAILURE
    })
}

/// Measures, and tells.
///
/// # Errors
/// What is needed does not start. A measure that fails is told in the table, and in the exit code.
async fn run(args: MeasureArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        return say(&list()).map(|()| ExitCode::SUCCESS);
    }
    let mut signals = Signals::listen()?;
    tokio::select! {
        code = measured(args) => code,
        // Dropped on the way out: replicas, then Postgres, then their directory.
        () = signals.asked() => anyhow::bail!("stopped by a signal"),
    }
}

async fn measured(args: MeasureArgs) -> anyhow::Result<ExitCode> {
    let files = raise_file_limit();
    let machine = Machine::look();
    if args.counts {
        return counted(&args).await;
    }
    if let Some(retain) = args.retain {
        let text = retention::run(plan(&args)?, retain, args.history, args.load_for).await?;
        return say(&text).map(|()| ExitCode::SUCCESS);
    }
    let supervisor = Supervisor::new();
    let mut sites = sites(&args, &supervisor).await?;
    let mut facts = facts(&mut sites[0]).await?;
    facts.push(("open files".to_owned(), files.to_string()));
    let runs = if args.short { 1 } else { args.runs };
    let setting = Setting { machine, facts, runs, is_short: args.short };
    let chosen: Vec<&'static Measure> =
        if args.only.is_empty() { MEASURES.iter().collect() } else { args.only.clone() };
    let findings = course::run(&mut sites, &chosen, runs).await;
    supervisor.hard().cancel();
    drop(sites);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report::json(&setting, &findings))? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    say(&format!("{}\n{}", setting.text(), table::text(&findings, args.short)))?;
    Ok(exit_code(&findings, args.short, args.strict))
}

/// Failed measures and broken invariants always count, missed targets where that was asked for.
fn exit_code(findings: &Findings, is_short: bool, is_strict: bool) -> ExitCode {
    let compared = findings.compared.iter().flat_map(|change| &change.results);
    let has_failed = findings.results.iter().chain(compared).any(|result| !result.failures.is_empty());
    let mut verdicts = findings
        .results
        .iter()
        .flat_map(|result| (0..result.values.len()).map(move |n| result.verdict(n, is_short)));
    let has_suffered = findings.compared.iter().any(|change| {
        change.should_be_alike && !is_short && table::has_suffered(&findings.results, &change.results)
    });
    let is_missed = is_strict && (has_suffered || verdicts.any(|verdict| verdict == TargetVerdict::Missed));
    if has_failed || is_missed || !findings.faults.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The plain installation, then one for each change that it is compared with: all of them at once, so
/// that their runs can take turns.
async fn sites(args: &MeasureArgs, supervisor: &Supervisor) -> anyhow::Result<Vec<Site>> {
    let sizes = if args.short { Sizes::SHORT } else { Sizes::FULL };
    if !args.remote.urls.is_empty() {
        let remote = remote(&args.remote)?;
        return Ok(vec![Site::remote(remote, sizes, supervisor.clone())?]);
    }
    let plain = plan(args)?;
    let mut plans = vec![(String::new(), plain.clone())];
    if let Some(history) = args.history {
        let past = PastTurns { turns: history, events_each: HISTORY_EVENTS, span: None };
        plans.push((
            format!("a history of {history} turns"),
            RigPlan { history: Some(past), ..plain.clone() },
        ));
    }
    if args.held {
        plans.push(("a transaction held open".to_owned(), RigPlan { is_held: true, ..plain.clone() }));
    }
    for program in args.programs.iter().skip(1) {
        let name = format!("replicas of {}", program.display());
        plans.push((name, RigPlan { program: Some(found(program)?), ..plain.clone() }));
    }
    let mut sites = Vec::with_capacity(plans.len());
    for (name, plan) in plans {
        note!("starting Postgres and two replicas{}{name}", if name.is_empty() { "" } else { ": " });
        let rig = Rig::start(plan, |said| note!("{said}")).await?;
        sites.push(Site::own(&name, rig, sizes, supervisor.clone()));
    }
    Ok(sites)
}

fn plan(args: &MeasureArgs) -> anyhow::Result<RigPlan> {
    Ok(RigPlan {
        dir: args.dir.clone().unwrap_or_else(std::env::temp_dir),
        program: args.programs.first().map(|file| found(file)).transpose()?,
        postgres_bin: args.postgres_bin.clone(),
        settings: Vec::new(),
        is_durable: true,
        env: args.env.clone(),
        scope: args.scope,
        history: None,
        is_held: false,
    })
}

/// Where a program is, whatever the directory that it is run in.
fn found(program: &Path) -> anyhow::Result<PathBuf> {
    fs::canonicalize(program).with_context(|| format!("{}: no program", program.display()))
}

fn remote(args: &RemoteArgs) -> anyhow::Result<RemoteSite> {
    let mut urls = Vec::with_capacity(args.urls.len());
    for text in &args.urls {
        let url = reqwest::Url::parse(text.trim()).with_context(|| format!("`{text}`"))?;
        anyhow::ensure!(
            matches!(url.scheme(), "http" | "https"),
            "`{text}`: needs to begin with http:// or https://"
        );
        urls.push(url.as_str().trim_end_matches('/').to_owned());
    }
    let agent = args.agent.clone().context("--url needs --agent")?;
    Ok(RemoteSite { urls, token: args.token.read()?, agent, input: args.input.clone() })
}

/// What the figures hold for.
async fn facts(site: &mut Site) -> anyhow::Result<Vec<(String, String)>> {
    if site.own_rig().is_none() {
        return Ok(vec![("measured from outside".to_owned(), site.urls().join(", "))]);
    }
    let rig = site.rig()?;
    let postgres = rig.gauges.facts().await?;
    let mut facts: Vec<(String, String)> =
        postgres.into_iter().map(|(name, value)| (format!("postgres {name}"), value)).collect();
    facts.push(("database on".to_owned(), file_system(rig.data())));
    facts.push(("scope of the agent".to_owned(), rig.plan.scope.as_str().to_owned()));
    facts.extend(rig.plan.program.iter().map(|file| ("replicas run".to_owned(), file.display().to_string())));
    facts.extend(rig.plan.env.iter().map(|(name, value)| (format!("replicas {name}"), value.clone())));
    Ok(facts)
}

async fn counted(args: &MeasureArgs) -> anyhow::Result<ExitCode> {
    let counts = counts::run(plan(args)?).await?;
    let baseline = counts::read(&args.baseline)?;
    if args.write_baseline {
        counts::write(&args.baseline, &counts, &baseline)?;
        note!("{} is written", args.baseline.display());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&counts)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let (text, are_well) = counts::compare(&counts, &baseline);
    say(&text)?;
    Ok(if are_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list() -> String {
    let heading = ["measure", "what", "figure", "target"].map(str::to_owned).to_vec();
    let mut rows = vec![heading];
    for measure in MEASURES {
        for (n, figure) in measure.figures.iter().enumerate() {
            let (name, what) = if n == 0 { (measure.name, measure.what) } else { ("", "") };
            let needs = if measure.needs == Needs::Gateway && n == 0 { " (also with --url)" } else { "" };
            let what = format!("{what}{needs}");
            rows.push(vec![name.to_owned(), what, figure.name.to_owned(), figure.target()]);
        }
    }
    table::layout(&rows)
}

/// On stdout; a reader that has left has read enough.
fn say(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text::visible(text).as_bytes()) {
        Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests;
