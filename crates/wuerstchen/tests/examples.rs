//! The examples run.
#![cfg(all(feature = "cpu", feature = "fs"))]

use std::path::Path;
use std::process::Command;

use wuerstchen::{Device, GenerateOptions, Pipeline};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/shapes.safetensors");

/// The program of an example, which cargo builds with the tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap().join("examples");
    Command::new(folder.join(name).with_extension(std::env::consts::EXE_EXTENSION))
}

#[test]
fn generate_writes_the_picture_that_the_pipeline_makes() {
    let output = std::env::temp_dir().join(format!("wuerstchen-{}.png", std::process::id()));
    let arguments = [MODEL, "a red circle", output.to_str().unwrap()];
    let ran = example("generate").args(arguments).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let png = std::fs::read(&output).unwrap();
    std::fs::remove_file(&output).unwrap();
    let pipeline = Pipeline::open(MODEL, &Device::flex()).unwrap();
    let options = GenerateOptions { seed: 7, ..Default::default() };
    let made = pipeline.generate_blocking("a red circle", &options).unwrap();
    assert_eq!(png, made.images[0].to_png().unwrap());
}

#[test]
fn what_is_no_model_is_named() {
    let error = Pipeline::open("no/such/model", &Device::flex()).err().unwrap();
    assert_eq!(error.to_string(), "cannot open no/such/model");
    let error = Pipeline::open(env!("CARGO_MANIFEST_DIR"), &Device::flex()).err().unwrap();
    assert!(error.to_string().contains(": it is no model: expected folders such as "), "{error}");
}
