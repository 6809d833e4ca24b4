//! Makes what browsers load of the WebAssembly that cargo built:
//!
//! - `wuerstchen-link glue TARGET WASM OUT` writes the WebAssembly and its JavaScript into a folder, for
//!   bundlers or the web, as `wasm-bindgen --target TARGET` does.
//! - `wuerstchen-link profile WASM OUT` writes a module that notes which functions are called.
//! - `wuerstchen-link split WASM CALLS FIRST REST` splits by what was noted, so that visitors first fetch
//!   only what the first picture needs: see [`split`].

mod split;
mod threads;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wasm_bindgen_cli_support::Bindgen;
use wasmparser::{Validator, WasmFeatures};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["glue", "bundler", wasm, out] => {
            Bindgen::new().bundler(true)?.typescript(true).input_path(wasm).generate(out)?;
            let out = Path::new(out);
            threads::enable(&out.join("wuerstchen_web_bg.js"))?;
            check_instructions(&out.join("wuerstchen_web_bg.wasm"))
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

/// Refuses what is not in WebAssembly 2, such as relaxed SIMD: browsers that do not know an instruction do not run the
/// program at all.
fn check_instructions(wasm: &Path) -> Result<()> {
    Validator::new_with_features(WasmFeatures::WASM2)
        .validate_all(&read(wasm)?)
        .context("not every browser runs this program")?;
    Ok(())
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &str, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {path}"))
}
