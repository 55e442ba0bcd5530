//! The protocol as it is keeps its promises.

use stateright::{Checker, Model};
use std::time::Instant;

use super::{
    database::Rules,
    steps::TurnModel,
    world::{Break, Trouble},
};

fn probe(name: &str, model: TurnModel) {
    let t = Instant::now();
    let c = model.checker().threads(2).spawn_bfs().join();
    let d: Vec<_> = c.discoveries().into_iter().map(|(n, p)| (n, p.into_actions().len())).collect();
    println!(
        "{name}: {} states, depth {}, {:?}; {:?}",
        c.unique_state_count(),
        c.max_depth(),
        t.elapsed(),
        d
    );
    for p in model.properties() {
        if let Some(path) = c.discovery(p.name) {
            if p.expectation == stateright::Expectation::Always {
                println!("{} {:#?} {:#?}", p.name, path.last_state(), path.clone().into_actions());
            }
        }
    }
}

#[test]
fn probes() {
    let which = std::env::var("W").unwrap_or_default();
    let base = TurnModel {
        rules: Rules { broken: Break::Nothing, is_retry_safe: false, is_one_line: true },
        trouble: Trouble::default(),
        turns: 1,
    };
    let t = Trouble::default();
    let all = [
        ("none1", base),
        ("none2", TurnModel { turns: 2, ..base }),
        ("kill1", TurnModel { trouble: Trouble { kills: 1, ..t }, ..base }),
        ("kill2", TurnModel { turns: 2, trouble: Trouble { kills: 1, ..t }, ..base }),
        ("freeze1", TurnModel { trouble: Trouble { freezes: 1, ..t }, ..base }),
        ("freezelost1", TurnModel { trouble: Trouble { freezes: 1, lost_answers: 1, ..t }, ..base }),
        ("wrong1", TurnModel { trouble: Trouble { wrong_verdicts: 2, lost_answers: 1, ..t }, ..base }),
        (
            "many1",
            TurnModel {
                trouble: Trouble {
                    wrong_verdicts: 1,
                    lost_answers: 1,
                    freezes: 1,
                    drains: 1,
                    lapses: 1,
                    cancels: 1,
                    crashes: 1,
                    kills: 1,
                },
                ..base
            },
        ),
        (
            "many1safe",
            TurnModel {
                rules: Rules { is_retry_safe: true, ..base.rules },
                trouble: Trouble {
                    wrong_verdicts: 1,
                    lost_answers: 1,
                    freezes: 1,
                    drains: 1,
                    lapses: 1,
                    cancels: 1,
                    crashes: 1,
                    kills: 1,
                },
                ..base
            },
        ),
        ("two", TurnModel { turns: 2, trouble: Trouble { wrong_verdicts: 1, ..t }, ..base }),
    ];
    for (name, m) in all {
        if which.split(',').any(|w| w == name) {
            probe(name, m);
        }
    }
}
