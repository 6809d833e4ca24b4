//! Bounds on the shaders' machine code for AMD GPUs, for which Mesa's RADV compiles without the hardware.
//!
//! `cargo test --release --workspace --test ceilings -- --nocapture` prints the figures.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use serde::Deserialize;

/// RDNA 2, RDNA and GCN 5.
const FAMILIES: [&str; 3] = ["navi21", "navi10", "vega10"];

/// The file that tells Vulkan's loader where RADV is.
const DRIVER: &str = "/usr/share/vulkan/icd.d/radeon_icd.x86_64.json";

/// The compiler of a shader, which decides what the shader checks at run time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Checks {
    /// The checks that cubecl asks wgpu for: only that loops end.
    Native,
    /// The checks of a browser on naga, such as Firefox: every index lies inside its array, and workgroup memory starts
    /// as zeros.
    Browser,
}

/// The resources that a shader may take at most, on any of the families.
struct Ceiling {
    /// The limits hold for shaders whose names contain all of these words.
    shader: &'static str,
    /// Vector instructions for each multiply-add of a product, natively and in a browser.
    instructions: Option<[f64; 2]>,
    registers: u64,
    /// Bytes of workgroup memory.
    memory: u64,
}

const fn product(
    shader: &'static str,
    instructions: [f64; 2],
    registers: u64,
    memory: u64,
) -> Ceiling {
    Ceiling { shader, instructions: Some(instructions), registers, memory }
}

const fn plain(shader: &'static str, registers: u64, memory: u64) -> Ceiling {
    Ceiling { shader, instructions: None, registers, memory }
}

/// A shader has the first of these ceilings that fits its name. GCN converts every half before it multiplies, others
/// only on the way into tiles.
const CEILINGS: [Ceiling; 35] = [
    product("direct dense product F16", [1.5, 1.66], 84, 0),
    product("direct packed product BITS=16 F16", [1.5, 1.8], 84, 0),
    product("direct packed product BITS=8 F16", [1.65, 1.85], 84, 0),
    product("direct packed product BITS=4 F16", [1.9, 2.1], 84, 0),
    product("direct dense product", [1.15, 1.33], 84, 0),
    product("direct packed product BITS=16", [1.26, 1.54], 84, 0),
    product("direct packed product BITS=8", [1.4, 1.6], 84, 0),
    product("direct packed product BITS=4", [1.65, 1.85], 84, 0),
    product("tiled QUADS=8 halves", [1.85, 1.95], 72, 4096),
    product("tiled QUADS=16 halves", [1.42, 1.48], 120, 4096),
    product("tiled dense product QUADS=8", [1.15, 1.25], 72, 8192),
    product("tiled packed product QUADS=8 BITS=16", [1.15, 1.27], 72, 8192),
    product("tiled packed product QUADS=8 BITS=8", [1.21, 1.32], 72, 8192),
    product("tiled packed product QUADS=8 BITS=4", [1.28, 1.4], 72, 8192),
    product("tiled dense product QUADS=16", [1.07, 1.12], 120, 8192),
    product("tiled packed product QUADS=16 BITS=16", [1.07, 1.14], 120, 8192),
    product("tiled packed product QUADS=16 BITS=8", [1.09, 1.15], 120, 8192),
    product("tiled packed product QUADS=16 BITS=4", [1.13, 1.19], 120, 8192),
    plain("attention", 128, 13 << 10),
    plain("layer_norm", 16, 1024),
    plain("channel_norms", 16, 512),
    plain("response", 24, 512),
    plain("depthwise_conv", 16, 0),
    plain("patches", 16, 0),
    plain("layer_norm_gradient", 40, 1024),
    plain("response_sums", 32, 1024),
    plain("response_gradient", 24, 512),
    plain("response_affine_gradient", 24, 512),
    plain("depthwise_input_gradient", 32, 0),
    plain("depthwise_weight_gradient", 32, 0),
    plain("patches_gradient", 24, 0),
    plain("squares", 24, 512),
    plain("adamw", 24, 0),
    plain("probe_multiply_adds", 16, 0),
    plain("probe_copy", 8, 0),
];

/// RADV's statistics of a shader.
#[derive(Deserialize)]
struct Report {
    statistics: BTreeMap<String, u64>,
    assembly: String,
}

#[test]
fn shaders_stay_below_their_ceilings() {
    if !Path::new(DRIVER).exists() || Command::new("python3").arg("--version").output().is_err() {
        // Not `eprintln!`, whose output the test harness keeps back when a test passes.
        let _ = writeln!(
            std::io::stderr(),
            "no ceilings were tested: they need python3, and Mesa's RADV at {DRIVER}"
        );
        return;
    }
    let mut above = Vec::new();
    for family in FAMILIES {
        for (name, checks, report) in reports(family) {
            let words: Vec<&str> = name.split(' ').collect();
            let fits =
                |ceiling: &&Ceiling| ceiling.shader.split(' ').all(|word| words.contains(&word));
            let ceiling =
                CEILINGS.iter().find(fits).unwrap_or_else(|| panic!("no ceiling for {name}"));
            let what = format!("{family} {checks:?} {name}");
            let statistic = |name: &str| {
                let found = report.statistics.get(name);
                *found.unwrap_or_else(|| panic!("{what}: RADV says nothing about {name}"))
            };
            let (registers, memory) = (statistic("VGPRs"), statistic("LDS size"));
            let spilled = statistic("Spilled VGPRs") + statistic("Spilled SGPRs");
            let spilled = spilled + statistic("Scratch size");
            let instructions = ceiling.instructions.map(|most| {
                let most = if checks == Checks::Native { most[0] } else { most[1] };
                (instructions_per_multiply_add(&what, &report.assembly), most)
            });
            let figure = instructions.map_or(String::from("-"), |(found, _)| format!("{found:.3}"));
            let figures = format!(
                "{what}: {figure} instructions, {registers} registers, {memory} B, {spilled} spilled"
            );
            eprintln!("{figures}, {} subgroups", statistic("Subgroups per SIMD"));
            if instructions.is_some_and(|(found, most)| found > most)
                || registers > ceiling.registers
                || memory > ceiling.memory
                || spilled > 0
            {
                above.push(figures);
            }
        }
    }
    assert!(above.is_empty(), "above their ceilings:\n{}", above.join("\n"));
}

/// All shaders as a family of GPUs runs them.
fn reports(family: &str) -> Vec<(String, Checks, Report)> {
    let folder = std::env::temp_dir().join(format!("ceilings-{family}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut shaders = Vec::new();
    for (name, source) in wuerstchen_kernels::shaders() {
        for checks in [Checks::Native, Checks::Browser] {
            let words = spir_v(&name, &source, checks);
            let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
            let file = folder.join(format!("{:03}", shaders.len()));
            std::fs::write(file.with_extension("spv"), bytes).unwrap();
            shaders.push((name.clone(), checks, file.with_extension("json")));
        }
    }
    let output = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/radv.py"))
        .arg(&folder)
        .env("VK_ICD_FILENAMES", DRIVER)
        .env("RADV_FORCE_FAMILY", family)
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "radv.py for {family}: {error}");
    let read = |(name, checks, file): (String, Checks, std::path::PathBuf)| {
        let report = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        (name, checks, report)
    };
    let reports = shaders.into_iter().map(read).collect();
    std::fs::remove_dir_all(&folder).unwrap();
    reports
}

/// A shader as wgpu gives it to Vulkan.
fn spir_v(name: &str, source: &str, checks: Checks) -> Vec<u32> {
    let module = naga::front::wgsl::parse_str(source).unwrap();
    let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module).unwrap();
    let all = checks == Checks::Browser;
    let bounds = if all { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: BoundsCheckPolicies {
            index: bounds,
            buffer: bounds,
            image_load: BoundsCheckPolicy::Unchecked,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: if all {
            spv::ZeroInitializeWorkgroupMemoryMode::Native
        } else {
            spv::ZeroInitializeWorkgroupMemoryMode::None
        },
        force_loop_bounding: true,
        emit_int_div_checks: all,
        ..spv::Options::default()
    };
    let entry = spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: "main".to_owned(),
    };
    spv::write_vec(&module, &info, &options, Some(&entry))
        .unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

/// Columns of the weight that the outermost loop of a product goes through at once: `BLOCK` of its shaders.
const COLUMNS: usize = 64;

/// Vector instructions of a product's loops, for each multiply-add.
fn instructions_per_multiply_add(what: &str, assembly: &str) -> f64 {
    // How often each loop runs in one pass of the next, from the outer ones to the inner ones; and the
    // outputs of an invocation.
    let (trips, outputs) = match what {
        direct if direct.contains("direct") => (vec![COLUMNS / 4], 32),
        small if small.contains("QUADS=8 ") => (vec![2, 8], 16),
        _ => (vec![4, 4], 64),
    };
    let lines: Vec<&str> = assembly.lines().map(str::trim).collect();
    let count = |range: Range<usize>, starts: &[&str]| {
        let is_one = |line: &&&str| starts.iter().any(|start| line.starts_with(start));
        lines[range].iter().filter(is_one).count()
    };
    // `v_mad_mix` multiplies halves to f32, on GPUs that have it.
    let multiply_adds = ["v_fma", "v_mac", "v_mad_f", "v_mad_mix", "v_fmac"];
    let loops = loops(&lines);
    let innermost = loops
        .iter()
        .filter(|inner| !loops.iter().any(|other| other != *inner && contains(inner, other)))
        .max_by_key(|inner| count((*inner).clone(), &multiply_adds))
        .unwrap_or_else(|| panic!("{what}: no loop"));
    let mut nest: Vec<_> = loops.iter().filter(|outer| contains(outer, innermost)).collect();
    nest.sort_by_key(|range| range.start);
    assert_eq!(nest.len(), trips.len() + 1, "{what}: other loops than the shader's");

    // The code in the outermost loop runs once, that in the next one several times, and so on.
    let total = |starts: &[&str]| {
        let (mut total, mut times) = (0, 1);
        for (depth, range) in nest.iter().enumerate() {
            let inner = nest.get(depth + 1).map_or(0, |inner| count((*inner).clone(), starts));
            total += times * (count((*range).clone(), starts) - inner);
            times *= trips.get(depth).copied().unwrap_or(1);
        }
        total
    };
    let found = total(&multiply_adds);
    assert!(found >= outputs * COLUMNS, "{what}: {found} multiply-adds are too few");
    total(&["v_"]) as f64 / (outputs * COLUMNS) as f64
}

fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// The lines of every loop: from a label to the last jump back to it.
fn loops(lines: &[&str]) -> Vec<Range<usize>> {
    let mut labels = BTreeMap::new();
    let mut ends = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, at);
        } else if line.starts_with("s_branch") || line.starts_with("s_cbranch") {
            let target = line.split_whitespace().nth(1);
            if let Some(start) = target.and_then(|target| labels.get(target)) {
                ends.insert(*start, at + 1);
            }
        }
    }
    ends.into_iter().map(|(start, end)| start..end).collect()
}
