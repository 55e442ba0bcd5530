//! Accepting connections, setting their socket options, and resetting them at the hard stop.
//!
//! The connection limits are in [`super::connected`], the reset in [`super::peer`].

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connected::{Connected, ConnectionSlot},
    exchange::Streams,
    full::refuse,
    gateway::Gateway,
    peer::Peer,
    speak::speak,
    stall::{StallWatch, UNACKNOWLEDGED_MAX, set_unacknowledged_max},
    wire::{UNSENT_MAX, Wire},
};
use crate::task::TaskKind;

/// TCP keep-alive: the idle time before the first probe, and the interval of probes.
const SILENT_MAX: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// The time for streams to end themselves after the hard stop.
const RESET_WITHIN: Duration = Duration::from_millis(500);
/// Refusals at a time; further connections wait to be accepted.
const REFUSALS_MAX: usize = 8;
/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves requests with `service` until the hard stop. Once `closing` is cancelled, accepts no more connections,
/// closes idle ones, and returns after the last has ended. A drain comes before that: requests are still answered
/// then.
pub async fn serve(listener: TcpListener, gateway: Gateway, service: Router, closing: CancellationToken) {
    let supervisor = gateway.supervisor.clone();
    let hard = supervisor.hard().clone();
    let (connected, stall_max) = (gateway.doors.connected.clone(), gateway.config.stream_stall_max.0);
    let origins = gateway.doors.origins.clone();
    let connections = TaskTracker::new();
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let taking = async {
        for number in 1.. {
            let (stream, address) = accept(&listener, &connected).await;
            match connected.admit(number, address) {
                Ok(admission) => {
                    let peer = Peer::new(address, number);
                    let watch = StallWatch::new(stall_max);
                    let stops = (closing.clone(), hard.clone());
                    let streams = Streams::new(&supervisor, stall_max);
                    let service = (service.clone(), streams);
                    let one = carry((stream, watch), admission, peer, service, stops);
                    supervisor.spawn(TaskKind::Client, "connections", connections.track_future(one));
                }
                Err(why) => {
                    let turn = refusals.clone().acquire_owned().await;
                    let origins = origins.clone();
                    let one = async move {
                        refuse(stream, why, &origins).await;
                        drop(turn);
                    };
                    supervisor.spawn(TaskKind::Client, "refusals", connections.track_future(one));
                }
            }
        }
    };
    tokio::select! {
        () = taking => {}
        () = closing.cancelled() => {}
        () = hard.cancelled() => {}
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(listener: &TcpListener, connected: &Connected) -> (TcpStream, SocketAddr) {
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(why) => {
                // Mostly out of file descriptors: callers wait in the backlog, and a busy loop would not help them.
                if failures == 0 {
                    tracing::warn!(%why, "a connection could not be accepted");
                }
                failures += 1;
                connected.clear_some();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end. Once `closing` is cancelled, the connection ends after the response under way.
async fn carry(
    (stream, watch): (TcpStream, StallWatch),
    admission: ConnectionSlot,
    peer: Peer,
    (service, streams): (Router, Streams),
    (closing, hard): (CancellationToken, CancellationToken),
) {
    if let Err(why) = keep_honest(&stream) {
        tracing::debug!(%why, "the socket options of a connection could not be set");
    }
    let other_end = peer.clone();
    let mark = admission.mark();
    let wire = Wire::new(stream, peer.clone(), mark.clone(), watch);
    let spoken = speak(wire, (service, peer), mark, streams, closing);
    let cut_off = async {
        hard.cancelled().await;
        tokio::time::sleep(RESET_WITHIN).await;
    };
    tokio::select! {
        ended = spoken => {
            if let Err(why) = ended {
                tracing::debug!(%why, address = %other_end.address(), "a connection broke");
            }
        }
        () = cut_off => {}
        // The connection is idle, and the client has read everything.
        () = admission.asked_to_leave() => {}
        () = admission.silent() => {}
        () = other_end.was_cut_off() => {}
    }
}

/// Frames are sent at once, and vanished clients are detected.
fn keep_honest(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(SILENT_MAX).with_interval(PROBE_EVERY))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    set_unacknowledged_max(stream, UNACKNOWLEDGED_MAX)
}
