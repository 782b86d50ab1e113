//! The modules of `src/` form layers. Read from the source text: on every level of the module tree, the modules beside each other (each with all that
//! lies in it, and the parent's own file) use one another in one direction only.
//!
//! A name is followed through re-exports to the file that defines it, so a parent's re-export of its child is no use, nor is a child's use of a sibling
//! through the parent. What stands under `#[cfg(test)]` does not count.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

#[test]
fn no_modules_use_one_another_in_a_circle() {
    let tree = Tree::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    let circles: Vec<String> = tree.circles().iter().map(|circle| tree.explain(circle)).collect();
    assert!(circles.is_empty(), "modules use one another in a circle:\n{}", circles.join("\n"));
}

#[test]
fn a_circle_through_a_re_export_is_found_and_a_re_export_alone_is_none() {
    let tree = |files: &[(&str, &str)]| {
        Tree::of(files.iter().map(|(path, text)| (parent_path(path), (*text).to_owned())).collect())
    };
    let names = |tree: &Tree| {
        tree.circles()
            .into_iter()
            .map(|(_, circle)| circle.into_iter().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };

    let through_parent = tree(&[
        ("", "mod a;\nmod b;"),
        ("a", "mod inner;\nmod other;\npub use inner::{Deep as Renamed};\npub use other::Other;"),
        ("a::inner", "use super::Other;\npub struct Deep;"),
        ("a::other", "pub struct Other;"),
        ("b", "use crate::a::Renamed;\n#[cfg(test)]\nmod tests {\n use crate::c::X;\n}"),
    ]);
    assert_eq!(names(&through_parent), Vec::<String>::new());

    let across = tree(&[
        ("", "mod a;\nmod b;"),
        ("a", "mod inner;\nmod other;\npub use inner::Deep;"),
        ("a::inner", "pub struct Deep;"),
        ("a::other", "fn f() { crate::b::g() } // crate::z::Z"),
        ("b", "use crate::{a::{self, Deep}};\nfn g() {}"),
    ]);
    assert_eq!(names(&across), ["a b"]);

    let with_parent = tree(&[
        ("", "mod a;"),
        ("a", "mod inner;\nuse inner::f;\nstruct A;"),
        ("a::inner", "use super::A;\nfn f() {}"),
    ]);
    assert_eq!(names(&with_parent), ["(its own file) inner"]);
}

type ModulePath = Vec<String>;
/// The parent, and the names of its children that use one another.
type Circle = (ModulePath, BTreeSet<String>);

const OWN_FILE: &str = "(its own file)";

fn parent_path(text: &str) -> ModulePath {
    text.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// One file of `src/`, without its comments, strings and tests.
#[derive(Default)]
struct Module {
    /// What `use` brings in under which name: re-exports, and what children may reach through `super`.
    names: BTreeMap<String, ModulePath>,
    globs: Vec<ModulePath>,
    /// Paths that the file uses; without re-exports.
    used: Vec<ModulePath>,
    /// Paths that the file re-exports.
    shown: Vec<ModulePath>,
}

struct Tree {
    modules: BTreeMap<ModulePath, Module>,
    uses: BTreeSet<(ModulePath, ModulePath)>,
}

impl Tree {
    fn read(source: &Path) -> Self {
        let mut files = BTreeMap::new();
        read_folder(source, &Vec::new(), &mut files);
        Self::of(files)
    }

    fn of(files: BTreeMap<ModulePath, String>) -> Self {
        let plain: BTreeMap<ModulePath, String> =
            files.into_iter().map(|(path, text)| (path, without_comments_and_strings(&text))).collect();
        let plain: BTreeMap<ModulePath, String> =
            plain.into_iter().map(|(path, text)| (path, without_tests(&text))).collect();
        let is_declared = |path: &ModulePath| {
            (1..=path.len()).all(|length| {
                plain
                    .get(&path[..length - 1])
                    .is_some_and(|parent| parent.contains(&format!("mod {};", path[length - 1])))
            })
        };
        let modules = plain
            .iter()
            .filter(|(path, _)| is_declared(path))
            .map(|(path, text)| (path.clone(), Module::parse(text)))
            .collect();
        let mut tree = Self { modules, uses: BTreeSet::new() };
        let mut uses = BTreeSet::new();
        for (path, module) in &tree.modules {
            for used in &module.used {
                uses.extend(tree.defining(path, used, 0).map(|target| (path.clone(), target)));
            }
            for shown in &module.shown {
                uses.extend(
                    tree.defining(path, shown, 0)
                        .filter(|target| !target.starts_with(path))
                        .map(|target| (path.clone(), target)),
                );
            }
        }
        uses.retain(|(from, to)| from != to);
        tree.uses = uses;
        tree
    }

    /// The module whose file defines what `path` names, seen from `module`; none for a path into another crate.
    fn defining(&self, module: &ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
        assert!(depth < 20, "re-exports lead in a circle at {module:?} {path:?}");
        let mut at = module.clone();
        let mut rest = path;
        let mut anchored = false;
        while let Some(first) = rest.first() {
            match first.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()),
                _ => break,
            }
            anchored = true;
            rest = &rest[1..];
        }
        while let Some(first) = rest.first() {
            let child = joined(&at, std::slice::from_ref(first));
            if self.modules.contains_key(&child) {
                at = child;
            } else if let Some(target) =
                self.modules[&at].names.get(first).filter(|target| target.first() != Some(first))
            {
                return self.defining(&at, &joined(target, &rest[1..]), depth + 1);
            } else {
                let through_glob =
                    self.modules[&at].globs.iter().filter(|glob| glob.first() != Some(first)).find_map(
                        |glob| {
                            let target = self.defining(&at, &joined(glob, rest), depth + 1)?;
                            (self.defining(&at, glob, depth + 1)? != target).then_some(target)
                        },
                    );
                return through_glob.or((anchored || at != *module).then_some(at));
            }
            anchored = true;
            rest = &rest[1..];
        }
        anchored.then_some(at)
    }

    fn circles(&self) -> BTreeSet<Circle> {
        let parents: BTreeSet<ModulePath> = self
            .modules
            .keys()
            .filter(|path| !path.is_empty())
            .map(|path| path[..path.len() - 1].to_vec())
            .collect();
        parents.into_iter().flat_map(|parent| self.circles_in(&parent)).collect()
    }

    /// The circles between the children of a module.
    fn circles_in(&self, parent: &ModulePath) -> Vec<Circle> {
        let mut next: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in &self.uses {
            if let (Some(from), Some(to)) = (child_of(parent, from), child_of(parent, to))
                && from != to
            {
                next.entry(from).or_default().insert(to);
            }
        }
        let reached: BTreeMap<&String, BTreeSet<&String>> =
            next.keys().map(|from| (from, reachable(&next, from))).collect();
        let circle_of = |name: &String| -> BTreeSet<String> {
            reached[name]
                .iter()
                .filter(|other| reached.get(*other).is_some_and(|back| back.contains(name)))
                .map(|other| (*other).clone())
                .collect()
        };
        let circles: BTreeSet<BTreeSet<String>> =
            next.keys().map(circle_of).filter(|circle| !circle.is_empty()).collect();
        circles.into_iter().map(|circle| (parent.clone(), circle)).collect()
    }

    /// The uses that make a circle, file by file.
    fn explain(&self, (parent, circle): &Circle) -> String {
        let mut text = format!(
            "in `{}`: {}\n",
            parent.join("::"),
            circle.iter().cloned().collect::<Vec<_>>().join(", ")
        );
        for (from, to) in &self.uses {
            if let (Some(one), Some(other)) = (child_of(parent, from), child_of(parent, to))
                && one != other
                && circle.contains(&one)
                && circle.contains(&other)
            {
                writeln!(text, "    {} uses {}", from.join("::"), to.join("::")).unwrap();
            }
        }
        text
    }
}

fn reachable<'a>(next: &'a BTreeMap<String, BTreeSet<String>>, from: &String) -> BTreeSet<&'a String> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&String> = next.get(from).into_iter().flatten().collect();
    while let Some(name) = open.pop() {
        if seen.insert(name) {
            open.extend(next.get(name).into_iter().flatten());
        }
    }
    seen
}

fn child_of(parent: &ModulePath, module: &ModulePath) -> Option<String> {
    module.starts_with(parent).then(|| module.get(parent.len()).map_or(OWN_FILE, String::as_str).to_owned())
}

fn joined(path: &[String], rest: &[String]) -> ModulePath {
    path.iter().chain(rest).cloned().collect()
}

fn read_folder(folder: &Path, module: &ModulePath, files: &mut BTreeMap<ModulePath, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            read_folder(&path, &joined(module, &[name]), files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "main" {
            let path_of_file =
                if name == "mod" || name == "lib" { module.clone() } else { joined(module, &[name]) };
            files.insert(path_of_file, fs::read_to_string(&path).unwrap());
        }
    }
}

fn without_comments_and_strings(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            3 + raw.find("\"#").unwrap() + 2
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\''") {
            rest[1..].find('\'').unwrap().max(2) + 2
        } else if first == '"' {
            let mut end = 1;
            while !rest[end..].starts_with('"') {
                end += if rest[end..].starts_with('\\') {
                    1 + rest[end + 1..].chars().next().unwrap().len_utf8()
                } else {
                    rest[end..].chars().next().unwrap().len_utf8()
                };
            }
            end + 1
        } else {
            plain.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        plain.push(' ');
        rest = &rest[skipped..];
    }
    plain
}

/// The text without the items under `#[cfg(test)]`.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept += &rest[..at];
        let mut depth = 0;
        let end = rest[at..].char_indices().find(|(_, character)| {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(character, '}' | ';')
        });
        rest = end.map_or("", |(end, _)| &rest[at + end + 1..]);
    }
    kept + rest
}

impl Module {
    fn parse(text: &str) -> Self {
        let mut module = Self::default();
        let mut rest = text;
        let mut code = String::new();
        while let Some((before, declaration, after)) = next_use(rest) {
            code += before.text;
            for (name, path) in branches(declaration) {
                if before.public { &mut module.shown } else { &mut module.used }.push(path.clone());
                if name == "*" { module.globs.push(path) } else { drop(module.names.insert(name, path)) }
            }
            rest = after;
        }
        code += rest;
        module.used.extend(inline_paths(&code));
        module
    }
}

struct Before<'a> {
    text: &'a str,
    public: bool,
}

/// The next `use` declaration: what stands before it, its tree of names, what follows.
fn next_use(text: &str) -> Option<(Before<'_>, &str, &str)> {
    let at = text.match_indices("use ").map(|(at, _)| at).find(|at| {
        let line = text[text[..*at].rfind('\n').map_or(0, |end| end + 1)..*at].trim();
        line.is_empty() || line == "pub" || (line.starts_with("pub(") && line.ends_with(')'))
    })?;
    let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let end = at + text[at..].find(';')?;
    Some((
        Before { text: &text[..line], public: text[line..at].contains("pub") },
        &text[at + 4..end],
        &text[end + 1..],
    ))
}

/// Every name that a tree of `use` brings in, with its path.
fn branches(tree: &str) -> Vec<(String, ModulePath)> {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let stem = parent_path(&tree[..open].replace(char::is_whitespace, ""));
        let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
        let mut depth = 0;
        let parts = inner.split(|character| {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0 && character == ','
        });
        return parts
            .filter(|part| !part.trim().is_empty())
            .flat_map(branches)
            .map(|(name, path)| match path.last().map(String::as_str) {
                Some("self") if path.len() == 1 => (
                    if name == "self" { stem.last().cloned().unwrap_or_default() } else { name },
                    stem.clone(),
                ),
                _ => (name, joined(&stem, &path)),
            })
            .collect();
    }
    let (path, name) =
        tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name.trim().to_owned())));
    let mut path = parent_path(&path.replace(char::is_whitespace, ""));
    let last = path.last().cloned().unwrap_or_default();
    if last == "*" {
        path.pop();
    }
    vec![(name.unwrap_or(last), path)]
}

/// The paths from `crate::` and `super::` that stand in code, outside of `use`.
fn inline_paths(code: &str) -> Vec<ModulePath> {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    ["crate::", "super::"]
        .iter()
        .flat_map(|start| code.match_indices(start))
        .filter(|(at, _)| !code[..*at].ends_with(|character: char| is_name(character) || character == ':'))
        .map(|(at, _)| {
            let end = code[at..]
                .find(|character| !is_name(character) && character != ':')
                .map_or(code.len(), |end| at + end);
            parent_path(&code[at..end])
        })
        .collect()
}

/// Routes by which a program could tell carriers apart.
const ROUTES: [&str; 5] = ["in-process", "mp", "mp+fs", "mp+redis", "mp+p2p"];

#[test]
fn nothing_outside_the_carriers_names_a_route() {
    let named = |text: &str| ROUTES.iter().any(|route| text.contains(&format!("\"{route}\"")));
    let mut offenders = Vec::new();
    let mut folders = vec![Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "carrier" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let is_test = name.ends_with("tests")
                    || name == "fixture"
                    || path.to_string_lossy().contains("/tests/");
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                files += 1;
                if !is_test && named(code) {
                    offenders.push(path);
                }
            }
        }
    }
    assert!(files > 150, "{files} files were read");
    assert!(offenders.is_empty(), "routes are named in {offenders:?}");
}
