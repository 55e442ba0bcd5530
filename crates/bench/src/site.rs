//! Where a measure is taken: the bench's own installation, or an existing one behind its URLs.
//!
//! Owns what both have in common, and the samples of the limits. Refuses to guess what it cannot see: an existing
//! installation gives access to no database, and its workers do not write the time into their output.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    client::{Ask, Client},
    figures::{Limit, median},
    plan::AGENT,
    rig::Rig,
    sizes::Sizes,
};
use lastword::task::Supervisor;

/// Rows of one statement, where the limit is rows a second.
const ROWS: i64 = 100;

/// Somebody else's installation.
#[derive(Debug, Clone)]
pub struct RemoteSite {
    /// Its replicas, or what stands before them.
    pub urls: Vec<String>,
    /// A bearer token.
    pub token: Option<String>,
    /// The agent to talk to.
    pub agent: String,
    /// The message to send.
    pub input: String,
}

enum SitePlace {
    Own(Box<Rig>),
    Remote(RemoteSite),
}

/// Where a measure is taken.
pub struct Site {
    /// How it differs from the first one; empty for that one.
    pub name: String,
    /// Whether it should be as fast as the first one all the same.
    pub should_be_alike: bool,
    /// How much of everything.
    pub sizes: Sizes,
    /// Whoever asks.
    pub client: Client,
    /// Home of many clients' tasks.
    pub supervisor: Supervisor,
    place: SitePlace,
}

impl Site {
    /// An installation of our own.
    pub fn own(name: &str, rig: Rig, sizes: Sizes, supervisor: Supervisor) -> Site {
        let client = rig.client.clone();
        let should_be_alike = rig.plan.history.is_some() || rig.plan.is_held;
        let (name, place) = (name.to_owned(), SitePlace::Own(Box::new(rig)));
        Site { name, should_be_alike, sizes, client, supervisor, place }
    }

    /// Somebody else's.
    pub fn remote(remote: RemoteSite, sizes: Sizes, supervisor: Supervisor) -> anyhow::Result<Site> {
        let client = Client::new(&remote.urls, remote.token.clone())?;
        let (name, place) = (String::new(), SitePlace::Remote(remote));
        Ok(Site { name, should_be_alike: true, sizes, client, supervisor, place })
    }

    /// The installation, where it is our own.
    pub fn rig(&mut self) -> anyhow::Result<&mut Rig> {
        match &mut self.place {
            SitePlace::Own(rig) => Ok(rig),
            SitePlace::Remote(_) => anyhow::bail!("this needs an installation of its own"),
        }
    }

    /// The same, to look at.
    pub fn own_rig(&self) -> Option<&Rig> {
        match &self.place {
            SitePlace::Own(rig) => Some(rig),
            SitePlace::Remote(_) => None,
        }
    }

    /// Where its replicas are.
    pub fn urls(&self) -> Vec<String> {
        match &self.place {
            SitePlace::Own(rig) => rig.urls(),
            SitePlace::Remote(remote) => remote.urls.clone(),
        }
    }

    /// Replica `n`, counted round and round.
    pub fn url(&self, n: usize) -> anyhow::Result<String> {
        let urls = self.urls();
        urls.get(n % urls.len().max(1)).cloned().context("there is no replica")
    }

    /// What to ask of the agent: this script, where the worker is ours.
    pub fn ask(&self, script: &str) -> Ask {
        let (agent, text) = match &self.place {
            SitePlace::Own(_) => (AGENT, script),
            SitePlace::Remote(remote) => (remote.agent.as_str(), remote.input.as_str()),
        };
        Ask { agent: agent.to_owned(), text: text.to_owned(), conversation: None }
    }

    /// Waits until nothing is under way that an earlier measure has left.
    pub async fn quiet(&mut self) -> anyhow::Result<()> {
        match &mut self.place {
            SitePlace::Own(rig) => {
                rig.resize(2).await?;
                rig.quiet().await
            }
            SitePlace::Remote(_) => Ok(()),
        }
    }

    /// What is possible here at best, now: each the middle of a series.
    pub async fn limits(&mut self) -> anyhow::Result<BTreeMap<Limit, f64>> {
        let (url, client, sizes) = (self.url(0)?, self.client.clone(), self.sizes);
        let mut found = BTreeMap::new();
        for limit in Limit::ALL {
            let is_rested = matches!(limit, Limit::CommitRested | Limit::HttpRested);
            let samples = if is_rested { sizes.limit_samples_rested } else { sizes.limit_samples };
            let mut series = Vec::new();
            for _ in 0..samples {
                if is_rested {
                    tokio::time::sleep(sizes.turn_every).await;
                }
                let took = match (limit, &mut self.place) {
                    (Limit::Http | Limit::HttpRested, _) => {
                        let began = Instant::now();
                        client.text(&url, "/livez").await?;
                        began.elapsed()
                    }
                    (_, SitePlace::Remote(_)) => break,
                    (Limit::RoundTrip, SitePlace::Own(rig)) => rig.limits.round_trip().await?,
                    (Limit::Commit | Limit::CommitRested, SitePlace::Own(rig)) => rig.limits.commit().await?,
                    (Limit::WakeUp, SitePlace::Own(rig)) => rig.limits.wake_up().await?,
                    (Limit::Rows, SitePlace::Own(rig)) => rig.limits.insert_rows(ROWS).await?,
                };
                series.push(value(limit, took));
            }
            found.extend(median(&series).map(|value| (limit, value)));
        }
        if let SitePlace::Own(rig) = &mut self.place {
            rig.limits.clear().await?;
        }
        Ok(found)
    }
}

fn value(limit: Limit, took: Duration) -> f64 {
    match limit {
        Limit::Rows => ROWS as f64 / took.as_secs_f64(),
        _ => took.as_secs_f64() * 1e3,
    }
}
