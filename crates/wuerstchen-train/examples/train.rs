//! Trains a model on drawn shapes:
//! `cargo run --release -p wuerstchen-train --features fs --example train CONFIG.toml OUTPUT`.

use std::sync::Arc;

use wuerstchen::Device;
use wuerstchen_train::store::Folder;
use wuerstchen_train::tokenizer::shapes_tokenizer;
use wuerstchen_train::{Recipe, Run, Source, TrainConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, output] = &arguments[..] else {
        return Err("expected CONFIG.toml OUTPUT".into());
    };
    let config = TrainConfig::from_toml(&std::fs::read_to_string(config)?)?;
    let recipe = Recipe::new(config, shapes_tokenizer())?;
    let mut run = Run::new(recipe, Source::Shapes, Arc::new(Folder::new(output)), Device::flex());
    run.train_all()?;
    Ok(())
}
