//! One meaning for each name: no two types of the gateway's crates have the same name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::LazyLock,
};

use regex::Regex;

use crate::source::{source_files, without_comments_and_strings, without_tests};

#[test]
fn no_two_types_have_one_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let homes = fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path().join("src"));
    let files = homes.chain([root.join("src")]).flat_map(|home| source_files(&home));
    let files = files.map(|file| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        (path, fs::read_to_string(&file).unwrap())
    });
    let doubles = doubles(files);
    let tell = |(name, files): (&String, &BTreeSet<String>)| format!("{name}: {files:?}");
    let wrong = doubles.iter().map(tell);
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "types of one name; say what each one is:\n{}", wrong.join("\n"));
}

/// Types that more than one file defines, and the files.
fn doubles(files: impl Iterator<Item = (String, String)>) -> BTreeMap<String, BTreeSet<String>> {
    static TYPE: LazyLock<Regex> = LazyLock::new(|| {
        // What is indented and called a type is part of a trait.
        Regex::new(
            r"(?m)^[^\n]*?\b(?:struct|enum|union|trait)\s+(\w+)|^(?:pub(?:\([^)]*\))?\s+)?type\s+(\w+)",
        )
        .unwrap()
    });
    let mut types = BTreeMap::<String, BTreeSet<String>>::new();
    // A stand-in has the names of what it stands in for, in another build.
    let is_test = |file: &str| file.ends_with("/tests.rs") || file.contains("/tests/");
    for (file, source) in files.filter(|(file, _)| !is_test(file) && !file.ends_with("_off.rs")) {
        let text = without_tests(&without_comments_and_strings(&source));
        for found in TYPE.captures_iter(&text) {
            let name = found.get(1).or(found.get(2)).unwrap().as_str();
            types.entry(name.to_owned()).or_default().insert(file.clone());
        }
    }
    types.retain(|_, files| files.len() > 1);
    types
}

#[test]
fn a_type_is_found_however_it_is_written() {
    let names = |a: &str, b: &str| {
        let files = [("src/a.rs", a), ("src/b.rs", b)].map(|(file, text)| (file.to_owned(), text.to_owned()));
        doubles(files.into_iter()).into_keys().collect::<Vec<_>>()
    };
    for b in [
        "enum X {}",
        "pub(super) struct X<T>(T);",
        "fn f() {\n    struct X;\n}",
        "#[derive(Debug)] union X {}",
    ] {
        assert_eq!(names("pub struct X;", b), ["X"], "{b}");
        assert_eq!(names("pub type X = u8;", b), ["X"], "{b}");
    }
    for b in [
        "pub struct Y;",
        "impl T for Y {\n    type X = u8;\n}",
        "// struct X\nfn x(of: X) {}",
        "const T: &str = \"struct X\";",
        "#[cfg(test)]\nmod tests {\n    struct X;\n}",
    ] {
        assert_eq!(names("pub struct X;", b), [""; 0], "{b}");
    }
}
