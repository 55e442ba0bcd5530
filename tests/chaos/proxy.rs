//! A network between two processes, with configurable faults.
//!
//! Owns one loopback port, the thread that serves it, and the weather: delays, losses and cuts. Each direction is a
//! bounded queue, so that a slow reader slows its writer as without a proxy. Keeps: once [`Proxy::set`] or
//! [`Proxy::reset_all`] has returned, no byte that arrives later escapes the new weather; a dropped proxy leaves
//! nothing behind. Refuses to deliver a stream with a hole: a connection that lost bytes is reset once the weather
//! clears, as TCP would do.

#![allow(clippy::disallowed_methods, reason = "its tasks live on a runtime of its own, outside any replica")]

#[path = "weather.rs"]
mod weather;
#[path = "wire.rs"]
pub mod wire;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

pub use self::weather::Weather;
use self::{
    weather::{Gate, Way},
    wire::{Answer, Armed, Talk},
};

/// Bytes read at once, and pieces on their way in one direction of one connection.
const PIECE_MAX: usize = 16 * 1024;
const PIECES_MAX: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy)]
struct Sky {
    weather: Weather,
    upstream: SocketAddr,
    /// Connections of an older age are reset.
    age: u64,
}

#[derive(Debug)]
struct Shared {
    sky: watch::Sender<Sky>,
    armed: Mutex<Armed>,
    accepted: AtomicU64,
    bytes_lost: AtomicU64,
}

/// A proxy before one server.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of loopback and passes everything to `upstream`.
    ///
    /// # Errors
    /// There is no port, or no thread.
    pub fn start(upstream: SocketAddr) -> io::Result<Proxy> {
        let listener = StdListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (sky, _) = watch::channel(Sky { weather: Weather::Clear, upstream, age: 0 });
        let (accepted, bytes_lost) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Arc::new(Shared { sky, armed: Mutex::default(), accepted, bytes_lost });
        let (stop, stopped) = oneshot::channel();
        // A thread of its own: a test that blocks does not stop the net.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = shared.clone();
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, served) => {}
                }
            });
        })?;
        Ok(Proxy { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same URL, by way of this proxy.
    pub fn url_of(&self, database_url: &str) -> String {
        let (scheme, rest) = database_url.split_once("://").unwrap_or(("postgres", database_url));
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
        format!("{scheme}://{user}{}{path}", self.address)
    }

    /// Sends new connections elsewhere; old ones stay.
    pub fn retarget(&self, upstream: SocketAddr) {
        self.shared.sky.send_modify(|sky| sky.upstream = upstream);
    }

    /// Changes the weather.
    pub fn set(&self, weather: Weather) {
        self.shared.sky.send_modify(|sky| {
            sky.weather = weather;
            sky.age += u64::from(weather == Weather::Refuse);
        });
    }

    /// Resets every connection there is, on both sides; new ones are as before.
    pub fn reset_all(&self) {
        self.shared.sky.send_modify(|sky| sky.age += 1);
    }

    /// For the next `requests` that run a statement with `pattern` in its text and commit: Postgres'
    /// answer is dropped when it is whole, and the connection is reset. One that fails, or whose
    /// transaction goes on, is answered and does not count.
    pub fn cut_after_commit(&self, requests: u32, pattern: &str) {
        let mut armed = self.shared.armed();
        (armed.left, armed.pattern) = (requests, pattern.to_owned());
    }

    /// Commits whose answer was dropped so far.
    pub fn cuts_done(&self) -> u64 {
        self.shared.armed().done
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// Bytes that a black hole has swallowed so far.
    pub fn bytes_lost(&self) -> u64 {
        self.shared.bytes_lost.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn armed(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: StdListener, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Too many open files, say: the next one may fare better.
                let Ok((client, _)) = accepted else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let number = shared.accepted.fetch_add(1, Ordering::AcqRel);
                connections.spawn(carry(client, number, shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// How a connection ended, for the other side to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// One connection from its first byte to its end.
async fn carry(mut client: TcpStream, number: u64, shared: Arc<Shared>) {
    let mut sky = shared.sky.subscribe();
    let born = *sky.borrow();
    if born.weather == Weather::Refuse {
        return reset(&client);
    }
    let link = Link { number, age: born.age, shared: &shared, talk: Mutex::default() };
    let mut server = None;
    let end = tokio::select! {
        biased;
        _ = sky.wait_for(|sky| sky.age != born.age) => End::Reset,
        end = link.run(&mut client, &mut server) => end,
    };
    link.talk().end(&mut shared.armed());
    if end == End::Reset {
        reset(&client);
        server.as_ref().inspect(|server| reset(server));
    }
}

/// Makes the socket end with a reset when it is dropped.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

struct Link<'a> {
    number: u64,
    age: u64,
    shared: &'a Shared,
    talk: Mutex<Talk>,
}

/// What travels in one direction.
enum Piece {
    Bytes(Instant, Bytes),
    End(End),
}

impl Link<'_> {
    fn talk(&self) -> MutexGuard<'_, Talk> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, client: &mut TcpStream, slot: &mut Option<TcpStream>) -> End {
        let mut sky = self.shared.sky.subscribe();
        // As a connect that is tried again until it comes through.
        let Ok(upstream) =
            sky.wait_for(|sky| sky.weather.gate(Way::ToServer) == Gate::Open).await.map(|sky| sky.upstream)
        else {
            return End::Reset;
        };
        let Ok(server) = TcpStream::connect(upstream).await else { return End::Reset };
        let server = slot.insert(server);
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            end = self.pump(Way::ToServer, from_client, to_server) => end,
            end = self.pump(Way::ToClient, from_server, to_client) => end,
        }
    }

    async fn pump(&self, way: Way, from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin) -> End {
        let (pieces, queue) = mpsc::channel(PIECES_MAX);
        let reading = async {
            self.read(way, from, pieces).await;
            // The writer tells of the end, when it has come there.
            std::future::pending().await
        };
        tokio::select! {
            end = self.write(way, queue, to) => end,
            end = reading => end,
        }
    }

    async fn read(&self, way: Way, mut from: impl AsyncRead + Unpin, pieces: mpsc::Sender<Piece>) {
        let mut chance = None;
        let mut due_before = Instant::now();
        loop {
            let mut bytes = BytesMut::with_capacity(PIECE_MAX);
            let piece = match from.read_buf(&mut bytes).await {
                Ok(0) => Piece::End(End::Closed),
                Err(_) => Piece::End(End::Reset),
                Ok(_) => {
                    let weather = self.shared.sky.borrow().weather;
                    let due = Instant::now() + weather.delay(self.number, way, &mut chance);
                    // Nothing overtakes.
                    due_before = due_before.max(due);
                    Piece::Bytes(due_before, bytes.freeze())
                }
            };
            let is_end = matches!(piece, Piece::End(_));
            if pieces.send(piece).await.is_err() || is_end {
                return;
            }
        }
    }

    async fn write(
        &self,
        way: Way,
        mut queue: mpsc::Receiver<Piece>,
        mut to: impl AsyncWrite + Unpin,
    ) -> End {
        let mut sky = self.shared.sky.subscribe();
        let mut is_torn = false;
        loop {
            let piece = tokio::select! {
                biased;
                Ok(_) = sky.wait_for(|sky| sky.weather.gate(way) == Gate::Open), if is_torn => return End::Reset,
                piece = queue.recv() => piece,
            };
            match piece {
                None => return End::Reset,
                Some(Piece::End(end)) => {
                    // Nobody is told of an end while nothing passes.
                    let _ = sky.wait_for(|sky| sky.weather.gate(way) == Gate::Open).await;
                    return if is_torn { End::Reset } else { end };
                }
                Some(Piece::Bytes(due, bytes)) => {
                    sleep_until(due).await;
                    let Ok(now) =
                        sky.wait_for(|sky| sky.weather.gate(way) != Gate::Shut).await.map(|sky| *sky)
                    else {
                        return End::Reset;
                    };
                    if now.age != self.age {
                        return End::Reset;
                    }
                    if now.weather.gate(way) == Gate::Lossy {
                        is_torn = true;
                        let lost = u64::try_from(bytes.len()).unwrap_or(0);
                        self.shared.bytes_lost.fetch_add(lost, Ordering::AcqRel);
                        continue;
                    }
                    if is_torn {
                        return End::Reset;
                    }
                    let passed = match self.overhear(way, &bytes) {
                        Answer::Pass(passed) => passed,
                        Answer::Cut => return End::Reset,
                    };
                    if to.write_all(&passed).await.is_err() {
                        return End::Reset;
                    }
                }
            }
        }
    }

    /// Reads what passes, at the moment it does: a request is known before its answer can come.
    fn overhear(&self, way: Way, bytes: &Bytes) -> Answer {
        let (mut talk, mut armed) = (self.talk(), self.shared.armed());
        match way {
            Way::ToServer => {
                talk.request(bytes, &mut armed);
                Answer::Pass(bytes.to_vec())
            }
            Way::ToClient => talk.answer(bytes, &mut armed),
        }
    }
}
