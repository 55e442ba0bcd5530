//! Whole HTTP requests, to a gateway whose Postgres is away. The properties stand in `src/requests.rs`.

#![no_main]

use lastword_fuzz::door::Door;

std::thread_local! {
    static DOOR: Door = Door::new(
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap(),
    );
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| DOOR.with(|door| lastword_fuzz::requests::check(door, bytes)));
