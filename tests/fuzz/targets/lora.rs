#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wuerstchen_fuzz::LoraOfModel;

static SOUND: LazyLock<LoraOfModel> = LazyLock::new(wuerstchen_fuzz::lora_of_model);

fuzz_target!(|bytes: &[u8]| wuerstchen_fuzz::lora(bytes, &SOUND));
