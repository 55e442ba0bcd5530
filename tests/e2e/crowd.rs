//! Many turns at once, each with many readers.
//!
//! Owns their start, the wait until all are running, and their ends. A reader's panic is passed on.

use tokio::{sync::watch, task::JoinHandle};

use crate::{
    client::{Client, Followed},
    support::panic_text,
};

/// `accepted`, `started` and one word: then it is under way.
const UNDER_WAY_SEQ: i64 = 2;

/// A turn and those who follow it.
pub struct Watched {
    /// `turn_…`
    pub id: String,
    followers: Vec<JoinHandle<Followed>>,
    told: Vec<watch::Receiver<i64>>,
}

impl Watched {
    /// Posts a message at a door and follows its turn from each of `doors` on.
    pub async fn post(client: &Client, door: usize, text: &str, doors: &[usize]) -> Watched {
        Watched::of(client, client.post(door, text).await, doors)
    }

    /// Follows a turn from each of `doors` on.
    pub fn of(client: &Client, id: String, doors: &[usize]) -> Watched {
        let (mut followers, mut told) = (Vec::new(), Vec::new());
        for &door in doors {
            let (teller, heard) = watch::channel(-1);
            let (client, id) = (client.clone(), id.clone());
            followers.push(tokio::spawn(async move { client.follow(id, door, Some(teller)).await }));
            told.push(heard);
        }
        Watched { id, followers, told }
    }

    /// Waits until every follower has seen the answer begin, or its end.
    pub async fn under_way(&mut self) {
        for told in &mut self.told {
            // Whoever has ended has seen it all.
            let _ = told.wait_for(|seq| *seq >= UNDER_WAY_SEQ).await;
        }
    }

    /// Waits until every follower has seen the last word; all saw the same events.
    pub async fn ends(self) -> Vec<Followed> {
        let mut ends = Vec::new();
        for follower in self.followers {
            ends.push(follower.await.unwrap_or_else(|why| panic!("{}", panic_text(why))));
        }
        ends
    }
}

/// Posts so many messages, one door after the other, and waits until all are under way.
pub async fn under_way(
    client: &Client,
    count: usize,
    text: &str,
    post_at: &[usize],
    doors: &[usize],
) -> Vec<Watched> {
    let posts = (0..count).map(|n| Watched::post(client, post_at[n % post_at.len()], text, doors));
    let mut crowd = futures_util::future::join_all(posts).await;
    for watched in &mut crowd {
        watched.under_way().await;
    }
    crowd
}

/// All their ends.
pub async fn ends(crowd: Vec<Watched>) -> Vec<Followed> {
    let mut ends = Vec::new();
    for watched in crowd {
        ends.extend(watched.ends().await);
    }
    ends
}
