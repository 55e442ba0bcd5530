//! A round of faults on replicas: which replicas are hit, and which turns they take along.
//!
//! Owns the steps before each fault: draw the slots, wait until all replicas see each other, and start enough turns.

use rand::seq::SliceRandom;

use crate::{
    client::Accepted,
    scene::{Ballast, Scene},
};

/// Replicas that fall together.
pub struct Round {
    /// Their slots.
    pub slots: Vec<usize>,
    /// Turns under way: the turn, its worker's process id, its replica's.
    running: Vec<(Accepted, i32, i32)>,
}

impl Round {
    /// The next round of at most `at_once` replicas, over `turns` long turns; `None` when none is left.
    pub async fn next(
        scene: &Scene,
        ballast: &mut Ballast,
        left: &mut usize,
        at_once: usize,
        turns: usize,
    ) -> Option<Round> {
        let mut slots: Vec<usize> = (0..scene.fleet.size()).collect();
        slots.shuffle(&mut *scene.nemesis());
        slots.truncate(at_once.min(*left));
        if slots.is_empty() {
            return None;
        }
        *left -= slots.len();
        // Who never saw a peer alive takes longer to judge it: another figure than these.
        scene.acquainted().await;
        let running = ballast.fill(scene, turns).await;
        Some(Round { slots, running })
    }

    /// The turns that a slot's replica runs.
    pub fn turns_at(&self, scene: &Scene, slot: usize) -> Vec<String> {
        let pid = scene.fleet.pid(slot);
        let lost = self.running.iter().filter(|(_, _, replica)| *replica == pid);
        lost.map(|(turn, ..)| turn.turn.clone()).collect()
    }

    /// The same, and on a replica that stays whole one more observer follows each of them.
    pub fn watched_turns_at(&self, scene: &Scene, slot: usize) -> Vec<String> {
        let turns = self.turns_at(scene, slot);
        scene.observe_elsewhere(&turns, &self.slots);
        turns
    }

    /// Stops all of them in their tracks; what thaws each.
    pub fn freeze(&self, scene: &Scene) -> Vec<(usize, u64)> {
        let freeze = |&slot: &usize| (slot, scene.fleet.freeze(slot, self.watched_turns_at(scene, slot)));
        self.slots.iter().map(freeze).collect()
    }
}
