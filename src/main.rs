//! The binary: hands over to [`lastword::cli`].

fn main() {}
