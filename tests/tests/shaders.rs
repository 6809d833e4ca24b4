//! Every shader is WGSL that naga accepts, in every variant.

use naga::valid::{Capabilities, ValidationFlags, Validator};

#[test]
fn shaders_are_valid_wgsl() {
    let shaders = wuerstchen_kernels::shaders();
    // Nine plain shaders, nine of training, and products of three tilings, two of them with tiles of halves too, with
    // four kinds of weights. All of them in f32 and f16.
    assert_eq!(shaders.len(), 2 * (9 + 9 + 3 * 4 + 2 * 4));
    for (name, source) in shaders {
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|error| panic!("{}", error.emit_to_string_with_path(&source, &name)));
        // Every WebGPU device reads halves from words of 32 bits.
        let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

/// The capabilities that every WebGPU device offers to shaders.
#[test]
fn shaders_need_no_more_than_any_device_has() {
    for (name, source) in wuerstchen_kernels::shaders() {
        let module = naga::front::wgsl::parse_str(&source).unwrap();
        let buffers =
            module.global_variables.iter().filter(|(_, variable)| variable.binding.is_some());
        assert!(buffers.count() <= 8, "{name}");
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let of_workgroup =
            |variable: &naga::GlobalVariable| variable.space == naga::AddressSpace::WorkGroup;
        let variables =
            module.global_variables.iter().filter(|(_, variable)| of_workgroup(variable));
        let bytes: u32 = variables.map(|(_, variable)| layouter[variable.ty].size).sum();
        assert!(bytes <= 16 << 10, "{name}: {bytes} bytes of workgroup memory");
    }
}
