#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wuerstchen_fuzz::safetensors(bytes));
