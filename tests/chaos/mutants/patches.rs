//! The mutants: the product with one broken rule each, as edits of its source.
//!
//! Owns the edits, and which check must catch which mutant. The text of an edit occurs exactly once in its file; a test
//! of the ordinary suite fails when a change of the code breaks that. If two places defend a rule, its mutant breaks
//! both.

/// One change of a file.
#[derive(Debug, Clone, Copy)]
pub struct Edit {
    /// Below the repository's root.
    pub file: &'static str,
    /// What stands there, exactly once.
    pub find: &'static str,
    /// What the mutant has in its place.
    pub replace: &'static str,
}

/// The product with one rule broken.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// Its name, and that of the hunt for it.
    pub name: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
    /// How.
    pub edits: &'static [Edit],
    /// The check that must catch it.
    pub check: &'static str,
}

/// All of them.
pub const MUTANTS: [Mutant; 11] = [
    NO_EPOCH_CHECK,
    KEPT_OBLIGATION,
    VERDICT_BY_THE_CLOCK,
    VERDICT_WITHOUT_A_LOCK_SEEN,
    ONE_CLOSE_PASS,
    ACCEPT_BEFORE_ITS_LOCK,
    SHOWN_BEFORE_STORED,
    NOTIFY_ALONE,
    ONE_PAGE_CLOSED,
    BEAT_IS_PROGRESS,
    BYTE_BEFORE_RUNNING,
];

/// No mutant, but the next release of the same product, as far as its neighbours see one.
#[allow(dead_code, reason = "not every test that has the mutants has the drills")]
pub const NEXT_RELEASE: Mutant = Mutant {
    name: "next_release",
    rule: "two releases run side by side",
    edits: &[
        Edit { file: "Cargo.toml", find: "\nversion = \"0.1.0\"\n", replace: "\nversion = \"0.2.0\"\n" },
        Edit {
            file: "Cargo.lock",
            find: "name = \"lastword\"\nversion = \"0.1.0\"\n",
            replace: "name = \"lastword\"\nversion = \"0.2.0\"\n",
        },
        // A field of a spec, a kind of event, a failure's code and a detail of a status, none of which the one before knows.
        Edit {
            file: "crates/words/src/agent.rs",
            find: "    /// The template of each conversation's pod;",
            replace: "    /// Of the next release.\n    #[serde(default, skip_serializing_if = \"Option::is_none\")]\n    \
                      pub of_the_next_release: Option<String>,\n    /// The template of each conversation's pod;",
        },
        Edit {
            file: "crates/words/src/agent.rs",
            find: "            pod: None,\n",
            replace: "            pod: None,\n            of_the_next_release: None,\n",
        },
        Edit {
            file: "crates/words/src/agent/reader.rs",
            find: "const SINCE: &[(&str, i32)] = &[];",
            replace: "const SINCE: &[(&str, i32)] = &[(\"of_the_next_release\", 2)];",
        },
        Edit {
            file: "crates/words/src/event.rs",
            find: "Custom = \"custom\",",
            replace: "Custom = \"aside\",",
        },
        Edit {
            file: "crates/words/src/failure.rs",
            find: "EmptyReply = \"empty_reply\",",
            replace: "EmptyReply = \"said_nothing\",",
        },
        Edit {
            file: "src/worker/turn/transcript.rs",
            find: "json!({ \"state\": state });",
            replace: "json!({ \"state\": state, \"detail\": { \"of_the_next_release\": 1 } });",
        },
    ],
    check: "",
};

const NO_EPOCH_CHECK: Mutant = Mutant {
    name: "no_epoch_check",
    rule: "who does not hold the epoch writes nothing (I5)",
    edits: &[
        Edit {
            file: "migrations/0011_append.sql",
            find: "and i.epoch = p_epochs[1] and i.replica = p_replica and i.phase = 'running'",
            replace: "and i.phase = 'running'",
        },
        Edit {
            file: "migrations/0011_append.sql",
            find: "and i.epoch = w.epoch and i.replica = p_replica and i.phase = 'running'",
            replace: "and i.phase = 'running'",
        },
        Edit {
            file: "migrations/0008_last_words.sql",
            find: "where i.turn_id = w.turn_id and i.epoch = w.epoch and i.replica = p_replica",
            replace: "where i.turn_id = w.turn_id and i.phase <> 'queued'",
        },
    ],
    check: "nothing of a judged replica's is in the log",
};

const KEPT_OBLIGATION: Mutant = Mutant {
    name: "kept_obligation",
    rule: "the last word deletes the obligation (I2)",
    edits: &[Edit {
        file: "migrations/0018_not_completed.sql",
        find: "delete from inflight i where i.turn_id = any (p_turns)",
        replace: "update inflight i set ordinal = i.ordinal where i.turn_id = any (p_turns)",
    }],
    check: "an ended turn owes nothing",
};

const VERDICT_BY_THE_CLOCK: Mutant = Mutant {
    name: "verdict_by_the_clock",
    rule: "a verdict counts the judge's own beats, in one session (I8)",
    edits: &[
        Edit {
            file: "src/engine/suspicion.rs",
            find: "    unchanged: u32,\n",
            replace: "    unchanged_since: std::time::Instant,\n",
        },
        Edit {
            file: "src/engine/suspicion.rs",
            find: "first.insert(PeerState { beat_n: peer.beat_n, unchanged: 0, bare: 0, was_held: false })",
            replace: "first.insert(PeerState {
                        beat_n: peer.beat_n, unchanged_since: std::time::Instant::now(), bare: 0, was_held: false })",
        },
        Edit {
            file: "src/engine/suspicion.rs",
            find: "seen.unchanged = if seen.beat_n == peer.beat_n { seen.unchanged + 1 } else { 0 };",
            replace: "if seen.beat_n != peer.beat_n { seen.unchanged_since = std::time::Instant::now(); }",
        },
        Edit {
            file: "src/engine/suspicion.rs",
            find: "_ if seen.unchanged >= BEATS_SILENT =>",
            replace: "_ if seen.unchanged_since.elapsed() >= BEATS_SILENT * std::time::Duration::from_millis(500) =>",
        },
        Edit {
            file: "src/engine/suspicion.rs",
            find: "if seen.unchanged.min(seen.bare) >= needed {",
            replace: "if (seen.bare > 0 || needed == 0)
                && seen.unchanged_since.elapsed() >= needed * std::time::Duration::from_millis(500)
            {",
        },
        // What the last session saw proves nothing for a count; for a clock it goes on.
        Edit { file: "src/engine/suspicion.rs", find: "        self.peers.clear();\n", replace: "" },
    ],
    check: "nobody is judged who was away for a moment",
};

const VERDICT_WITHOUT_A_LOCK_SEEN: Mutant = Mutant {
    name: "verdict_without_a_lock_seen",
    rule: "two beats are enough only where the lock was seen held (I8)",
    edits: &[Edit {
        file: "src/engine/suspicion.rs",
        find: "const BEATS_LOCK_FREE: u32 = 8;",
        replace: "const BEATS_LOCK_FREE: u32 = 2;",
    }],
    check: "nobody is judged who was away for a moment",
};

const ONE_CLOSE_PASS: Mutant = Mutant {
    name: "one_close_pass",
    rule: "what the lost hold is closed whenever it is seen, not once (I2, I6)",
    edits: &[
        Edit {
            file: "src/store/tables/closing.rs",
            find: "count(*) filter (where is_claimed and not is_alive
                       or is_overdue and not is_claimed) as closable",
            replace: "count(*) filter (where is_overdue and not is_claimed) as closable",
        },
        Edit {
            file: "src/engine/presence.rs",
            find: "        if seen.has_recent_loss {\n",
            replace: "        if false {\n",
        },
    ],
    check: "a claim that came after the verdict is closed or run again",
};

const ACCEPT_BEFORE_ITS_LOCK: Mutant = Mutant {
    name: "accept_before_its_lock",
    rule: "an accept decides behind the conversation's lock (I9, I14)",
    edits: &[
        Edit {
            file: "migrations/0028_turn_readers.sql",
            find: "    select array_agg(c.id), array_agg(case when",
            replace: "    select array_agg(i.conversation_id) into v_busy
      from inflight i where i.conversation_id = any (p_conversations);
    select array_agg(c.id), array_agg(case when",
        },
        Edit {
            file: "migrations/0028_turn_readers.sql",
            find: "    v_busy := array(select i.conversation_id from inflight i where i.conversation_id = any (p_conversations));\n",
            replace: "",
        },
    ],
    check: "of two turns that may not wait one is refused",
};

const SHOWN_BEFORE_STORED: Mutant = Mutant {
    name: "shown_before_stored",
    rule: "an event is in the log before a reader has it (I4)",
    edits: &[
        Edit {
            file: "src/store/live/group_commit.rs",
            find: "    let landed = match repeat(store, &mut appends, replies, locked).await {\n",
            replace: "    crate::store::pages::show_ahead(store, &appends);
    let landed = match repeat(store, &mut appends, replies, locked).await {\n",
        },
        Edit {
            file: "src/store/tables/pages.rs",
            find: "            page.is_whole = page.has_room(room);
        }
        Ok(pages)
    }
}
",
            replace: "            page.is_whole = page.has_room(room);
        }
        for (want, page) in wants.iter().zip(pages.iter_mut().flatten()) {
            let mut newest = page.events.last().map_or(want.cursor, |event| event.seq);
            let ahead = AHEAD.lock().map(|ahead| ahead.get(&want.turn).cloned().unwrap_or_default());
            page.events.extend(ahead.unwrap_or_default().into_iter().filter(|event| {
                let is_next = event.seq == newest + 1;
                newest += i32::from(is_next);
                is_next
            }));
        }
        Ok(pages)
    }
}

static AHEAD: std::sync::Mutex<std::collections::BTreeMap<TurnId, Vec<SharedEvent>>> =
    std::sync::Mutex::new(std::collections::BTreeMap::new());

pub(in crate::store) fn show_ahead(store: &Store, appends: &[super::events::Append]) {
    for append in appends {
        if let Ok(mut ahead) = AHEAD.lock() {
            for (seq, event) in (append.base + 1..).zip(&append.events) {
                ahead.entry(append.turn).or_default().push(SharedEvent::from(Event {
                    turn_id: append.turn,
                    seq,
                    kind: event.kind,
                    attempt: append.epoch,
                    data: event.data.clone(),
                    at: store.clock().now(),
                }));
            }
        }
        store.wake().turns.events_committed([append.turn]);
    }
}
",
        },
    ],
    check: "no reader is given what the log lacks",
};

const NOTIFY_ALONE: Mutant = Mutant {
    name: "notify_alone",
    rule: "every waiter also looks by itself (I13)",
    edits: &[
        Edit {
            file: "src/stream/tail.rs",
            find: "const LOOK_EVERY: Duration = Duration::from_secs(30);",
            replace: "const LOOK_EVERY: Duration = Duration::from_secs(3600);",
        },
        Edit {
            file: "src/store/live/poller.rs",
            find: "            sleep(pause).await;",
            replace: "            sleep(pause * 3600).await;",
        },
        Edit {
            file: "src/store/live/rings.rs",
            find: "const LOOK_EVERY: Duration = Duration::from_secs(1);",
            replace: "const LOOK_EVERY: Duration = Duration::from_secs(3600);",
        },
        Edit {
            file: "src/engine/reap.rs",
            find: "const LOOK_EVERY: Duration = Duration::from_secs(5);",
            replace: "const LOOK_EVERY: Duration = Duration::from_secs(3600);",
        },
    ],
    check: "without NOTIFY every reader sees the last word all the same",
};

const ONE_PAGE_CLOSED: Mutant = Mutant {
    name: "one_page_closed",
    rule: "a close pass goes on until a page is short (I6)",
    edits: &[
        Edit {
            file: "src/engine/reap.rs",
            find: "        if closed.len() < usize::try_from(CLOSE_MAX).unwrap_or(usize::MAX) {
            return Ok(());
        }
",
            replace: "        return Ok(());\n",
        },
        // What is left over would be looked at again at once.
        Edit {
            file: "src/engine/reap.rs",
            find: "    if outlook.closable > 0 {
        return Ok(LOOK_SOON);
    }
",
            replace: "",
        },
    ],
    check: "all that is due is closed in one go",
};

const BEAT_IS_PROGRESS: Mutant = Mutant {
    name: "beat_is_progress",
    rule: "a worker's beat is no progress (I6)",
    edits: &[Edit {
        file: "src/worker/turn/run.rs",
        find: "            Meaning::Alive => None,\n",
        replace: "            Meaning::Alive => {
                self.expect(Duration::ZERO, link);
                None
            }\n",
    }],
    check: "a turn that only beats is ended",
};

const BYTE_BEFORE_RUNNING: Mutant = Mutant {
    name: "byte_before_running",
    rule: "`running` is committed before a worker receives a byte (I10)",
    edits: &[Edit {
        file: "src/worker/turn/handover.rs",
        find: "    let base = if is_starting { start(deps, link.worker(), job).await? } else { job.claim.last_seq };
    let why = match deliver(deps, link, job, history) {
",
        replace: "    let sent = deliver(deps, link, job, history);
    let base = if is_starting { start(deps, link.worker(), job).await? } else { job.claim.last_seq };
    let why = match sent {
",
    }],
    check: "no worker has a turn that is not running",
};
