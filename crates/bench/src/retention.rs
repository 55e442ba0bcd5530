//! `lastword bench --retain SPAN`: whether tables stop growing under a load that lasts longer than the retention.
//!
//! Owns the load, in short loops one after the other, and the sizes of tables, in four quarters. Free space is reused
//! and not returned to the system, so tables have stopped growing if the largest size of the last quarter is at most a
//! tenth above that of the quarter before. A history that fills the retention shows it sooner.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{
    acts::load::closed_loop,
    figures::number,
    plan::{PastTurns, RigPlan},
    rig::Rig,
    site::Site,
    sizes::Sizes,
    table::layout,
};
use lastword::{note, task::Supervisor, units::Span};

/// How long one loop of the load lasts at most: what its turns saw is kept in memory meanwhile.
const LOOP_MAX: Duration = Duration::from_secs(20);
/// The load is judged by quarters: what is retained fills in the first, unless a past has filled it.
const QUARTERS: u32 = 4;
/// Rows of a quarter.
const ROWS: u32 = 10;
/// What may come on top in the last quarter.
const GROWTH: f64 = 1.1;
/// Events of a turn of the past: as many as one of the load has.
const EVENTS_EACH: i32 = 4;

/// Loads for so long, and gives what there was. `past` turns are there before, evenly over what is retained.
///
/// # Errors
/// Something does not start, a turn fails, an invariant is broken, or the tables go on growing.
pub async fn run(
    mut plan: RigPlan,
    retain: Span,
    past: Option<i64>,
    load_for: Option<Span>,
) -> anyhow::Result<String> {
    plan.env.push(("LASTWORD_RETAIN".to_owned(), retain.to_string()));
    plan.history = past.map(|turns| PastTurns { turns, events_each: EVENTS_EACH, span: Some(retain.0) });
    let quarter = load_for.map_or(retain.0, |span| span.0 / QUARTERS);
    let supervisor = Supervisor::new();
    let rig = Rig::start(plan, |said| note!("{said}")).await?;
    let mut site = Site::own("", rig, Sizes::FULL, supervisor.clone());
    let began = Instant::now();
    let mut rows = vec![Vec::new()];
    let mut largest = Vec::new();
    for _ in 0..QUARTERS {
        let mut most = 0;
        for _ in 0..ROWS {
            let rate = load(&site, quarter / ROWS).await?;
            let sizes = site.rig()?.gauges.sizes().await?;
            let all = sizes.iter().map(|(_, bytes)| bytes).sum::<i64>();
            most = all.max(most);
            let names = sizes.iter().map(|(name, _)| format!("{name} MB"));
            rows[0] = ["s", "turns/s", "all MB"].map(str::to_owned).into_iter().chain(names).collect();
            let told = [began.elapsed().as_secs_f64().round(), rate.round(), mb(all)];
            let told = told.into_iter().chain(sizes.iter().map(|(_, bytes)| mb(*bytes)));
            rows.push(told.map(number).collect());
            note!("{}", rows.last().map(|row| row.join("  ")).unwrap_or_default());
        }
        largest.push(most);
    }
    if past.is_none() {
        let findings = site.rig()?.store.verify().await?;
        let broken: Vec<&str> =
            findings.iter().filter(|one| !one.broken.is_empty()).map(|one| one.rule).collect();
        ensure!(broken.is_empty(), "the invariants are broken: {}", broken.join(", "));
    } else {
        note!("not verified: the check of the retained history takes many minutes");
    }
    supervisor.hard().cancel();
    let text = layout(&rows);
    if let [.., before, last] = largest[..] {
        let growth = last as f64 / before as f64;
        ensure!(growth <= GROWTH, "{text}\nthe tables go on growing: × {growth:.2} in the last quarter");
        return Ok(format!("{text}\nin the last quarter × {growth:.2}\n"));
    }
    Ok(text)
}

/// As many turns as two replicas take, for so long; how many a second.
async fn load(site: &Site, time: Duration) -> anyhow::Result<f64> {
    let (began, mut turns) = (Instant::now(), 0);
    while let Some(left) = time.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        turns += closed_loop(site, site.sizes.clients, left.min(LOOP_MAX)).await?.len();
    }
    Ok(turns as f64 / began.elapsed().as_secs_f64())
}

fn mb(bytes: i64) -> f64 {
    (bytes as f64 / 1e5).round() / 10.0
}
