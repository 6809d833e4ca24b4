//! The options of the npm package are those of the command line.

use std::collections::BTreeSet;

use wuerstchen::Request;

/// Options that JavaScript callers pass beside the JSON: pictures, and how results are returned. `prompt` is among
/// them because a JavaScript call has only one, where a request has a list.
const OF_JAVASCRIPT: [&str; 12] = [
    "prompt",
    "image",
    "mask",
    "imageTo",
    "picturePrompts",
    "controlImage",
    "controlMask",
    "preview",
    "intermediates",
    "format",
    "onProgress",
    "signal",
];

/// The names in the table that the package checks the options of a generation with. TypeScript compares that
/// table with the type `GenerateOptions`.
fn names_in_typescript() -> BTreeSet<String> {
    let source = include_str!("../../web/js/options.ts");
    let (_, table) = source.split_once("const GENERATE_KINDS").expect("options.ts has the table");
    let (table, _) = table.split_once("};").expect("the table ends");
    let lines = table.lines().skip(1).filter_map(|line| line.trim().split_once(": "));
    lines.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn typescript_names_every_option_of_the_command_line() {
    let mut request = serde_json::to_value(Request::default()).unwrap();
    let request = request.as_object_mut().unwrap();
    let (_, options) = (request.remove("prompts").unwrap(), request.remove("options").unwrap());
    let options = options.as_object().unwrap();
    let in_rust = request.keys().chain(options.keys()).cloned();
    let expected: BTreeSet<_> = in_rust.chain(OF_JAVASCRIPT.map(str::to_owned)).collect();
    assert_eq!(names_in_typescript(), expected);
}
