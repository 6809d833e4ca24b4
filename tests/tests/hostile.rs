//! Reading damaged or malicious files ends in an error, without a panic, and takes little memory.

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a crate of its own")]
mod readers;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;
use proptest::prelude::*;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that reading a small file may take: burn's reader of pickles stops at copies of 64 MiB.
const MOST_MEMORY: usize = 128 << 20;

/// Reads something. A length that a file only claims must not be reserved.
fn reading(read: impl FnOnce()) {
    // There is one allocator, so that readers take turns.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    read();
    let taken = MEMORY.peak_usage().saturating_sub(before);
    assert!(taken < MOST_MEMORY, "reading took {taken} bytes");
}

fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden(path: &str) -> Vec<u8> {
    read(&tests().join("golden/small").join(path))
}

/// The inputs that a fuzzer keeps.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = tests().join("fuzz/corpus").join(target);
    let files = fs::read_dir(folder).unwrap().map(|entry| read(&entry.unwrap().path()));
    let files: Vec<_> = files.collect();
    assert!(files.len() > 10, "the corpus {target} is not there");
    files
}

/// A file for one test.
fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("wuerstchen-{name}-{}.pt", std::process::id()))
}

/// Damage that may happen to a file: bytes that are changed, left out or doubled, or an end that is cut off.
#[derive(Clone, Debug)]
enum Damage {
    Set(usize, u8),
    Remove(usize, usize),
    Repeat(usize, usize),
    Truncate(usize),
}

/// Damage in the first `head` bytes, where headers are, or anywhere.
fn damage(length: usize, head: usize) -> impl Strategy<Value = Vec<Damage>> {
    let place = prop_oneof![3 => 0..head.min(length), 1 => 0..length];
    // Digits and brackets make other headers, not only unreadable ones.
    let byte = prop_oneof![any::<u8>(), (b'0'..=b'9'), Just(b'-'), Just(b'['), Just(b'"')];
    let one = prop_oneof![
        6 => (place.clone(), byte).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => (place.clone(), 1..64usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => (place.clone(), 1..64usize).prop_map(|(at, count)| Damage::Repeat(at, count)),
        1 => place.prop_map(Damage::Truncate),
    ];
    prop::collection::vec(one, 1..6)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for damage in damage {
        let length = bytes.len();
        match *damage {
            Damage::Set(at, byte) if at < length => bytes[at] = byte,
            Damage::Remove(at, count) if at < length => {
                bytes.drain(at..length.min(at + count));
            }
            Damage::Repeat(at, count) if at < length => {
                let piece = bytes[at..length.min(at + count)].to_vec();
                bytes.splice(at..at, piece);
            }
            Damage::Truncate(at) if at < length => bytes.truncate(at),
            _ => {}
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn safetensors(damage in damage(56_000, 6_000)) {
        let file = golden("wuerstchen/vqgan/diffusion_pytorch_model.safetensors");
        reading(|| readers::safetensors(&damaged(file, &damage)));
    }

    #[test]
    fn safetensors_of_noise(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        reading(|| readers::safetensors(&bytes));
    }

    #[test]
    fn manifests(damage in damage(1_500, 1_500)) {
        let sound = readers::bundle();
        for text in [&sound.manifest, &sound.contents] {
            reading(|| readers::manifest(&damaged(text.clone().into_bytes(), &damage), &sound));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tokenizers(damage in damage(19_000, 19_000), file in 0..4usize) {
        let file = ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"][file];
        let bytes = damaged(golden(&format!("wuerstchen-prior/tokenizer/{file}")), &damage);
        reading(|| readers::tokenizer(&bytes, &readers::word_files()));
    }

    #[test]
    fn loras(damage in damage(12_000, 3_000)) {
        let sound = readers::lora_of_model();
        reading(|| readers::lora(&damaged(sound.file.clone(), &damage), &sound));
    }

    #[test]
    fn texts_beside_loras(damage in damage(680, 680)) {
        let sound = readers::lora_of_model();
        let text = sound.adapter_config.clone().into_bytes();
        reading(|| readers::lora(&damaged(text, &damage), &sound));
    }

    #[test]
    fn pytorch_files(damage in damage(1_800, 1_800), file in 0..2usize) {
        let file = ["zip.pt", "legacy.pt"][file];
        let bytes = read(&tests().join("fuzz/corpus/pytorch").join(file));
        reading(|| readers::pytorch(&damaged(bytes, &damage), &scratch("damaged")));
    }
}

/// Every input that fuzzers kept (`tests/fuzz/README.md`), including those that have broken a reader.
#[test]
fn what_fuzzers_found_is_read() {
    let bundle = readers::bundle();
    corpus("manifest").iter().for_each(|bytes| reading(|| readers::manifest(bytes, &bundle)));
    corpus("safetensors").iter().for_each(|bytes| reading(|| readers::safetensors(bytes)));
    corpus("pytorch")
        .iter()
        .for_each(|bytes| reading(|| readers::pytorch(bytes, &scratch("corpus"))));
    let sound = readers::lora_of_model();
    corpus("lora").iter().for_each(|bytes| reading(|| readers::lora(bytes, &sound)));
    let sound = readers::word_files();
    corpus("tokenizer").iter().for_each(|bytes| reading(|| readers::tokenizer(bytes, &sound)));
}
