//! Makes what browsers load of the WebAssembly that cargo built:
//!
//! - `wuerstchen-link glue TARGET WASM OUT` writes the WebAssembly and its JavaScript into a folder, for
//!   bundlers or the web, as `wasm-bindgen --target TARGET` does.
//! - `wuerstchen-link profile WASM OUT` writes a module that notes which functions are called.
//! - `wuerstchen-link split WASM CALLS FIRST REST` splits by what was noted, so that visitors first fetch
//!   only what the first picture needs: see [`split`].

mod split;

use std::fs;

use anyhow::{Context, Result, bail};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["glue", "bundler", wasm, out] => {
            Bindgen::new().bundler(true)?.typescript(true).input_path(wasm).generate(out)
        }
        ["glue", "web", wasm, out] => {
            // A page finds the WebAssembly beside its script.
            let mut glue = Bindgen::new();
            glue.web(true)?.typescript(true).omit_default_module_path(false);
            glue.input_path(wasm).generate(out)
        }
        ["profile", wasm, out] => write(out, &split::profiled(&read(wasm)?)?),
        ["split", wasm, calls, first, rest] => {
            let parts = split::split(&read(wasm)?, &read(calls)?)?;
            write(first, &parts.first)?;
            write(rest, &parts.rest)
        }
        _ => bail!("glue bundler|web WASM OUT, profile WASM OUT, or split WASM CALLS FIRST REST"),
    }
}

fn read(path: &str) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {path}"))
}

fn write(path: &str, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {path}"))
}
