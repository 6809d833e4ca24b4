//! Splits a WebAssembly file in two, so that visitors first fetch only what the first picture needs:
//!
//! - `wuerstchen-split profile WASM OUT` writes a module that notes which functions are called.
//! - `wuerstchen-split split WASM CALLS FIRST REST` splits by what was noted: see [`split`].

mod split;

use std::fs;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["profile", wasm, out] => write(out, &split::profiled(&read(wasm)?)?),
        ["split", wasm, calls, first, rest] => {
            let parts = split::split(&read(wasm)?, &read(calls)?)?;
            write(first, &parts.first)?;
            write(rest, &parts.rest)
        }
        _ => bail!("profile WASM OUT, or split WASM CALLS FIRST REST"),
    }
}

fn read(path: &str) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {path}"))
}

fn write(path: &str, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {path}"))
}
