//! Request bodies in memory: how many bytes a replica holds at once.
//!
//! Owns the limit of all bodies together; each body has its own limit besides. Small bodies are free, so a worker's
//! beat or a short text is always read, however much other clients send. A body above the free size reserves its
//! announced length at once; otherwise many large bodies could each hold a part, and none could complete. An
//! announcement alone reserves nothing. Refuses a body that finds no room within 2 s, and a body that stalls, so
//! nothing waits without an end.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::header,
};
use futures_util::StreamExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::problem::Problem;
use crate::units::Size;

/// Timeouts of a body: for all of it, and between two pieces.
const BODY_WITHIN: Duration = Duration::from_secs(30);
const SILENT_MAX: Duration = Duration::from_secs(10);
/// How long a body waits for room.
const ROOM_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of each body that are free. A connection's own buffers hold four times as much.
const FREE_BYTES: usize = 16 * 1024;
/// The unit of reservations, in bytes.
const UNIT_BYTES: usize = 1024;

/// The room for bodies in one replica.
#[derive(Debug)]
pub struct Bodies {
    room: Arc<Semaphore>,
    units_max: usize,
}

/// A body's reserved room, released on drop.
#[derive(Debug, Default)]
#[must_use = "a body's room is free when this is dropped"]
pub struct BodyRoom(Option<OwnedSemaphorePermit>);

impl Bodies {
    /// Room for `max` bytes.
    pub fn new(max: Size) -> Bodies {
        let units = usize::try_from(max.0).unwrap_or(usize::MAX) / UNIT_BYTES;
        let units_max = units.clamp(1, Semaphore::MAX_PERMITS);
        Bodies { room: Arc::new(Semaphore::new(units_max)), units_max }
    }

    /// Reserved bytes, and all bytes.
    pub fn count(&self) -> (u64, u64) {
        let bytes = |units: usize| (units * UNIT_BYTES) as u64;
        let taken = self.units_max.saturating_sub(self.room.available_permits());
        (bytes(taken), bytes(self.units_max))
    }

    /// Reads a whole body of at most `limit` bytes; also returns its reservation.
    ///
    /// # Errors
    /// The problem: too large, too slow, incomplete, or no room.
    pub async fn read(&self, request: Request, limit: u64) -> Result<(Bytes, BodyRoom), Problem> {
        let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let announced = announced.and_then(|length| length.parse::<u64>().ok()).unwrap_or_default();
        if announced > limit {
            return Err(Problem::too_large(limit));
        }
        timeout(BODY_WITHIN, self.collect(request.into_body(), limit, announced))
            .await
            .unwrap_or_else(|_| Err(Problem::body_timeout()))
    }

    async fn collect(&self, body: Body, limit: u64, announced: u64) -> Result<(Bytes, BodyRoom), Problem> {
        let announced = usize::try_from(announced).unwrap_or(usize::MAX);
        let mut chunks = body.into_data_stream();
        let (mut whole, mut held) = (Vec::new(), BodyRoom::default());
        loop {
            let Ok(chunk) = timeout(SILENT_MAX, chunks.next()).await else {
                return Err(Problem::body_timeout());
            };
            let Some(chunk) = chunk else { return Ok((whole.into(), held)) };
            let chunk = chunk.map_err(|_| Problem::malformed("The body broke off."))?;
            let length = whole.len() + chunk.len();
            if length as u64 > limit {
                return Err(Problem::too_large(limit));
            }
            if length > FREE_BYTES {
                self.make_room(&mut held, length.max(announced)).await?;
            }
            whole.extend_from_slice(&chunk);
        }
    }

    /// Extends a reservation to a body of `bytes` bytes.
    async fn make_room(&self, held: &mut BodyRoom, bytes: usize) -> Result<(), Problem> {
        let wanted = bytes.saturating_sub(FREE_BYTES).div_ceil(UNIT_BYTES);
        let had = held.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(wanted.saturating_sub(had)).unwrap_or(u32::MAX);
        if more == 0 {
            return Ok(());
        }
        let taken = timeout(ROOM_WITHIN, self.room.clone().acquire_many_owned(more)).await;
        let Ok(Ok(taken)) = taken else { return Err(Problem::bodies_full()) };
        match &mut held.0 {
            Some(held) => held.merge(taken),
            none => *none = Some(taken),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures_util::stream;

    use super::*;

    async fn read(bodies: &Bodies, bytes: usize) -> Result<(Bytes, BodyRoom), Problem> {
        bodies.read(Request::new(Body::from(vec![b'x'; bytes])), 1 << 20).await
    }

    #[tokio::test]
    async fn room_is_taken_for_what_is_large_and_given_back() {
        let bodies = Bodies::new(Size::kib(64));
        let (_, small) = read(&bodies, FREE_BYTES).await.unwrap();
        assert_eq!(bodies.room.available_permits(), 64, "{small:?}");
        let (body, held) = read(&bodies, FREE_BYTES + 40 * 1024 + 1).await.unwrap();
        assert_eq!((body.len(), bodies.room.available_permits()), (FREE_BYTES + 40 * 1024 + 1, 23));
        assert!(read(&bodies, FREE_BYTES + 24 * 1024).await.is_err(), "there is no room");
        let (_, also) = read(&bodies, FREE_BYTES + 23 * 1024).await.unwrap();
        drop((held, also));
        assert_eq!(bodies.room.available_permits(), 64);
    }

    #[tokio::test]
    async fn who_waits_for_room_gets_what_becomes_free() {
        let bodies = Bodies::new(Size::kib(64));
        let (_, held) = read(&bodies, FREE_BYTES + 60 * 1024).await.unwrap();
        let free = async {
            tokio::task::yield_now().await;
            drop(held);
        };
        let (waited, ()) = tokio::join!(read(&bodies, FREE_BYTES + 60 * 1024), free);
        assert!(waited.is_ok());
    }

    #[tokio::test]
    async fn what_is_announced_takes_room_once_more_than_a_little_has_come() {
        for (bytes, announced, left) in [(0, 40, 64), (16, 40, 64), (17, 40, 40), (17, 0, 63), (24, 0, 56)] {
            let bodies = Bodies::new(Size::kib(64));
            let come = stream::once(ready(Ok::<_, std::io::Error>(vec![b'x'; bytes * 1024])));
            let mut request = Request::new(Body::from_stream(come.chain(stream::pending())));
            if announced > 0 {
                request.headers_mut().insert(header::CONTENT_LENGTH, (announced * 1024).into());
            }
            let mut reading = Box::pin(bodies.read(request, 1 << 20));
            assert!(timeout(Duration::from_millis(20), &mut reading).await.is_err(), "the rest is to come");
            assert_eq!(bodies.room.available_permits(), left, "{bytes} of {announced}");
            drop(reading);
            assert_eq!(bodies.room.available_permits(), 64);
        }
    }
}
