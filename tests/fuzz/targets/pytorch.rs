#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// Every fuzzer has its own file.
static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("wuerstchen-fuzz-{}.pt", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| wuerstchen_fuzz::pytorch(bytes, &SCRATCH));
