//! What stands in a log, rendered as an event stream, and what a worker is sent. The properties stand in `src/frames.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lastword_fuzz::frames::check(bytes));
