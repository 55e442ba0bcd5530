//! The graph of files of a crate: which file uses names of which other.
//!
//! An arrow goes to the file that defines the name, through every re-export. A `pub use` alone is no arrow, nor is
//! `mod`, nor an import of a whole module (the paths through that module are). Comments, strings and test code do not
//! count.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::LazyLock,
};

use regex::Regex;

use crate::source::{without_comments_and_strings, without_tests};

/// A module, from the crate's root: `api/auth/keys.rs` is `[api, auth, keys]`.
type ModulePath = Vec<String>;
/// From each file to the files that it uses, with the names that it uses.
type Arrows = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// One crate's files.
pub struct Crate {
    name: String,
    modules: HashMap<ModulePath, Module>,
}

struct Module {
    file: String,
    /// The text without its imports.
    body: String,
    imports: Vec<Import>,
    /// What the file defines itself, outside of any braces.
    items: HashSet<String>,
}

struct Import {
    /// What it is called here; `*` where all is imported.
    name: String,
    /// As it is written.
    written: Vec<String>,
    /// From the crate's root.
    path: ModulePath,
    is_public: bool,
}

impl Crate {
    /// Reads a crate's files, each by its path below `src/`.
    pub fn read(name: &str, files: &[(String, String)]) -> Crate {
        let mut modules = HashMap::new();
        let has_lib = files.iter().any(|(file, _)| file == "lib.rs");
        for (file, source) in files {
            let path = module_path(file, has_lib);
            if !path.iter().any(|part| part == "tests") {
                modules.insert(path, Module::read(file, source));
            }
        }
        let mut this = Crate { name: name.replace('-', "_"), modules };
        let here: Vec<ModulePath> = this.modules.keys().cloned().collect();
        for here in here {
            let mut imports = std::mem::take(&mut this.modules.get_mut(&here).unwrap().imports);
            imports.retain_mut(|import| {
                let path = this.absolute(&import.written, &here);
                path.is_some_and(|path| {
                    import.path = path;
                    true
                })
            });
            this.modules.get_mut(&here).unwrap().imports = imports;
        }
        this
    }

    /// Who uses whom.
    pub fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (here, module) in &self.modules {
            let to = arrows.entry(module.file.clone()).or_default();
            for (name, path) in self.used_by(here, module) {
                if let Some(there) = self.home_of(&path, &mut HashSet::new()).filter(|there| there != here) {
                    to.entry(self.modules[&there].file.clone()).or_default().insert(name);
                }
            }
        }
        arrows
    }

    /// Every name of this crate's that a file uses, and its path from the root.
    fn used_by(&self, here: &ModulePath, module: &Module) -> Vec<(String, ModulePath)> {
        static PATH: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b\w+(?:\s*::\s*\w+)+").unwrap());
        static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\w+").unwrap());
        let words: HashSet<&str> = WORD.find_iter(&module.body).map(|word| word.as_str()).collect();
        let is_used = |import: &&Import| {
            !self.modules.contains_key(&import.path)
                && (!import.is_public || words.contains(import.name.as_str()))
        };
        let imports = module.imports.iter().filter(is_used);
        let mut used: Vec<_> = imports.map(|import| (import.name.clone(), import.path.clone())).collect();
        for path in PATH.find_iter(&module.body) {
            let parts: Vec<String> = path.as_str().split("::").map(|part| part.trim().to_owned()).collect();
            let imported = module.imports.iter().find(|import| import.name == parts[0]);
            let path = match imported {
                Some(import) => Some([&import.path, &parts[1..]].concat()),
                None => self.absolute(&parts, here),
            };
            used.extend(path.map(|path| (parts.join("::"), path)));
        }
        used
    }

    /// A path from the crate's root; `None` where it is not of this crate.
    fn absolute(&self, written: &[String], here: &ModulePath) -> Option<ModulePath> {
        let first = written.first()?.as_str();
        if first == "crate" || first == self.name {
            // A program beside its library is a crate of its own, without modules.
            return (first == self.name || *here != ["main"]).then(|| written[1..].to_vec());
        }
        let (mut base, mut rest) = (here.clone(), written);
        while let Some(("self" | "super", more)) =
            rest.split_first().map(|(first, more)| (first.as_str(), more))
        {
            if rest[0] == "super" {
                base.pop()?;
            }
            rest = more;
        }
        if rest.len() == written.len() {
            let child = [&here[..], &written[..1]].concat();
            return self.modules.contains_key(&child).then(|| [&here[..], written].concat());
        }
        Some([&base[..], rest].concat())
    }

    /// The module that defines what a path names.
    fn home_of(&self, path: &ModulePath, seen: &mut HashSet<ModulePath>) -> Option<ModulePath> {
        let known = (0..=path.len()).rev().find(|&length| self.modules.contains_key(&path[..length]))?;
        let (here, rest) = path.split_at(known);
        let module = &self.modules[here];
        let Some(name) = rest.first().filter(|name| !module.items.contains(*name)) else {
            return Some(here.to_vec());
        };
        // A facade may be named by what it passes on.
        if seen.insert(path.clone()) {
            if let Some(import) = module.imports.iter().find(|import| import.name == *name) {
                return self.home_of(&[&import.path, &rest[1..]].concat(), seen);
            }
            for all in module.imports.iter().filter(|import| import.name == "*") {
                let from = [&all.path[..all.path.len() - 1], rest].concat();
                let home = self.home_of(&from, seen);
                if home.as_ref().is_some_and(|home| self.modules[home].items.contains(name)) {
                    return home;
                }
            }
        }
        Some(here.to_vec())
    }
}

impl Module {
    fn read(file: &str, source: &str) -> Module {
        static NARROW: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"\bpub\s*\(\s*(?:crate|self|super|in\s[^)]*)\s*\)").unwrap());
        static USE: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"(?:\b(pub)\s+)?\buse\s+([^;]+);").unwrap());
        let text = without_tests(&without_comments_and_strings(source));
        let text = NARROW.replace_all(&text, "pub");
        let mut imports = Vec::new();
        for found in USE.captures_iter(&text) {
            for (written, name) in leaves(&found[2]) {
                imports.push(Import { name, written, path: Vec::new(), is_public: found.get(1).is_some() });
            }
        }
        let body = USE.replace_all(&text, "").into_owned();
        Module { file: file.to_owned(), items: items(&body), body, imports }
    }
}

fn module_path(file: &str, has_lib: bool) -> ModulePath {
    let mut parts: ModulePath = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    let is_root = parts.len() == 1 && (parts[0] == "lib" || parts[0] == "main" && !has_lib);
    if is_root || parts.len() > 1 && parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// Each path of an import, and what it is called: `a::{b, c as d}` is `a::b` called `b`, and `a::c` called `d`.
fn leaves(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((before, group)) = tree.strip_suffix('}').and_then(|tree| tree.split_once('{')) {
        let before: Vec<String> = before.split("::").map(|part| part.trim().to_owned()).collect();
        let before: Vec<String> = before.into_iter().filter(|part| !part.is_empty()).collect();
        let parts = split_at_commas(group).into_iter().flat_map(leaves);
        return parts.map(|(path, name)| named([before.clone(), path].concat(), name)).collect();
    }
    if tree.is_empty() {
        return Vec::new();
    }
    let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name.trim())));
    let path: Vec<String> = path.split("::").map(|part| part.trim().to_owned()).collect();
    let name = name.unwrap_or(path.last().map_or("", String::as_str)).to_owned();
    vec![named(path, name)]
}

/// `a::self` is `a`.
fn named(mut path: Vec<String>, name: String) -> (Vec<String>, String) {
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let name = if name == "self" { path.last().cloned().unwrap_or_default() } else { name };
    (path, name)
}

fn split_at_commas(group: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    parts
}

/// What a file defines outside of any braces.
fn items(body: &str) -> HashSet<String> {
    static ITEM: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\b(?:struct|enum|union|trait|type|fn|const|static|macro_rules!)\s+(?:mut\s+)?(\w+)")
            .unwrap()
    });
    let (mut items, mut depth, mut at) = (HashSet::new(), 0_i32, 0);
    for found in ITEM.captures_iter(body) {
        let start = found.get(0).unwrap().start();
        depth += body[at..start].bytes().map(|b| i32::from(b == b'{') - i32::from(b == b'}')).sum::<i32>();
        at = start;
        if depth == 0 {
            items.insert(found[1].to_owned());
        }
    }
    items
}
