//! The pages as a site: `make site` shows every page, and a link leads somewhere, there too.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use regex::Regex;

use super::reading::{Page, below, pages};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_summary_names_every_page_once_by_its_title() {
    let summary = fs::read_to_string(Path::new(ROOT).join("docs/SUMMARY.md")).unwrap();
    let mut missing = wanted_entries();
    let mut stray = Vec::new();
    for entry in summary.lines().map(str::trim).filter(|line| line.starts_with("- ")) {
        match missing.iter().position(|wanted| wanted == entry) {
            Some(at) => drop(missing.remove(at)),
            None => stray.push(entry),
        }
    }
    assert!(missing.is_empty() && stray.is_empty(), "missing: {missing:#?}\nstray or twice: {stray:#?}");
}

/// A line of the summary for each page, as the page calls itself.
fn wanted_entries() -> Vec<String> {
    let pages = below(Path::new(ROOT), Path::new("docs"));
    let pages = pages.iter().filter(|path| !path.ends_with("SUMMARY.md"));
    pages
        .map(|page| format!("- [{}]({})", title(page), page.strip_prefix("docs").unwrap().display()))
        .collect()
}

#[test]
fn every_link_of_a_page_leads_to_a_page_and_a_heading_that_exist() {
    let wrong: Vec<_> = pages(Path::new(ROOT)).iter().flat_map(broken).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    for (link, is_right) in [
        ("row-locked.md", true),
        ("../OPERATING.md#sizing", true),
        ("https://example.org/x", true),
        ("row-lock.md", false),
        ("../OPERATING.md#size", false),
        // There for who reads the repository, not for who reads the site.
        ("../../README.md", false),
    ] {
        let page = Page { path: "docs/runbooks/a.md".into(), text: format!("see [there]({link}).") };
        assert_eq!(broken(&page).is_empty(), is_right, "{link}");
    }
}

/// The links of a page that lead nowhere.
fn broken(page: &Page) -> Vec<String> {
    let links = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let prose: String = page.text.split("```").step_by(2).collect();
    let targets = links.captures_iter(&prose).map(|link| link[1].to_owned());
    targets
        .filter(|target| !target.contains("://") && !leads(&page.path, target))
        .map(|target| format!("{}: {target}", page.path.display()))
        .collect()
}

fn leads(page: &Path, target: &str) -> bool {
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { page.to_owned() } else { plain(&page.parent().unwrap().join(file)) };
    let is_on_the_site = !page.starts_with("docs") || path.starts_with("docs");
    let whole = Path::new(ROOT).join(&path);
    let has_heading = || fs::read_to_string(&whole).is_ok_and(|text| headings(&text).contains(heading));
    is_on_the_site && whole.exists() && (heading.is_empty() || has_heading())
}

/// Without `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        if part == Component::ParentDir {
            plain.pop();
        } else {
            plain.push(part);
        }
        plain
    })
}

fn title(page: &Path) -> String {
    let text = fs::read_to_string(Path::new(ROOT).join(page)).unwrap();
    text.lines().next().unwrap().trim_start_matches("# ").to_owned()
}

/// What links call the headings of a page.
fn headings(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix('#'));
    let words = lines.map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"));
    words.map(|line| line.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()).collect()
}
