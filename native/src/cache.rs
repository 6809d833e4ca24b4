//! The folder of this program in the user's cache.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `wuerstchen/NAME` in the user's cache.
pub(crate) fn cache_folder(name: &str) -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let cache = match cache {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("wuerstchen").join(name))
}
