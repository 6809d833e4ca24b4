#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wuerstchen::TokenizerFiles;

static SOUND: LazyLock<TokenizerFiles> = LazyLock::new(wuerstchen_fuzz::word_files);

fuzz_target!(|bytes: &[u8]| wuerstchen_fuzz::tokenizer(bytes, &SOUND));
