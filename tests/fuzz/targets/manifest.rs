#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wuerstchen_fuzz::Bundle;

static BUNDLE: LazyLock<Bundle> = LazyLock::new(wuerstchen_fuzz::bundle);

fuzz_target!(|bytes: &[u8]| wuerstchen_fuzz::manifest(bytes, &BUNDLE));
