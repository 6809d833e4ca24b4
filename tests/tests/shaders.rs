//! Every file in `shaders/` is WGSL that naga accepts, as it stands and in half precision.

use naga::valid::{Capabilities, ValidationFlags, Validator};

#[test]
fn shaders_are_valid_wgsl() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../shaders");
    let mut shaders = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "wgsl") {
            continue;
        }
        shaders += 1;
        let single = std::fs::read_to_string(&path).unwrap();
        let half =
            format!("enable f16;\n{single}").replace("alias elem = f32;", "alias elem = f16;");
        assert_ne!(half.find("alias elem = f16;"), None, "{}: no elem alias", path.display());
        for source in [single, half] {
            let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|error| {
                panic!("{}", error.emit_to_string_with_path(&source, &path.to_string_lossy()))
            });
            // Every WebGPU device reads halves from words of 32 bits.
            let capabilities =
                Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            Validator::new(ValidationFlags::all(), capabilities)
                .validate(&module)
                .unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        }
    }
    assert!(shaders >= 3, "found {shaders} shaders in {directory}");
}
