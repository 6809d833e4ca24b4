//! Files that are damaged, or made to do harm, end in an error: no panic, no memory beyond their size.

use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use wuerstchen::manifest::Unpacking;
use wuerstchen::{
    Checkpoint, LoadError, Manifest, ModelFiles, ReadBytes, StoredDtype, Tokenizer, TokenizerFiles,
};

fn golden(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/small").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What may happen to a file on its way: bytes changed, left out or doubled, the end cut off.
#[derive(Clone, Debug)]
enum Damage {
    Set(usize, u8),
    Remove(usize, usize),
    Repeat(usize, usize),
    Truncate(usize),
}

/// Places in the first `head` bytes, where headers are, or anywhere.
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

/// Reads everything that a checkpoint offers.
fn read_all(weights: &Checkpoint) {
    for name in weights.names() {
        let _ = weights.values(name);
        let _ = weights.planes(name);
    }
}

fn read_safetensors(bytes: Vec<u8>) {
    let source: Arc<dyn ReadBytes> = Arc::new(bytes);
    if let Ok(weights) = Checkpoint::parse("file", source.clone()) {
        read_all(&weights);
        read_all(&weights.from_original());
    }
    let _ = ModelFiles::from_bundle("file", source);
}

/// A model of one quantised matrix and a vector: its manifest and its only shard.
fn bundle() -> (String, Vec<u8>) {
    let part = "wuerstchen-prior/prior";
    let matrix: Vec<f32> = (0..8 * 70).map(|i| (i as f32).sin()).collect();
    let tensors = [
        ("a.weight".to_owned(), vec![8, 70], matrix),
        ("a.bias".to_owned(), vec![3], vec![1.0; 3]),
    ];
    let mut files = ModelFiles::default();
    files.weights.insert(part.to_owned(), Checkpoint::from_tensors(part, tensors));
    let mut shard = Vec::new();
    let write = |_: &str, bytes: &[u8]| {
        shard = bytes.to_vec();
        Ok::<_, LoadError>(())
    };
    let manifest = Manifest::write(&files, StoredDtype::I4, write).unwrap();
    (serde_json::to_string(&manifest).unwrap(), shard)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn safetensors(damage in damage(56_000, 6_000)) {
        read_safetensors(damaged(golden("wuerstchen/vqgan/diffusion_pytorch_model.safetensors"), &damage));
    }

    #[test]
    fn safetensors_of_noise(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_safetensors(bytes);
    }

    #[test]
    fn manifests(damage in damage(1_500, 1_500)) {
        let (manifest, shard) = bundle();
        let Ok(text) = String::from_utf8(damaged(manifest.into_bytes(), &damage)) else {
            return Ok(());
        };
        let Ok(manifest) = Manifest::parse(&text) else { return Ok(()) };
        let _ = manifest.verify(0, &shard);
        if let Ok(parts) = Unpacking::default().add(&manifest, 0, &shard) {
            parts.values().for_each(read_all);
        }
        let source: Arc<dyn ReadBytes> = Arc::new(shard);
        if let Ok(files) = manifest.open::<LoadError>(|_| Ok(source.clone())) {
            files.weights.values().for_each(read_all);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tokenizers(damage in damage(19_000, 19_000)) {
        let text = |file: &str, damage: &[Damage]| {
            let bytes = golden(&format!("wuerstchen-prior/tokenizer/{file}"));
            String::from_utf8_lossy(&damaged(bytes, damage)).into_owned()
        };
        let whole = TokenizerFiles {
            tokenizer: Some(text("tokenizer.json", &damage)),
            tokenizer_config: Some(text("tokenizer_config.json", &[])),
            ..Default::default()
        };
        let pair = TokenizerFiles {
            vocab: Some(text("vocab.json", &damage)),
            merges: Some(text("merges.txt", &damage)),
            tokenizer_config: Some(text("tokenizer_config.json", &damage)),
            ..Default::default()
        };
        for files in [whole, pair] {
            if let Ok(tokenizer) = Tokenizer::new(&files, 77) {
                let _ = tokenizer.encode("a red circle, Würstchen \u{1F32D}");
            }
        }
    }
}
