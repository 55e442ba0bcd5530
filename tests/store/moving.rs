//! Take-overs of remote turns: many in one statement, each with its own result, and none past its fence.

use lastword::{
    event::Kind,
    id::{TurnId, WorkerId},
    store::{
        adoption::{Adoption, Move},
        claim::Claim,
        group_commit::Written,
        remote_turns::{Bid, Proof},
    },
    turn::CancelledBy,
};

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_moved() {
    let server = Server::start().await;
    let cases = cases![&server;
        many_turns_are_moved_in_one_statement_each_with_its_own_verdict,
        two_replicas_that_move_the_same_turns_wait_for_each_other_and_no_longer,
    ];
    all(cases).await;
}

/// A token's hash, for the turn that a worker was offered as its `n`-th.
fn hash(n: usize) -> [u8; 32] {
    [u8::try_from(n).unwrap(); 32]
}

/// So many turns that `replica` has claimed for a worker that calls.
async fn offered(replica: &Replica, worker: WorkerId, count: usize) -> Vec<Claim> {
    let mut bids = Vec::new();
    for n in 0..count {
        bids.push(Bid { turn: replica.accept().await.id, worker, token_hash: hash(n) });
    }
    let mut claims = replica.store.claim_remote(&bids).await.unwrap();
    claims.sort_by_key(|(claim, _)| claim.turn);
    assert_eq!(claims.len(), count);
    claims.into_iter().map(|(claim, _)| claim).collect()
}

fn by_worker(claim: &Claim, worker: WorkerId) -> Move {
    Move { turn: claim.turn, epoch: claim.epoch, proof: Proof::Worker(worker) }
}

async fn holder(ground: &Ground, turn: TurnId) -> String {
    ground.ask(&format!("select replica from inflight where turn_id = '{}'", turn.0)).await
}

async fn many_turns_are_moved_in_one_statement_each_with_its_own_verdict(server: &Server) {
    let ground = server.ground().await;
    let (former, next) = (ground.replica().await, ground.replica().await);
    let [worker, stranger] = [(); 2].map(|()| WorkerId(former.store.clock().mint()));
    let mut claims = offered(&former, worker, 6).await;
    let ended = claims.remove(0);
    let seq = former.store.start(&ended, Some(worker)).await.unwrap().unwrap();
    former.finish(&ended, seq).await;
    let stale = claims.remove(0);
    assert!(former.store.release(stale.turn, stale.epoch, true).await.unwrap());
    let running = claims.remove(0);
    let seq = former.store.start(&running, Some(worker)).await.unwrap().unwrap();
    assert_eq!(former.append(&running, seq, Kind::Delta).await, Written::Done(seq + 1));
    former.store.cancel(&[running.turn], CancelledBy::Client).await.unwrap();
    let [starting, by_token, others]: [Claim; 3] = claims.try_into().unwrap();

    let wrong = Move { proof: Proof::Worker(stranger), ..by_worker(&others, worker) };
    let wrong_token = Move { proof: Proof::Token([77; 32]), ..wrong };
    let token = Move { proof: Proof::Token(hash(4)), ..by_worker(&by_token, worker) };
    let never = Move { turn: TurnId(former.store.clock().mint()), ..wrong };
    let ahead = Move { epoch: 2, ..wrong };
    let asked = [
        by_worker(&running, worker),
        by_worker(&ended, worker),
        wrong,
        by_worker(&stale, worker),
        token,
        never,
        by_worker(&starting, worker),
    ];
    let verdicts = next.store.adopt(&asked).await.unwrap();
    let [first, second, third, fourth, fifth, sixth, seventh]: [_; 7] =
        verdicts.into_iter().map(Result::unwrap).collect::<Vec<_>>().try_into().unwrap();
    let Adoption::Adopted(first) = first else { panic!("{first:?}") };
    assert_eq!((first.claim.turn, first.claim.epoch, first.claim.last_seq), (running.turn, 1, seq + 1));
    assert_eq!(
        (first.worker, first.is_running, first.cancelled_by),
        (worker, true, Some(CancelledBy::Client.into()))
    );
    assert_eq!(first.claim.assignment.agent, "demo");
    assert!(matches!(second, Adoption::Ended), "{second:?}");
    assert!(matches!(third, Adoption::Unknown), "{third:?}");
    assert!(matches!(fourth, Adoption::Stale), "{fourth:?}");
    assert!(matches!(&fifth, Adoption::Adopted(it) if it.token_hash == hash(4)), "{fifth:?}");
    assert!(matches!(sixth, Adoption::Unknown), "{sixth:?}");
    assert!(matches!(&seventh, Adoption::Adopted(it) if !it.is_running), "{seventh:?}");
    for asked in [wrong_token, ahead] {
        let verdict = next.store.adopt(&[asked]).await.unwrap().remove(0).unwrap();
        assert!(matches!(verdict, Adoption::Unknown), "{verdict:?}");
    }
    let (former_id, next_id) = (former.store.replica().0, next.store.replica().0);
    for (turn, holds) in
        [(&running, next_id), (&by_token, next_id), (&starting, next_id), (&others, former_id)]
    {
        assert_eq!(holder(&ground, turn.turn).await, holds.to_string());
    }
    // The former holder's fence is closed, and its order is there to be told again.
    assert_eq!(former.append(&running, seq + 1, Kind::Delta).await, Written::LeaseLost);
    assert_eq!(next.append(&running, seq + 1, Kind::Delta).await, Written::Done(seq + 2));
    assert_eq!(next.store.commands(&[running.turn]).await.unwrap().len(), 1);

    ground.lose(next.store.replica()).await;
    let verdict = next.store.adopt(&[by_worker(&others, worker)]).await.unwrap().remove(0).unwrap();
    assert!(matches!(verdict, Adoption::Elsewhere), "{verdict:?}");
    assert_eq!(holder(&ground, others.turn).await, former_id.to_string());
}

async fn two_replicas_that_move_the_same_turns_wait_for_each_other_and_no_longer(server: &Server) {
    const TURNS: usize = 40;
    let ground = server.ground().await;
    let (former, one, other) = (ground.replica().await, ground.replica().await, ground.replica().await);
    let worker = WorkerId(former.store.clock().mint());
    let claims = offered(&former, worker, TURNS).await;
    let there: Vec<Move> = claims.iter().map(|claim| by_worker(claim, worker)).collect();
    let back: Vec<Move> = there.iter().rev().copied().collect();
    for _ in 0..20 {
        let (ours, theirs) = tokio::join!(one.store.adopt(&there), other.store.adopt(&back));
        for verdict in ours.unwrap().into_iter().chain(theirs.unwrap()) {
            assert!(matches!(verdict.unwrap(), Adoption::Adopted(_)));
        }
        let holders = ground.ask("select count(distinct replica) from inflight").await;
        assert_eq!(holders, "1", "some went here and some there");
    }
}
