//! Replicas, for operators.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    answer::Json,
    gateway::Gateway,
    problem::Problem,
    request::{Page, Params},
};
use crate::{
    id::ReplicaId,
    store::{replicas::ReplicaRow, word::ReplicaStatus},
    word::Open,
};

/// A replica as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplicaView {
    /// `rep_…`; a new id at every boot.
    #[schema(value_type = String)]
    id: ReplicaId,
    /// The host and port, for people.
    name: String,
    /// The base URL of the replica.
    url: String,
    /// The process id.
    pid: i32,
    /// The release.
    version: String,
    /// `ready`, `draining`, `lost` or `left`.
    #[schema(value_type = String)]
    state: Open<ReplicaStatus>,
    /// When the replica registered.
    started_at: DateTime<Utc>,
    /// When the replica last beat.
    beat_at: DateTime<Utc>,
    /// The number of turns that the replica holds.
    turns: i64,
}

impl From<ReplicaRow> for ReplicaView {
    fn from(row: ReplicaRow) -> Self {
        let ReplicaRow { id, url, pid, version, state, started_at, beat_at, turns } = row;
        let name = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).to_owned();
        ReplicaView { id, name, url, pid, version, state, started_at, beat_at, turns }
    }
}

/// Lists replicas, newest first: those at work, and those gone within the last hour.
#[utoipa::path(get, path = "/v1/replicas", tag = "operators",
    params(
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query),
    ),
    responses((status = 200, body = Page<ReplicaView>)))]
pub async fn list(
    State(gateway): State<Gateway>,
    mut params: Params,
) -> Result<Json<Page<ReplicaView>>, Problem> {
    let (before, limit) = (params.parsed::<ReplicaId>("cursor")?, params.limit()?);
    params.end()?;
    let rows = gateway.store.replicas(before, limit + 1).await?;
    Ok(Json(Page::of(rows.into_iter().map(ReplicaView::from).collect(), limit, |item: &ReplicaView| {
        item.id.to_string()
    })))
}
