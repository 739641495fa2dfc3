//! Import cycles between sibling modules are forbidden: a module can then be read and
//! changed without its users.
//!
//! A module may use its parent and its children. Test modules are ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{citations::files, dependencies::packages};

/// The path of a module below its crate, such as `["store", "server"]`.
type Module = Vec<String>;

/// The siblings that each module uses.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The code of a file without comments, string literals and the tests at its end.
pub(super) fn code(text: &str) -> String {
    let text = text.find("#[cfg(test)]\nmod ").map_or(text, |tests| &text[..tests]);
    let mut code = String::new();
    for line in text.lines() {
        // String literals contain no module paths.
        for (place, part) in line.split('"').enumerate() {
            let part = if place % 2 == 0 { part } else { "" };
            match part.split_once("//") {
                Some((before, _)) => {
                    code.push_str(before);
                    break;
                }
                None => code.push_str(part),
            }
        }
        code.push('\n');
    }
    code
}

/// The paths of a use tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
pub(super) fn expand(tree: &str, prefix: &str, paths: &mut Vec<String>) {
    let Some((before, inner)) = tree.split_once('{') else {
        let tree = tree.split_once(" as ").map_or(tree, |(path, _)| path);
        paths.push(format!("{prefix}{}", tree.trim()));
        return;
    };
    let prefix = format!("{prefix}{}", before.trim());
    let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut start) = (0, 0);
    for (at, character) in inner.char_indices().chain([(inner.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inner[start..at].trim();
                if !part.is_empty() {
                    expand(part, &prefix, paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// All paths that begin with `crate`, `super` or `self`.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let is_boundary = |text: &str| !text.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    for (at, _) in code.match_indices("use ").filter(|(at, _)| is_boundary(&code[..*at])) {
        let tree = &code[at + "use ".len()..];
        expand(&tree[..tree.find(';').unwrap_or(tree.len())], "", &mut found);
    }
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root).filter(|(at, _)| is_boundary(&code[..*at])) {
            let of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            found.push(code[at..].chars().take_while(|c| of_path(*c)).collect());
        }
    }
    found
}

/// The module that a path within the module `of` names.
fn module(path: &str, of: &Module, modules: &BTreeMap<Module, String>) -> Option<Module> {
    let mut segments = path.split("::").map(str::trim).peekable();
    let mut target = match segments.peek() {
        Some(&"crate") => Vec::new(),
        Some(&("self" | "super")) => of.clone(),
        _ => return None,
    };
    for segment in segments {
        match segment {
            "crate" | "self" => {}
            "super" => _ = target.pop(),
            name => target.push(name.to_owned()),
        }
        if !modules.contains_key(&target) {
            target.pop();
            break;
        }
    }
    Some(target)
}

fn modules(sources: &Path) -> BTreeMap<Module, String> {
    let mut found = Vec::new();
    files(sources, &["rs"], &mut found);
    let name = |path: &Path| {
        let relative = path.strip_prefix(sources).expect("it was found below").with_extension("");
        let mut module: Module =
            relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        module.pop_if(|last| last == "mod" || last == "lib" || last == "main");
        module
    };
    let text = |path: &Path| code(&fs::read_to_string(path).expect("sources are readable"));
    let all = found.iter().map(|path| (name(path), text(path)));
    all.filter(|(module, _)| module.last().is_none_or(|last| !last.ends_with("tests"))).collect()
}

/// The import graph of the siblings, by parent.
fn graphs(modules: &BTreeMap<Module, String>) -> BTreeMap<Module, Graph> {
    let mut graphs: BTreeMap<Module, Graph> = BTreeMap::new();
    for (from, code) in modules {
        for to in paths(code).iter().filter_map(|path| module(path, from, modules)) {
            let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(user), Some(used)) = (from.get(shared), to.get(shared)) {
                let graph = graphs.entry(from[..shared].to_vec()).or_default();
                graph.entry(user.clone()).or_default().insert(used.clone());
            }
        }
    }
    graphs
}

/// The modules that `start` uses, directly or indirectly.
fn reach(graph: &Graph, start: &str) -> BTreeSet<String> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![start.to_owned()]);
    while let Some(next) = open.pop() {
        for used in graph.get(&next).into_iter().flatten() {
            if reached.insert(used.clone()) {
                open.push(used.clone());
            }
        }
    }
    reached
}

/// The modules of each graph that are part of a cycle.
fn circles(graphs: &BTreeMap<Module, Graph>) -> Vec<String> {
    let mut circles = Vec::new();
    for (parent, graph) in graphs {
        let within: Vec<&String> =
            graph.keys().filter(|module| reach(graph, module).contains(*module)).collect();
        if !within.is_empty() {
            circles.push(format!("in {:?}: {within:?} use each other", parent.join("::")));
        }
    }
    circles
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    for package in packages() {
        let sources = package.manifest_path.with_file_name("src");
        let circles = circles(&graphs(&modules(sources.as_std_path())));
        assert!(circles.is_empty(), "{sources}: {circles:#?}");
    }
}

#[test]
fn a_circle_is_found() {
    let module = |path: &[&str], text: &str| {
        let path: Module = path.iter().map(|&part| part.to_owned()).collect();
        (path, code(text))
    };
    let modules = BTreeMap::from([
        module(&[], "mod a;\nmod b;\nmod c;"),
        module(&["a"], "use crate::{c, b::{self, Thing}};"),
        module(&["b"], "mod inner;"),
        module(&["b", "inner"], "// crate::a\nfn f() { super::super::c::g(\"crate::a\") }"),
        module(&["c"], "#[cfg(test)]\nmod tests { use crate::a; }"),
    ]);
    assert_eq!(circles(&graphs(&modules)), Vec::<String>::new());
    let back = module(&["c"], "fn g() { crate::a::h() }");
    let modules = modules.into_iter().chain([back]).collect();
    assert_eq!(circles(&graphs(&modules)), ["in \"\": [\"a\", \"b\", \"c\"] use each other"]);
}
