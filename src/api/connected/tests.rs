//! Which connections are admitted and which are closed for others, and that closed connections do not count.

use tokio::time::timeout;

use super::*;

const IDLE_MAX: Duration = Duration::from_secs(75);
const ANYBODY: PerAddress = PerAddress { max: 10_000, binds_loopback: true };

/// A table that is an hour old, so that connections can have been idle before now.
fn connected(max: usize, per_address: PerAddress) -> Connected {
    let mut connected = Connected::new(max, per_address, IDLE_MAX);
    Arc::get_mut(&mut connected.0).unwrap().began -= Duration::from_secs(3600);
    connected
}

fn from(address: &str) -> SocketAddr {
    format!("{address}:1").parse().unwrap()
}

/// Sets the start of the idle time, in milliseconds since the table was made.
fn idle_since(admission: &ConnectionSlot, since: u64) {
    admission.place.idle_since.store(since, Relaxed);
}

fn is_leaving(admission: &ConnectionSlot) -> bool {
    admission.place.is_leaving.load(Relaxed)
}

#[test]
fn the_one_that_is_idle_for_longest_makes_room_and_none_in_use() {
    let connected = connected(3, ANYBODY);
    let admit = |number| connected.admit(number, from("10.0.0.1"));
    let (first, second, third) = (admit(1).unwrap(), admit(2).unwrap(), admit(3).unwrap());
    assert_eq!(admit(4).unwrap_err(), ConnectionRefused::Full, "their first requests may be on their way");
    idle_since(&first, 20);
    idle_since(&second, 10);
    let request = third.mark().request();
    let fourth = admit(4).unwrap();
    assert_eq!([&first, &second, &third].map(is_leaving), [false, true, false]);
    assert_eq!(connected.count(), (3, 3), "who is asked to leave counts no more");
    drop(second);
    assert_eq!(connected.count(), (3, 3));
    let requests = [first.mark().request(), fourth.mark().request()];
    assert_eq!(admit(5).unwrap_err(), ConnectionRefused::Full);
    drop((requests, request));
    idle_since(&first, 20);
    first.mark().blocked(true);
    assert_eq!(admit(5).unwrap_err(), ConnectionRefused::Full, "its answer is not read yet");
    drop((first, third, fourth));
    assert_eq!(connected.count(), (0, 3));
    assert!(connected.0.crowd.lock().by_origin.is_empty());
}

#[tokio::test]
async fn whoever_is_asked_to_leave_and_has_a_request_meanwhile_stays() {
    let connected = connected(1, ANYBODY);
    let first = connected.admit(1, from("10.0.0.1")).unwrap();
    idle_since(&first, 10);
    let second = connected.admit(2, from("10.0.0.1")).unwrap();
    let request = first.mark().request();
    assert!(timeout(Duration::from_millis(1), first.asked_to_leave()).await.is_err());
    assert_eq!(connected.count(), (2, 1), "it counts again");
    drop(request);
    idle_since(&first, 10);
    drop(second);
    let _third = connected.admit(3, from("10.0.0.1")).unwrap();
    first.asked_to_leave().await;
}

#[test]
fn no_more_are_asked_to_leave_than_may_be_there_beyond_the_ceiling() {
    let connected = connected(1000, ANYBODY);
    let mut all: Vec<_> = (0..1000).map(|n| connected.admit(n, from("10.0.0.1")).unwrap()).collect();
    all.iter().for_each(|admission| idle_since(admission, 10));
    for n in 1000..1000 + LEAVING_MAX as u64 {
        all.push(connected.admit(n, from("10.0.0.1")).unwrap());
    }
    assert_eq!(connected.admit(2000, from("10.0.0.1")).unwrap_err(), ConnectionRefused::Full);
    all.retain(|admission| !is_leaving(admission));
    connected.admit(2000, from("10.0.0.1")).unwrap();
}

#[test]
fn one_address_has_its_share_and_an_idle_one_of_its_own_makes_room_for_it() {
    let per_address = PerAddress { max: 2, binds_loopback: false };
    let connected = connected(100, per_address);
    let admit = |number, address| connected.admit(number, from(address));
    let (first, _second) = (admit(1, "10.0.0.1").unwrap(), admit(2, "10.0.0.1").unwrap());
    let other = admit(3, "10.0.0.2").unwrap();
    idle_since(&other, 5);
    assert_eq!(admit(4, "10.0.0.1").unwrap_err(), ConnectionRefused::Address);
    idle_since(&first, 10);
    let _fourth = admit(4, "10.0.0.1").unwrap();
    assert!(is_leaving(&first) && !is_leaving(&other));
    let _mapped = admit(5, "[::ffff:10.0.0.2]").unwrap();
    assert_eq!(admit(6, "10.0.0.2").map(|_| ()), Ok(()), "the idle one of its own");
    assert!(is_leaving(&other));
    let _network = [admit(7, "[2001:db8::1]").unwrap(), admit(8, "[2001:db8::2]").unwrap()];
    assert_eq!(admit(9, "[2001:db8::3]").unwrap_err(), ConnectionRefused::Address, "a network is one");
    let _next = admit(9, "[2001:db8:0:1::1]").unwrap();
    let _tunnels: Vec<_> =
        (10..20).map(|n| admit(n, if n % 2 == 0 { "127.0.0.1" } else { "[::1]" }).unwrap()).collect();
}

/// A connection with these timeouts: for idle time and for a head, in milliseconds.
fn patient(idle_ms: u64, head_ms: u64) -> (Connected, ConnectionSlot) {
    let mut connected = connected(9, ANYBODY);
    let inner = Arc::get_mut(&mut connected.0).unwrap();
    (inner.idle_max, inner.head_max) = (Duration::from_millis(idle_ms), Duration::from_millis(head_ms));
    let admission = connected.admit(1, from("10.0.0.1")).unwrap();
    (connected, admission)
}

const HOUR_MS: u64 = 3_600_000;

async fn ends(admission: &ConnectionSlot) {
    timeout(Duration::from_secs(30), admission.silent()).await.expect("it ends");
}

#[tokio::test]
async fn a_connection_may_wait_for_its_next_request_for_so_long() {
    let (_connected, admission) = patient(200, HOUR_MS);
    let began = Instant::now();
    ends(&admission).await;
    assert!(began.elapsed() >= Duration::from_millis(199), "without a request it stays for a while");
    let request = admission.mark().request();
    admission.mark().heard();
    let stays = timeout(Duration::from_millis(400), admission.silent()).await;
    assert!(stays.is_err(), "one is under way, and its body is no head");
    drop(request);
    ends(&admission).await;
}

#[tokio::test]
async fn a_head_may_not_take_long_however_it_comes() {
    let (_connected, admission) = patient(HOUR_MS, 200);
    let stays = timeout(Duration::from_millis(400), admission.silent()).await;
    assert!(stays.is_err(), "nothing of a head has come");
    let began = Instant::now();
    let mark = admission.mark();
    let drip = async {
        loop {
            mark.heard();
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = ends(&admission) => {}
        () = drip => unreachable!("it goes on for ever"),
    }
    assert!(began.elapsed() >= Duration::from_millis(199));
    let (_connected, other) = patient(HOUR_MS, 200);
    other.mark().heard();
    drop(other.mark().request());
    let stays = timeout(Duration::from_millis(400), other.silent()).await;
    assert!(stays.is_err(), "the head was whole in time");
}
