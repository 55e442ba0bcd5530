//! The files of a crate do not import each other in a circle: of two files, one can be read without the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use crate::{graph::Crate, source::source_files};

#[test]
fn no_circle_ties_files_of_a_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crates = fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let crates: Vec<_> = crates.filter(|path| path.join("Cargo.toml").is_file()).collect();
    assert!(!crates.is_empty(), "the crates were not found below {}", root.display());
    let mut circles = circles(root, Path::new("src"));
    for home in crates {
        let below = home.strip_prefix(root).unwrap().join("src");
        circles.extend(self::circles(&home, &below));
    }
    let wrong: Vec<String> = circles.iter().map(Circle::tell).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The circles of the crate in a directory, whose files are told as lying in `below`.
fn circles(home: &Path, below: &Path) -> Vec<Circle> {
    let manifest = fs::read_to_string(home.join("Cargo.toml")).unwrap();
    let name = manifest.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"');
    let source = home.join("src");
    let files = source_files(&source).into_iter().map(|file| {
        let path = file.strip_prefix(&source).unwrap().to_str().unwrap().replace('\\', "/");
        (path, fs::read_to_string(&file).unwrap())
    });
    let files: Vec<_> = files.collect();
    assert!(files.len() > 1, "the sources were not found in {}", source.display());
    circles_of(name, &files, below.to_str().unwrap())
}

/// Files each of which uses all others, by one way or another.
struct Circle {
    /// From file to file, and the names that tie them.
    ties: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

impl Circle {
    fn tell(&self) -> String {
        let mut told = format!("a circle of {} files:", self.ties.len());
        for (from, to) in &self.ties {
            for (to, names) in to {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                write!(told, "\n    {from} -> {to} ({})", names.join(", ")).unwrap();
            }
        }
        told
    }
}

fn circles_of(name: &str, files: &[(String, String)], below: &str) -> Vec<Circle> {
    let arrows = Crate::read(name, files).arrows();
    let reached: BTreeMap<&str, BTreeSet<&str>> = arrows
        .keys()
        .map(|from| {
            let (mut reached, mut next) = (BTreeSet::new(), vec![from.as_str()]);
            while let Some(at) = next.pop() {
                next.extend(arrows[at].keys().map(String::as_str).filter(|to| reached.insert(*to)));
            }
            (from.as_str(), reached)
        })
        .collect();
    let mut groups = BTreeSet::new();
    for (from, to) in &reached {
        groups.insert(to.iter().filter(|to| reached[**to].contains(from)).copied().collect::<Vec<_>>());
    }
    let full = |file: &str| format!("{below}/{file}");
    let circle = |group: &Vec<&str>| {
        let within = |from: &str| {
            let to = arrows[from].iter().filter(|(to, _)| group.contains(&to.as_str()));
            to.map(|(to, names)| (full(to), names.clone())).collect()
        };
        Circle { ties: group.iter().map(|from| (full(from), within(from))).collect() }
    };
    groups.iter().filter(|group| !group.is_empty()).map(circle).collect()
}

/// What is told of circles among these files.
fn told(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> =
        files.iter().map(|(file, source)| ((*file).to_owned(), (*source).to_owned())).collect();
    circles_of("some-crate", &files, "src").iter().map(Circle::tell).collect()
}

#[test]
fn a_circle_is_found_however_it_is_tied() {
    let a = ("a.rs", "use crate::b::B; pub struct A;");
    for (files, tie) in [
        (&[a, ("b.rs", "use crate::a::A; pub struct B;")][..], "src/b.rs -> src/a.rs (A)"),
        (&[a, ("b.rs", "use super::a::A; pub struct B;")], "src/b.rs -> src/a.rs (A)"),
        (&[a, ("b.rs", "use self::super::a::A; pub struct B;")], "src/b.rs -> src/a.rs (A)"),
        (&[a, ("b.rs", "use some_crate::a::A; pub struct B;")], "src/b.rs -> src/a.rs (A)"),
        (&[a, ("b.rs", "use crate::{c::C, a::{X, A as Other}}; pub struct B;")], "(Other, X)"),
        (&[a, ("b.rs", "pub struct B; fn f() { crate::a::A; }")], "(crate::a::A)"),
        (&[a, ("b.rs", "use crate::a; pub struct B; fn f() { a :: A; }")], "(a::A)"),
        (&[a, ("b.rs", "use crate::a::{self, self as again}; pub struct B(again::A);")], "(again::A)"),
        (&[a, ("b.rs", "use crate::a::*; pub struct B;")], "src/b.rs -> src/a.rs (*)"),
        (&[a, ("b.rs", "pub struct B { pub(in crate::c) a: crate::a::A }")], "src/b.rs -> src/a.rs"),
        (&[a, ("b.rs", "#[cfg(test)] mod tests; use crate::a::A; pub struct B;")], "src/b.rs -> src/a.rs"),
        (&[a, ("b.rs", "pub use crate::a::A; pub struct B(A);")], "src/b.rs -> src/a.rs (A)"),
        // Through a facade, to the file that defines the name.
        (
            &[a, ("b.rs", "use crate::f::A; pub struct B;"), ("f/mod.rs", "pub use super::a::A;")],
            "src/b.rs -> src/a.rs (A)",
        ),
        (
            &[a, ("b.rs", "use crate::f::A; pub struct B;"), ("f.rs", "pub(crate) use crate::a::{A as A};")],
            "src/b.rs -> src/a.rs (A)",
        ),
        (
            &[a, ("b.rs", "use crate::f::A; pub struct B;"), ("f.rs", "pub use crate::a::*;")],
            "src/b.rs -> src/a.rs (A)",
        ),
        (
            &[
                ("f/mod.rs", "mod child; pub struct P; fn f() { child::g() }"),
                ("f/child.rs", "use super::P;"),
            ],
            "src/f/child.rs -> src/f/mod.rs (P)",
        ),
        (
            &[
                ("f.rs", "mod child; use child::C; pub struct P(C);"),
                ("f/child.rs", "pub struct C(super::P);"),
            ],
            "src/f.rs -> src/f/child.rs (C)",
        ),
        (&[("main.rs", "mod a; fn main() { a::f() } struct M;"), ("a.rs", "use crate::M;")], "src/main.rs"),
        (
            &[a, ("b.rs", "use crate::c::C; pub struct B;"), ("c.rs", "use crate::a::A; pub struct C;")],
            "of 3",
        ),
    ] {
        let found = told(files);
        assert_eq!(found.len(), 1, "{files:?}\n{found:?}");
        assert!(found[0].contains(tie), "{files:?}\n{found:?}");
    }
}

#[test]
fn what_is_no_circle_is_left_alone() {
    let a = ("a.rs", "use crate::b::B; pub struct A;");
    for files in [
        &[a, ("b.rs", "// crate::a::A\n/// [`crate::a::A`]\npub struct B; const T: &str = \"crate::a::A\";")]
            [..],
        &[a, ("b.rs", "pub struct B;\n#[cfg(test)]\nmod tests { use crate::a::A; }")],
        &[a, ("b.rs", "mod tests; pub struct B;"), ("b/tests.rs", "use crate::a::A;")],
        &[a, ("b.rs", "pub struct B { pub(in crate::a) x: u8, y: other_crate::a::A, z: std::a::A }")],
        &[a, ("b.rs", "pub struct B; enum A { X } fn f() { A::X; a::A; }")],
        &[a, ("b.rs", "mod a; pub struct B(a::A);"), ("b/a.rs", "pub struct A;")],
        &[("lib.rs", "pub mod a; pub mod b; pub use a::A;"), a, ("b.rs", "pub struct B;")],
        // A facade passes on what its own files use of each other.
        &[
            ("f/mod.rs", "mod x; mod y; pub use self::{x::X, y::Y}; fn f() { x::g() }"),
            ("f/x.rs", "use super::Y; pub struct X; pub fn g() {}"),
            ("f/y.rs", "pub struct Y;"),
        ],
        &[("f.rs", "mod x; pub use x::X;"), ("f/x.rs", "pub struct X; fn f(of: crate::f::X) {}")],
        &[a, ("b.rs", "use crate::a; pub struct B;")],
        &[
            ("lib.rs", "pub mod a;"),
            ("main.rs", "fn main() { some_crate::a::f() }"),
            ("a.rs", "pub fn f() {}"),
        ],
    ] {
        assert_eq!(told(files), [""; 0], "{files:?}");
    }
}
