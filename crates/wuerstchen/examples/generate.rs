//! Makes a picture of a prompt:
//! `cargo run --release -p wuerstchen --features fs --example generate MODEL PROMPT OUTPUT.png`.

use wuerstchen::{Device, GenerateOptions, Pipeline};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt, output] = &arguments[..] else {
        return Err("expected MODEL PROMPT OUTPUT.png".into());
    };
    let pipeline = Pipeline::open(model, &Device::flex())?;
    let options = GenerateOptions { seed: 7, ..Default::default() };
    let made = pipeline.generate_blocking(prompt, &options)?;
    std::fs::write(output, made.images[0].to_png()?)?;
    Ok(())
}
