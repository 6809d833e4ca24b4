//! Readers of files that strangers made: whatever the bytes, they return, and hold no more memory
//! than the bytes say there is.

use std::path::Path;
use std::sync::Arc;

use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::fs::{read_pytorch, read_pytorch_tensors};
use wuerstchen::manifest::Unpacking;
use wuerstchen::{
    Checkpoint, LoadError, Manifest, ModelFiles, Part, ReadBytes, StoredDtype, Tokenizer,
    TokenizerFiles,
};

/// Reads everything that a checkpoint offers.
fn read_all(weights: &Checkpoint) {
    for name in weights.names() {
        let _ = weights.values(name);
        let _ = weights.planes(name);
    }
}

/// Reads a safetensors file, as weights and as a whole model.
pub fn safetensors(bytes: &[u8]) {
    let source: Arc<dyn ReadBytes> = Arc::new(bytes.to_vec());
    if let Ok(weights) = Checkpoint::parse("file", source.clone()) {
        read_all(&weights);
        read_all(&weights.from_original());
    }
    let _ = ModelFiles::from_bundle("file", source);
}

/// Reads a `.pt` file, which is written to `scratch` first.
///
/// # Panics
///
/// Panics if `scratch` cannot be written.
pub fn pytorch(bytes: &[u8], scratch: &Path) {
    std::fs::write(scratch, bytes).expect("the scratch file is ours");
    for weights in read_pytorch(scratch).into_iter().flatten() {
        read_all(&weights.from_original());
    }
    if let Ok(tensors) = read_pytorch_tensors(scratch) {
        read_all(&tensors);
    }
}

/// A model of one quantised matrix and a vector: its manifest and its only shard.
///
/// # Panics
///
/// Panics if a manifest cannot be written.
pub fn bundle() -> (String, Vec<u8>) {
    let matrix: Vec<f32> = (0..8 * 70).map(|i| (i as f32).sin()).collect();
    let tensors = [
        NamedTensor::new("a.weight", &[8, 70], matrix),
        NamedTensor::new("a.bias", &[3], vec![1.0; 3]),
    ];
    let mut files = ModelFiles::default();
    files.weights.insert(Part::PRIOR, Checkpoint::from_tensors("prior", tensors));
    let mut shard = Vec::new();
    let write = |_: &str, bytes: &[u8]| {
        shard = bytes.to_vec();
        Ok::<_, LoadError>(())
    };
    let manifest = Manifest::write(&files, StoredDtype::I4, write).expect("the tensors are sound");
    (serde_json::to_string(&manifest).expect("manifests are JSON"), shard)
}

/// Reads the manifest of a web bundle, and a shard by what it says.
pub fn manifest(bytes: &[u8], shard: &[u8]) {
    let Ok(manifest) =
        str::from_utf8(bytes).map_err(drop).and_then(|text| Manifest::parse(text).map_err(drop))
    else {
        return;
    };
    let _ = manifest.verify(0, shard);
    if let Ok(parts) = Unpacking::default().add(&manifest, 0, shard) {
        parts.values().for_each(read_all);
    }
    let source: Arc<dyn ReadBytes> = Arc::new(shard.to_vec());
    if let Ok(files) = manifest.open::<LoadError>(|_| Ok(source.clone())) {
        files.weights.values().for_each(read_all);
    }
}

macro_rules! word_file {
    ($file:literal) => {
        include_str!(concat!("../../golden/small/wuerstchen-prior/tokenizer/", $file)).to_owned()
    };
}

/// The files of a tokenizer whose words and merges are in two files.
pub fn word_files() -> TokenizerFiles {
    TokenizerFiles {
        vocab: Some(word_file!("vocab.json")),
        merges: Some(word_file!("merges.txt")),
        tokenizer_config: Some(word_file!("tokenizer_config.json")),
        ..Default::default()
    }
}

/// Reads a text as each of the files of a tokenizer, the others being `sound`.
pub fn tokenizer(bytes: &[u8], sound: &TokenizerFiles) {
    let text = || Some(String::from_utf8_lossy(bytes).into_owned());
    let config = || sound.tokenizer_config.clone();
    let whole =
        TokenizerFiles { tokenizer: text(), tokenizer_config: config(), ..Default::default() };
    let vocab = TokenizerFiles { vocab: text(), ..sound.clone() };
    let merges = TokenizerFiles { merges: text(), ..sound.clone() };
    let tokenizer_config = TokenizerFiles { tokenizer_config: text(), ..sound.clone() };
    for files in [whole, vocab, merges, tokenizer_config] {
        if let Ok(tokenizer) = Tokenizer::new(&files, 77) {
            let _ = tokenizer.encode("a red circle, Würstchen \u{1F32D}");
        }
    }
}
