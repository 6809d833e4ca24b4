#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static BUNDLE: LazyLock<(String, Vec<u8>)> = LazyLock::new(wuerstchen_fuzz::bundle);

fuzz_target!(|bytes: &[u8]| wuerstchen_fuzz::manifest(bytes, &BUNDLE.1));
