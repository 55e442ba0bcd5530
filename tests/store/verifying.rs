//! `verify` finds each kind of damage, planted by SQL that none of the product's statements would run.

use lastword::{id::TurnId, store::claim::Claim};

use crate::ground::{Replica, Server, next_in};

/// A rule as `verify` words it, and what breaks it; `$ID` stands for the turn.
struct Plant {
    rule: &'static str,
    on: Stage,
    sql: &'static str,
}

enum Stage {
    Queued,
    Running,
    Ended,
}

const OBLIGED: &str = "an open turn has an in-flight row and an accepted event";
const ONE_WORD: &str = "an ended turn has exactly one last word, of its status, at its last_seq";
const NO_GAPS: &str = "seq counts from 0 without gaps";
const WORDS: &str = "every status, phase and clock is known";
const EPOCHS: &str = "no event has an epoch above its turn's, and epochs never decrease";
const BELONGS: &str = "an in-flight row belongs to an open turn";

#[rustfmt::skip]
const PLANTS: &[Plant] = &[
    Plant { rule: OBLIGED, on: Stage::Running, sql: "delete from turn_events where turn_id = '$ID' and seq = 0" },
    Plant {
        rule: "an ended turn has no in-flight row", on: Stage::Running,
        sql: "update turns set status = 'completed', finished_at = now(), last_seq = 2 where id = '$ID'",
    },
    Plant { rule: ONE_WORD, on: Stage::Ended, sql: "delete from turn_events where turn_id = '$ID' and kind = 'completed'" },
    Plant { rule: ONE_WORD, on: Stage::Ended, sql: "update turn_events set kind = 'failed' where turn_id = '$ID' and kind = 'completed'" },
    Plant { rule: ONE_WORD, on: Stage::Ended, sql: "update turns set last_seq = last_seq - 1 where id = '$ID'" },
    Plant {
        rule: "a turn without a terminal status has no last word", on: Stage::Running,
        sql: "insert into turn_events (turn_id, seq, kind, attempt, data) values ('$ID', 3, 'failed', 1, '{}')",
    },
    Plant {
        rule: "nothing follows the last word", on: Stage::Ended,
        sql: "insert into turn_events (turn_id, seq, kind, attempt, data) values ('$ID', 4, 'delta', 1, '{}')",
    },
    Plant { rule: NO_GAPS, on: Stage::Running, sql: "delete from turn_events where turn_id = '$ID' and seq = 1" },
    Plant { rule: NO_GAPS, on: Stage::Ended, sql: "delete from turn_events where turn_id = '$ID' and seq = 0" },
    Plant { rule: NO_GAPS, on: Stage::Ended, sql: "delete from turn_events where turn_id = '$ID'" },
    Plant {
        rule: "every event has a known kind", on: Stage::Running,
        sql: "update turn_events set kind = 'delat' where turn_id = '$ID' and seq = 2",
    },
    Plant { rule: WORDS, on: Stage::Ended, sql: "update turns set status = 'ended' where id = '$ID'" },
    Plant { rule: WORDS, on: Stage::Running, sql: "update inflight set phase = 'runing' where turn_id = '$ID'" },
    Plant { rule: WORDS, on: Stage::Running, sql: "update inflight set clock = 'cuckoo' where turn_id = '$ID'" },
    Plant { rule: EPOCHS, on: Stage::Running, sql: "update turn_events set attempt = 0 where turn_id = '$ID' and seq = 2" },
    Plant { rule: EPOCHS, on: Stage::Running, sql: "update turn_events set attempt = 7 where turn_id = '$ID' and seq = 2" },
    Plant { rule: BELONGS, on: Stage::Running, sql: "delete from turns where id = '$ID'" },
    Plant {
        rule: BELONGS, on: Stage::Ended,
        sql: "insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, deadline, cap_at,
                queue_ms, startup_ms, progress_ms, cap_ms)
              select id, conversation_id, ordinal, agent, agent_revision, 'process', now() + interval '1 h',
                now() + interval '1 h', 1, 1, 1, 1 from turns where id = '$ID'",
    },
    Plant {
        rule: "no in-flight row is past its deadline by more than 30 s", on: Stage::Running,
        sql: "update inflight set deadline = now() - interval '31 s' where turn_id = '$ID'",
    },
    Plant {
        rule: "turns of a conversation start in the order they were accepted, one at a time", on: Stage::Ended,
        sql: "update turns set started_at = started_at - interval '1 h' where id = '$ID'",
    },
    // Last, so that no claim of the others' meets it.
    Plant { rule: OBLIGED, on: Stage::Queued, sql: "delete from inflight where turn_id = '$ID'" },
];

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_every_kind_of_damage() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let mut damaged: Vec<(&Plant, TurnId)> = Vec::new();
    for plant in PLANTS {
        damaged.push((plant, bring_to(&replica, &plant.on).await));
    }
    ground.assert_whole().await;
    let rules: Vec<_> = replica.store.verify().await.unwrap().iter().map(|finding| finding.rule).collect();
    for rule in &rules {
        assert!(PLANTS.iter().any(|plant| plant.rule == *rule), "no plant breaks: {rule}");
    }

    for (plant, turn) in damaged {
        let sql = plant.sql.replace("$ID", &turn.0.to_string());
        assert!(!is_found(&replica, plant.rule, turn).await, "found before: {}", plant.rule);
        assert_eq!(ground.run(&sql).await.unwrap().min(1), 1, "nothing planted: {sql}");
        assert!(is_found(&replica, plant.rule, turn).await, "not found: {} ({sql})", plant.rule);
    }
}

async fn is_found(replica: &Replica, rule: &str, turn: TurnId) -> bool {
    let findings = replica.store.verify().await.unwrap();
    let finding = findings.iter().find(|finding| finding.rule == rule);
    finding.unwrap_or_else(|| panic!("no such rule: {rule}")).broken.contains(&turn.0.to_string())
}

/// A turn at this stage, the second of its conversation. Running and ended ones said one thing.
async fn bring_to(replica: &Replica, stage: &Stage) -> TurnId {
    let (first, seq) = replica.running().await;
    replica.finish(&first, seq).await;
    let second = next_in(&replica.store, first.conversation);
    replica.store.accept(&second).await.unwrap();
    if matches!(stage, Stage::Queued) {
        return second.id;
    }
    let claim: Claim = replica.claim_of(second.id).await;
    let seq = replica.start(&claim).await.unwrap();
    replica.append(&claim, seq, lastword::event::Kind::Delta).await;
    if matches!(stage, Stage::Ended) {
        replica.finish(&claim, seq + 1).await;
    }
    second.id
}
