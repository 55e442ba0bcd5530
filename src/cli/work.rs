//! `lastword work`: a host of workers, which calls a gateway over HTTP and runs a program that speaks the
//! native protocol on its stdio.
//!
//! ```text
//! beat ──► which replica is called; orders, and what is over ─┐
//! claims ─► offers ─► turn ─► outbox ──► messages             ├─► the gateway
//!                      └─► crew: a process a conversation, or one for all
//! ```
//! Owns the order of its end: SIGTERM takes on nothing more, lets turns end until the drain is over, says
//! `interrupted` of the rest, says goodbye. The second signal means now. However it ends, its processes do.

mod beat;
mod claims;
mod crew;
mod life;
mod link;
mod outbox;
mod shared;
mod turn;
mod turns;
mod waits;
mod words;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    crew::{Crew, Program},
    link::{Identity, Link},
    outbox::Outbox,
    turn::Job,
    turns::Turns,
    words::{Offer, Registered},
};
use crate::{
    config::{Config, pass, workers_for},
    descriptors,
    id::{ConversationId, WorkerId},
    task::{Kind, Supervisor},
    telemetry,
    units::Span,
    worker::{user::User, workspace},
};

/// How long the last words of interrupted turns, and the ends of processes, may take.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Hosts a worker program for a gateway that is called over HTTP.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A gateway's base URL; several are called in turn
    #[arg(long = "url", env = "LASTWORD_URL", value_delimiter = ',', value_name = "URL", required = true)]
    urls: Vec<String>,
    /// A file that holds the worker's token
    #[arg(long, env = "LASTWORD_WORKER_TOKEN_FILE", value_name = "FILE")]
    token_file: PathBuf,
    /// Whose turns to run; its runtime is `remote`
    #[arg(long, env = "LASTWORD_AGENT", value_name = "NAME")]
    agent: String,
    /// The only conversation to serve
    #[arg(long, env = "LASTWORD_CONVERSATION_ID", value_name = "ID")]
    conversation: Option<ConversationId>,
    /// Turns at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// Processes at once, idle ones included [default: half again as many as turns, and at least 16]
    #[arg(long, value_name = "COUNT")]
    workers_max: Option<u32>,
    /// Leave after so long without a turn
    #[arg(long, value_name = "SPAN")]
    exit_when_idle: Option<Span>,
    /// Take on nothing more after so long, and leave when the turns that run have ended
    #[arg(long, value_name = "SPAN")]
    retire_after: Option<Span>,
    /// How long running turns get to end after a SIGTERM
    #[arg(long, default_value = "45s", value_name = "SPAN")]
    drain: Span,
    /// Where workspaces live
    #[arg(long, default_value = "lastword-work", value_name = "DIR")]
    data_dir: PathBuf,
    /// Who the program runs as, where not as this host: a user's name, its number, or UID:GID
    #[arg(long, env = "LASTWORD_WORKER_USER", value_name = "USER")]
    worker_user: Option<String>,
    /// The only variables of this host that the program finds, beside a clean minimum [default: all but LASTWORD_*]
    #[arg(long, env = "LASTWORD_WORKER_ENV_PASS", value_delimiter = ',', value_name = "NAMES")]
    env_pass: Option<Vec<String>>,
    /// What operators see of this host
    #[arg(long, env = "LASTWORD_WORKER_NAME")]
    name: Option<String>,
    /// What is logged
    #[arg(long, env = "LASTWORD_LOG", default_value = "info")]
    log: String,
    /// Who this worker is, where its host was told
    #[arg(long = "worker", env = "LASTWORD_WORKER_ID", value_name = "ID")]
    worker: Option<WorkerId>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What the parts of a host share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shop {
    link: Arc<Link>,
    turns: Arc<Turns>,
    crew: Arc<Crew>,
    concurrency: usize,
    idle_max: Option<Duration>,
    /// When it is old enough to leave once it has nothing to do.
    retire_at: Option<Instant>,
    /// It takes on nothing more.
    leaving: CancellationToken,
    /// What still runs is interrupted.
    now: CancellationToken,
    /// It says goodbye.
    left: CancellationToken,
}

/// Works until told to stop, or until there was nothing to do for too long.
///
/// # Errors
/// A token that cannot be read, a URL that is none, and a gateway that refuses this worker.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let token = std::fs::read_to_string(&args.token_file)
        .with_context(|| format!("cannot read {}", args.token_file.display()))?;
    let name = args.name.clone().or_else(own_name);
    let config = Config { log: args.log.clone(), ..Config::default() };
    let _telemetry = telemetry::init(&config, name.as_deref().unwrap_or("work"))?;
    descriptors::raise(0);
    let identity = Identity {
        agent: args.agent.clone(),
        conversation: args.conversation,
        worker: args.worker,
        name,
        token: token.trim().to_owned(),
    };
    let supervisor = Supervisor::new();
    let (leaving, left) = (CancellationToken::new(), CancellationToken::new());
    let workers_max = args.workers_max.unwrap_or_else(|| workers_for(args.concurrency));
    anyhow::ensure!(workers_max >= args.concurrency, "--workers-max is below --concurrency");
    let data_dir = absolute(&args.data_dir)?;
    let user = args.worker_user.as_deref().map(|text| settle_user(text, &data_dir)).transpose()?;
    let concurrency = args.concurrency as usize;
    let env = match &args.env_pass {
        Some(names) => {
            let wrong = pass::wrong_with(names);
            anyhow::ensure!(wrong.is_none(), "--env-pass {}", wrong.unwrap_or_default());
            pass::passed(names)
        }
        None => passed_on(),
    };
    let program = Program { command: args.command.clone(), env, data_dir, user, concurrency };
    let shop = Shop {
        link: Arc::new(Link::new(&args.urls, identity)?),
        turns: Arc::default(),
        crew: Crew::new(program, supervisor.clone(), leaving.clone(), workers_max),
        concurrency,
        idle_max: args.exit_when_idle.map(|span| span.0),
        retire_at: args.retire_after.map(|span| Instant::now() + span.0),
        leaving,
        now: CancellationToken::new(),
        left,
    };
    stop_signals(&supervisor, &shop)?;
    let renewing = shop.crew.clone().renew_on(supervisor.hard().clone());
    supervisor.spawn(Kind::Client, "renewals", renewing);
    let done = tokio::select! {
        done = beat::keep(&shop) => done,
        () = work(&shop, args.drain.0) => Ok(()),
    };
    // Refused, or gone: whatever still runs has nobody to answer to.
    shop.leave();
    shop.now.cancel();
    shop.turns.end_all();
    supervisor.soft().cancel();
    let _ = timeout(CLOSE_MAX, async {
        shop.turns.none_left().await;
        shop.crew.none_left().await;
    })
    .await;
    supervisor.hard().cancel();
    let _ = timeout(CLOSE_MAX, supervisor.ended()).await;
    done.map(|()| ExitCode::SUCCESS)
}

/// Takes on turns, then lets them end. Returns long after the beat has said goodbye, which ends the wait.
async fn work(shop: &Shop, drain: Duration) {
    claims::take_on(shop).await;
    shop.leaving.cancelled().await;
    tokio::select! {
        _ = timeout(drain, shop.turns.none_left()) => {}
        () = shop.now.cancelled() => {}
    }
    shop.now.cancel();
    let _ = timeout(CLOSE_MAX, shop.turns.none_left()).await;
    shop.left.cancel();
    sleep(CLOSE_MAX).await;
}

impl Shop {
    /// Takes on an offered turn, once.
    fn accept(&self, offer: Offer, registered: &Arc<Registered>) {
        let (turn, epoch) = (offer.turn_id, offer.epoch);
        let Some(place) = self.turns.admit(turn, epoch) else { return };
        tracing::info!(turn_id = %turn, epoch, conversation_id = %offer.conversation_id, "offered");
        let outbox = Outbox::new(self.link.clone(), (turn, epoch), offer.token.clone(), place.over.clone());
        let (registered, interrupted) = (registered.clone(), self.now.clone());
        self.crew.place(Job { offer, place, outbox, registered, interrupted });
    }

    fn leave(&self) {
        self.leaving.cancel();
    }

    fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    async fn leaving(&self) {
        self.leaving.cancelled().await;
    }

    fn has_left(&self) -> bool {
        self.left.is_cancelled()
    }

    /// When this host leaves unless a turn comes; `None` where it has turns, or waits for ever.
    fn idle_until(&self) -> Option<Instant> {
        let since = self.turns.idle_since()?;
        let idle = self.idle_max.map(|max| since + max);
        let old = self.retire_at.map(|at| at.max(since));
        idle.into_iter().chain(old).min()
    }

    fn is_idle_for_too_long(&self) -> bool {
        self.idle_until().is_some_and(|until| until <= Instant::now())
    }
}

/// The first SIGTERM or SIGINT drains; the second means now.
fn stop_signals(supervisor: &Supervisor, shop: &Shop) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let (leaving, now, hard) = (shop.leaving.clone(), shop.now.clone(), supervisor.hard().clone());
    supervisor.spawn(Kind::Client, "signals", async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                () = hard.cancelled() => return,
            }
            if leaving.is_cancelled() {
                now.cancel();
            }
            leaving.cancel();
        }
    });
    Ok(())
}

/// Finds the program's user once and for all, and opens its way to the workspaces.
fn settle_user(text: &str, data_dir: &std::path::Path) -> anyhow::Result<String> {
    let found = User::find(text).and_then(|user| User::may_become().map(|()| user));
    let user = found.map_err(|why| anyhow::anyhow!("--worker-user {why}"))?;
    workspace::open(&[data_dir.to_owned()], user)
        .map_err(|why| anyhow::anyhow!("--worker-user cannot be used: {why}"))?;
    Ok(user.to_string())
}

/// The environment that a worker finds: this host's own, without what is for the host alone.
fn passed_on() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).filter(|(name, _)| !name.starts_with("LASTWORD_")).collect()
}

fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(format!("{}:{}", name.trim(), std::process::id()))
}

fn absolute(dir: &std::path::Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(dir).with_context(|| dir.display().to_string())
}
