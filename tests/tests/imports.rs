//! Files of a library crate import each other in one direction only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What each file of a crate imports from the crate. A file counts as one with those in the folder of its name.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn files_import_each_other_in_one_direction() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let crates: Vec<_> = fs::read_dir(crates).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(crates.len() > 3, "{crates:?}");
    // In `wuerstchen-kernels` an operation and its kernels import each other.
    for folder in crates.iter().filter(|folder| !folder.ends_with("wuerstchen-kernels")) {
        let name = folder.display();
        let mut imports = Imports::new();
        add_folder(&folder.join("src"), None, &mut imports);
        let count: usize = imports.values().map(BTreeSet::len).sum();
        assert!(count > 0, "{name} has no imports");
        assert_eq!(circle(&imports), None, "files of {name} import each other in a circle");
    }
}

#[test]
fn a_circle_is_found() {
    let files = [("a", "use crate::b;\nuse crate::{d, c::X};"), ("b", "crate::c::f()"), ("c", "")];
    let mut imports: Imports =
        files.map(|(name, text)| (name.to_owned(), imported(text).collect())).into();
    assert_eq!(circle(&imports), None);
    imports.insert("c".to_owned(), imported("// crate::b\nlet x = crate::a::Y;").collect());
    assert_eq!(circle(&imports), Some(["a", "b", "c", "a"].map(str::to_owned).to_vec()));
    let several: Vec<_> =
        imported("use crate::{\n    a::{X, y},\n    b,\n};\nuse crate::c;").collect();
    assert_eq!(several, ["a", "b", "c"]);
}

/// Adds the files of a folder, all of them under the name `unit` if there is one.
fn add_folder(folder: &Path, unit: Option<&str>, imports: &mut Imports) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let unit = unit.unwrap_or(stem);
        if path.is_dir() {
            add_folder(&path, Some(unit), imports);
        } else if unit != "lib" && unit != "main" {
            let text = fs::read_to_string(&path).unwrap();
            let found = imported(&text).filter(|name| name != unit);
            imports.entry(unit.to_owned()).or_default().extend(found);
        }
    }
}

/// The names after `crate::` outside of comments and tests, also several in braces.
fn imported(text: &str) -> impl Iterator<Item = String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let after = code.split("crate::").skip(1);
    let names = after.flat_map(|after| match after.strip_prefix('{') {
        Some(several) => in_braces(several),
        None => vec![after],
    });
    let name =
        |text: &str| text.chars().take_while(|&c| c == '_' || c.is_ascii_lowercase()).collect();
    let found = names.map(name).filter(|name: &String| !name.is_empty());
    found.collect::<Vec<_>>().into_iter()
}

/// What commas divide, up to the brace that closes; what inner braces hold is not divided.
fn in_braces(several: &str) -> Vec<&str> {
    let (mut depth, mut parts, mut start) = (0, Vec::new(), 0);
    for (at, c) in several.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                parts.push(several[start..at].trim());
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    parts
}

/// A way from a file through its imports back to it.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    imports.keys().find_map(|file| circle_from(file, imports, &mut Vec::new(), &mut done))
}

fn circle_from(
    file: &str,
    imports: &Imports,
    way: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(start) = way.iter().position(|earlier| earlier == file) {
        return Some([&way[start..], &[file.to_owned()]].concat());
    }
    if !done.insert(file.to_owned()) {
        return None;
    }
    way.push(file.to_owned());
    let names = imports.get(file).into_iter().flatten();
    let found = names.into_iter().find_map(|name| circle_from(name, imports, way, done));
    way.pop();
    found
}
