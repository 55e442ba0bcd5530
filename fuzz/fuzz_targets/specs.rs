//! Agents' specs: what is let in can be kept, and can be run by. The properties stand in `src/specs.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lastword_fuzz::specs::check(bytes));
