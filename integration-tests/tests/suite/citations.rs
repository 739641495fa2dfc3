//! Citations in sources: every `docs/...md#section` names an existing page and section of
//! this repository, and so does every link between pages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories that hold no source of ours.
const SKIPPED: [&str; 3] = ["target", ".git", "vendor"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files below `directory` with one of the given extensions.
pub(crate) fn files(directory: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the repository is readable") {
        let path = entry.expect("the repository is readable").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !SKIPPED.contains(&name.as_str()) {
            files(&path, extensions, found);
        } else if path.extension().is_some_and(|ext| extensions.iter().any(|e| ext == *e)) {
            found.push(path);
        }
    }
}

/// Joins comment lines, since a citation can span two of them.
fn unwrapped(text: &str) -> String {
    text.lines()
        .map(|line| line.trim_start().trim_start_matches("//").trim_start_matches(['/', '!']))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Citations `docs/PAGE.md`, `docs/PAGE.md#SECTION` and `docs/PAGE.md#SECTION, #SECTION`.
fn citations(text: &str) -> Vec<(String, Option<String>)> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let of_section = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let mut found = Vec::new();
    for (at, _) in text.match_indices("docs/") {
        let rest = &text[at..];
        let Some(end) = rest.find(".md").map(|end| end + ".md".len()) else { continue };
        let page = &rest[..end];
        if !page.chars().all(of_name) {
            continue;
        }
        let mut rest = &rest[end..];
        let mut any = false;
        while let Some(tail) = rest.strip_prefix('#') {
            let section: String = tail.chars().take_while(|c| of_section(*c)).collect();
            rest = &tail[section.len()..];
            rest = rest.strip_prefix(',').map_or(rest, str::trim_start);
            found.push((page.to_owned(), Some(section)));
            any = true;
        }
        if !any {
            found.push((page.to_owned(), None));
        }
    }
    found
}

/// The anchors of a Markdown page's headings, in GitHub's form.
fn anchors(page: &str) -> Vec<String> {
    page.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn every_cited_section_exists() {
    let root = root();
    let mut sources = Vec::new();
    files(&root, &["rs", "proto"], &mut sources);
    let mut pages = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    // This file has examples of citations.
    for source in sources.iter().filter(|source| !source.ends_with("citations.rs")) {
        let text = unwrapped(&fs::read_to_string(source).expect("a source is UTF-8"));
        for (page, section) in citations(&text) {
            count += 1;
            let known = pages.entry(page.clone()).or_insert_with(|| {
                fs::read_to_string(root.join(&page)).ok().map(|page| anchors(&page))
            });
            let holds = match (known, &section) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(anchors), Some(section)) => anchors.contains(section),
            };
            if !holds {
                wrong.push(format!("{}: {page}#{section:?}", source.display()));
            }
        }
    }
    assert!(count > 50, "only {count} citations were found in {} files", sources.len());
    assert!(wrong.is_empty(), "no such page or section:\n{}", wrong.join("\n"));
}

/// Targets of the links `[text](target)` of a Markdown page, without those on other hosts.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)).filter(|link| {
        let is_elsewhere = link.starts_with("http://") || link.starts_with("https://");
        !is_elsewhere
    })
}

#[test]
fn every_link_of_a_page_has_its_target() {
    let mut pages = Vec::new();
    files(&root(), &["md"], &mut pages);
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in &pages {
        let text = fs::read_to_string(page).expect("a page is UTF-8");
        for link in links(&text) {
            count += 1;
            let (path, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.with_file_name(path) };
            let holds = if section.is_empty() {
                target.exists()
            } else {
                fs::read_to_string(&target)
                    .is_ok_and(|text| anchors(&text).contains(&section.to_owned()))
            };
            if !holds {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(count > 50, "only {count} links were found in {} pages", pages.len());
    assert!(wrong.is_empty(), "no such page or section:\n{}", wrong.join("\n"));
}

#[test]
fn no_source_cites_a_file_outside_the_repository() {
    let mut sources = Vec::new();
    files(&root(), &["rs", "proto", "md", "toml", "sh"], &mut sources);
    let outside = concat!("contracts", "/");
    let wrong: Vec<_> = sources
        .iter()
        .filter(|source| fs::read_to_string(source).is_ok_and(|text| text.contains(outside)))
        .collect();
    assert!(wrong.is_empty(), "these cite {outside}: {wrong:?}");
}

#[test]
fn citations_are_read_across_lines_and_lists() {
    let text =
        unwrapped("//! As there (docs/a.md#one,\n//! #two), and docs/b-c.md. See docs/ too.");
    let section = |name: &str| Some(name.to_owned());
    assert_eq!(
        citations(&text),
        [
            ("docs/a.md".to_owned(), section("one")),
            ("docs/a.md".to_owned(), section("two")),
            ("docs/b-c.md".to_owned(), None),
        ]
    );
}
