//! What a worker sends, cut into lines and read. The properties stand in `src/lines.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lastword_fuzz::lines::check(bytes));
