//! Makes wasm-bindgen's glue fit for threads.
//!
//! wasm-bindgen knows threads only with a standard library that is compiled for them, which needs an unstable compiler.
//! This program runs on several threads without it (`web/js/threads.ts`). Two things are missing from its glue: it must
//! work with a memory that threads share, and tell the names that wasm-bindgen has made up.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What does not work with shared memory, and what works with any memory.
const REPLACEMENTS: [(&str, &str); 4] = [
    // A shared buffer is not detached when the memory grows.
    (".byteLength === 0) {", ".buffer !== wasm.memory.buffer) {"),
    // Browsers neither decode from shared memory nor encode into it.
    (
        "return decodeText(getUint8ArrayMemory0().subarray(",
        "return decodeText(getUint8ArrayMemory0().slice(",
    ),
    ("if (!('encodeInto' in cachedTextEncoder)) {", "{"),
    // Nor do they fill it with random numbers.
    (
        "globalThis.crypto.getRandomValues(getArrayU8FromWasm0(arg0, arg1));",
        "getArrayU8FromWasm0(arg0, arg1).set(globalThis.crypto.getRandomValues(new Uint8Array(arg1)));",
    ),
];

/// Changes the glue of a program that uses threads, and leaves any other as it is.
pub(crate) fn enable(glue: &Path) -> Result<()> {
    let code = fs::read_to_string(glue).with_context(|| format!("reading {}", glue.display()))?;
    if let Some(code) = enabled(&code)? {
        fs::write(glue, code).with_context(|| format!("writing {}", glue.display()))?;
    }
    Ok(())
}

/// The changed glue; `None` if the program uses no threads.
fn enabled(glue: &str) -> Result<Option<String>> {
    let Some(run) = word_with(glue, "__wbg_runOnThreads_") else { return Ok(None) };
    let tiles = word_with(glue, "__wbg_tilesOfThread_").context("the glue has no tilesOfThread")?;
    // The import that gets tasks has the function that calls one in its body.
    let (_, body) = glue.split_once(&format!("function {run}(")).context("no import of tasks")?;
    let call = word_with(body, "wasm_bindgen__convert__closures").context("no call of a task")?;
    let mut code = glue.to_owned();
    for (from, to) in REPLACEMENTS {
        ensure!(code.contains(from), "the glue has no `{from}`");
        code = code.replace(from, to);
    }
    let names = format!("{{ run: '{run}', call: '{call}', tiles: '{tiles}' }}");
    Ok(Some(format!("{code}\nexport const threads = {names};\n")))
}

/// The first identifier in `code` that begins with `start`.
fn word_with(code: &str, start: &str) -> Option<String> {
    let (_, rest) = code.split_once(start)?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    Some(format!("{start}{}", &rest[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLUE: &str = "\
function a() { return wasm.wasm_bindgen__convert__closures_____invoke__h1(); }
export function __wbg_runOnThreads_12ab(arg0, arg1, arg2) {
    return wasm_bindgen__convert__closures_____invoke__h2(a, state0.b, arg0);
}
export function __wbg_tilesOfThread_34cd(arg0) {}
if (cached === null || cached.byteLength === 0) {
    return decodeText(getUint8ArrayMemory0().subarray(ptr, ptr + len));
if (!('encodeInto' in cachedTextEncoder)) {
    globalThis.crypto.getRandomValues(getArrayU8FromWasm0(arg0, arg1));
";

    #[test]
    fn the_glue_tells_its_names_and_takes_shared_memory() {
        let code = enabled(GLUE).unwrap().unwrap();
        let names = "export const threads = { run: '__wbg_runOnThreads_12ab', \
             call: 'wasm_bindgen__convert__closures_____invoke__h2', \
             tiles: '__wbg_tilesOfThread_34cd' };\n";
        assert!(code.ends_with(names), "{code}");
        assert!(code.contains("cached.buffer !== wasm.memory.buffer) {"), "{code}");
        assert!(code.contains("getUint8ArrayMemory0().slice(ptr, ptr + len)"), "{code}");
        assert!(!code.contains("'encodeInto' in"), "{code}");
    }

    #[test]
    fn other_glue_stays_and_glue_of_an_unknown_kind_is_refused() {
        assert!(enabled("export function a() {}\n").unwrap().is_none());
        let error = enabled(&GLUE.replace(".byteLength", ".length")).unwrap_err();
        assert!(error.to_string().contains("byteLength"), "{error}");
    }
}
