//! Readers of untrusted files: whatever the bytes are, they return, and take little memory.

use std::path::Path;
use std::sync::Arc;

use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::fs::{read_pytorch, read_pytorch_tensors};
use wuerstchen::manifest::{Shard, Unpacking};
use wuerstchen::{
    Checkpoint, LoadError, Lora, LoraFile, Manifest, ModelFiles, Part, ReadBytes, StoredDtype,
    Tokenizer, TokenizerFiles, WebBundle,
};

/// Calls every reader of a checkpoint.
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
    let _ = ModelFiles::from_one_file("file", source);
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

/// A sound browser bundle of one quantised matrix and a vector, in one shard.
pub struct Bundle {
    /// `manifest.json`.
    pub manifest: String,
    /// `contents.json`.
    pub contents: String,
    /// The bytes of the shard.
    pub shard: Vec<u8>,
}

/// A small browser bundle.
///
/// # Panics
///
/// Panics if it cannot be written.
pub fn bundle() -> Bundle {
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
    let bundle = WebBundle::write(&files, StoredDtype::I4, write).expect("the tensors are sound");
    let [(_, contents), (_, manifest)] = bundle.files();
    Bundle { manifest, contents, shard }
}

/// Reads bytes as the manifest of a browser bundle and as its contents, and reads a shard as those describe it.
pub fn manifest(bytes: &[u8], sound: &Bundle) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(manifest) = Manifest::parse(text)
    {
        let _ = manifest
            .with_contents(sound.contents.as_bytes())
            .map(|bundle| read_bundle(&bundle, sound));
    }
    let mut manifest = Manifest::parse(&sound.manifest).expect("the manifest is sound");
    manifest.contents = Shard::of("contents.json", bytes);
    let _ = manifest.with_contents(bytes).map(|bundle| read_bundle(&bundle, sound));
}

fn read_bundle(bundle: &WebBundle, Bundle { shard, .. }: &Bundle) {
    let _ = bundle.verify(0, shard);
    if let Ok(parts) = Unpacking::default().add(bundle, 0, shard) {
        parts.values().for_each(read_all);
    }
    let source: Arc<dyn ReadBytes> = Arc::new(shard.clone());
    if let Ok(files) = bundle.open::<LoadError>(|_| Ok(source.clone())) {
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
    let added_tokens = TokenizerFiles { added_tokens: text(), ..sound.clone() };
    for files in [whole, vocab, merges, tokenizer_config, added_tokens] {
        if let Ok(tokenizer) = Tokenizer::new(&files, 77) {
            let _ = tokenizer.encode("a red circle, Würstchen \u{1F32D}");
        }
    }
}

/// A small Stage C, and a LoRA of it with the text that peft writes beside it.
pub struct LoraOfModel {
    /// The model.
    pub model: ModelFiles,
    /// The safetensors file.
    pub file: Vec<u8>,
    /// `adapter_config.json`.
    pub adapter_config: String,
}

/// A sound LoRA.
///
/// # Panics
///
/// Panics if the model's weights cannot be read.
pub fn lora_of_model() -> LoraOfModel {
    let prior = include_bytes!(
        "../../golden/small/wuerstchen-prior/prior/diffusion_pytorch_model.safetensors"
    );
    let prior =
        Checkpoint::parse("prior", Arc::new(prior.to_vec())).expect("the weights are sound");
    let mut model = ModelFiles::default();
    model.weights.insert(Part::PRIOR, prior);
    LoraOfModel {
        model,
        file: include_bytes!("../../golden/small/lora/style/adapter_model.safetensors").to_vec(),
        adapter_config: include_str!("../../golden/small/lora/style/adapter_config.json")
            .to_owned(),
    }
}

/// Reads bytes as a LoRA and as the config beside one, and applies the LoRA.
pub fn lora(bytes: &[u8], sound: &LoraOfModel) {
    let read = |file: &[u8], adapter_config: Option<String>| {
        let Ok(file) = LoraFile::parse("file", Arc::new(file.to_vec())) else { return };
        let file = file.with_adapter_config(adapter_config);
        let _ = file.summary();
        if let Ok(lora) = Lora::read(&file, &sound.model, 0.5) {
            let _ = (lora.summary(), lora.left_out().len());
            let weights = &sound.model.weights[&Part::PRIOR];
            if let Ok(changed) = weights.changed_by(Part::PRIOR, &Arc::from([lora])) {
                read_all(&changed);
            }
        }
    };
    read(bytes, None);
    read(&sound.file, Some(String::from_utf8_lossy(bytes).into_owned()));
}
