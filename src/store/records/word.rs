//! The store's own lists of words, and how words are read and written.
//!
//! Refuses a text column as a `String` where a list has its words: a query's column says `Stored<List>`, or
//! `Stored<Open<List>>` where a newer release's word must not break the read.

use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef},
};

use crate::{word::Word, words};

/// A word in a text column, or in a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Stored<T>(pub(in crate::store) T);

impl<T> Type<Postgres> for Stored<T> {
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }

    fn compatible(ty: &PgTypeInfo) -> bool {
        <str as Type<Postgres>>::compatible(ty)
    }
}

impl<T> PgHasArrayType for Stored<T> {
    fn array_type_info() -> PgTypeInfo {
        <&str as PgHasArrayType>::array_type_info()
    }
}

impl<T: Word> Decode<'_, Postgres> for Stored<T> {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Stored(T::of_stored(<&str as Decode<Postgres>>::decode(value)?)?))
    }
}

impl<T: Word> Encode<'_, Postgres> for Stored<T> {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <&str as Encode<Postgres>>::encode_by_ref(&self.0.as_str(), buf)
    }
}

words! {
    /// How far an in-flight turn is.
    pub enum InflightPhase in "inflight.phase" {
        Queued = "queued",
        Starting = "starting",
        Running = "running",
    }

    /// The clock behind an in-flight turn's deadline.
    pub enum TurnClock in "inflight.clock" {
        /// A replica owes the claim.
        Queue = "queue",
        /// A worker owes its readiness.
        Startup = "startup",
        /// The worker owes an event.
        Progress = "progress",
        /// The user owes an answer.
        Answer = "answer",
    }

    /// The state of a replica.
    pub enum ReplicaStatus in "replicas.state" {
        Ready = "ready",
        Draining = "draining",
        Lost = "lost",
        Left = "left",
    }

    /// The state of a worker.
    pub enum WorkerState in "workers.state" {
        Starting = "starting",
        Ready = "ready",
        Ended = "ended",
    }

    /// The kind of an order to a turn's holder.
    pub enum OrderKind in "commands.kind" {
        Cancel = "cancel",
        Answer = "answer",
    }

    /// How a turn differs from what was seen of it.
    pub enum Loss in "rewound.how" {
        Closed = "closed",
        Changed = "changed",
        Vanished = "vanished",
        /// The replica that could have told is gone.
        Unknown = "unknown",
    }

    /// What became of a turn that a client wants accepted, unless the answer is an [`AcceptRefusal`].
    pub enum Acceptance in "lw_accept_v1.o_outcome" {
        Accepted = "accepted",
        /// The turn was accepted before.
        Same = "same",
    }

    /// Why a turn is not accepted.
    pub enum AcceptRefusal in "lw_accept_v1.o_outcome" {
        /// The conversation is gone, or another agent's.
        NoConversation = "LW404",
        /// A turn of the conversation is active; the detail is its id.
        TurnActive = "LW409",
        /// The agent has a newer revision.
        NewerAgent = "LW412",
        /// The idempotency key came with another request.
        KeyReused = "LW422",
        /// What the detail names is full, a [`WaitLimit`].
        Full = "LW429",
    }

    /// What has as many turns as may wait there.
    pub enum WaitLimit in "lw_accept_v1.o_detail" {
        Conversation = "conversation",
        Queue = "queue",
    }

    /// What a cancel did.
    pub enum Cancellation in "lw_cancel_v1.o_outcome" {
        /// The turn was queued, and has ended.
        Cancelled = "cancelled",
        Asked = "asked",
        AskedBefore = "asked before",
    }

    /// What became of a turn that is to be moved here, see [`Adoption`](crate::store::adoption::Adoption).
    pub enum MoveVerdict in "lw_remote_adopt_v4.o_verdict" {
        Adopted = "adopted",
        Unknown = "unknown",
        Ended = "ended",
        Stale = "stale",
        Elsewhere = "elsewhere",
        Locked = "locked",
    }
}
