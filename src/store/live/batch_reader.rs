//! The task behind [`super::read_batch`]: answers all queued readers with one statement.

use tokio_util::sync::CancellationToken;

use super::read_batch::{Answer, ROOM};
use crate::store::{handle::Store, records::page::Want};

/// Answers readers until cancelled. The engine runs two of these tasks: one prepares a statement while the other waits.
pub async fn read_on(store: Store, until: CancellationToken) {
    let serving = async {
        loop {
            let (wants, answers) = store.read_batch().next().await;
            if !wants.is_empty() {
                answer_all(&store, &wants, answers).await;
            }
        }
    };
    until.run_until_cancelled(serving).await;
    store.read_batch().close().await;
}

async fn answer_all(store: &Store, wants: &[Want], answers: Vec<Answer>) {
    match store.read_many(wants, ROOM).await {
        Ok(pages) => {
            for (answer, page) in answers.into_iter().zip(pages) {
                let _ = answer.send(page);
            }
        }
        // Each reader reports the error to its own client, or retries until Postgres is back.
        Err(why) => {
            for answer in answers {
                let _ = answer.send(Err(why.clone()));
            }
        }
    }
}
