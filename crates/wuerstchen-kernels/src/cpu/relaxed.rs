//! Tiles of a product with fused multiply-adds, in a WebAssembly module of their own.
//!
//! An engine refuses a module with an instruction that it does not know, and not every engine knows the multiply-add
//! of [relaxed SIMD](https://github.com/WebAssembly/relaxed-simd). So the program writes a module of one function when
//! it multiplies for the first time, or when threads are started. The function works in the program's own memory.

use js_sys::{Object, Reflect, Uint8Array, WebAssembly};
use wasm_bindgen::prelude::*;
use wasm_encoder::{
    BlockType, CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection,
    ImportSection, MemArg, MemoryType, Module, TypeSection, ValType,
};

use super::product::ROWS;
use super::threads;

/// Columns of a panel: two vectors.
pub(super) const PANEL: usize = 8;

/// Bytes of a value, and of the two vectors of a panel.
const VALUE: i32 = 4;
const VECTORS: i32 = 32;

#[wasm_bindgen]
extern "C" {
    /// The exports of the module.
    type Exports;

    #[wasm_bindgen(method)]
    fn tiles(
        this: &Exports,
        x: *const f32,
        rows: usize,
        inputs: usize,
        panels: *const f32,
        length: usize,
        count: usize,
        sums: *mut f32,
    );

    /// The same function of this thread, where several threads compute; returns false if there is none.
    #[wasm_bindgen(js_name = tilesOfThread)]
    fn tiles_of_thread(
        x: *const f32,
        rows: usize,
        inputs: usize,
        panels: *const f32,
        length: usize,
        count: usize,
        sums: *mut f32,
    ) -> bool;
}

thread_local! {
    static EXPORTS: Option<Exports> = instantiate().ok();
}

/// Writes the products of rows with panels to `sums`. Where the engine does not know the instruction, it returns false
/// and writes nothing.
///
/// # Shapes
///
/// - x: `[M, inputs]`, at least one row
/// - panels: `[P, K, 8]`, at least one panel, of which the first `inputs` rows count
/// - sums: `[M, 8 P]`; `padded` is `8 P`
pub(super) fn tiles(
    x: &[f32],
    inputs: usize,
    panels: &[f32],
    padded: usize,
    sums: &mut [f32],
) -> bool {
    let (rows, length, count) = (x.len() / inputs, panels.len() / padded, padded / PANEL);
    // The module checks no bounds.
    assert!(rows > 0 && count > 0 && inputs <= length);
    assert!(sums.len() >= rows * padded);
    let (x, panels, sums) = (x.as_ptr(), panels.as_ptr(), sums.as_mut_ptr());
    // Another thread cannot call what this one has instantiated.
    if threads::count() > 1 {
        return tiles_of_thread(x, rows, inputs, panels, length, count, sums);
    }
    EXPORTS.with(|exports| {
        let Some(exports) = exports else { return false };
        exports.tiles(x, rows, inputs, panels, length, count, sums);
        true
    })
}

fn instantiate() -> Result<Exports, JsValue> {
    let memory = Object::new();
    Reflect::set(&memory, &"memory".into(), &wasm_bindgen::memory())?;
    let imports = Object::new();
    Reflect::set(&imports, &"program".into(), &memory)?;
    let module = WebAssembly::Module::new(&Uint8Array::from(module(false).as_slice()).into())?;
    Ok(WebAssembly::Instance::new(&module, &imports)?.exports().unchecked_into())
}

/// The module's bytes, for a memory that threads share or for one that belongs to one thread.
pub(super) fn module(shared: bool) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32; PARAMETERS as usize], []);
    let mut imports = ImportSection::new();
    let memory = MemoryType {
        minimum: 0,
        maximum: shared.then_some(1 << 16),
        memory64: false,
        shared,
        page_size_log2: None,
    };
    imports.import("program", "memory", EntityType::Memory(memory));
    let mut functions = FunctionSection::new();
    functions.function(0);
    let mut exports = ExportSection::new();
    exports.export("tiles", ExportKind::Func, 0);
    let mut code = CodeSection::new();
    code.function(&function());
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&functions).section(&exports).section(&code);
    module.finish()
}

// The function's parameters, by their numbers.
const X: u32 = 0;
const ROW_COUNT: u32 = 1;
const INPUTS: u32 = 2;
/// Where this panel begins: the first at the start.
const PANEL_START: u32 = 3;
/// Rows of a panel.
const LENGTH: u32 = 4;
const PANEL_COUNT: u32 = 5;
/// Where the panel's sums of the first row go.
const SUMS: u32 = 6;
const PARAMETERS: u32 = 7;

// Its variables.
/// Bytes of a row of `x`, and of a row of the sums.
const X_STRIDE: u32 = 7;
const SUMS_STRIDE: u32 = 8;
/// Where the last row of `x` begins.
const LAST_ROW: u32 = 9;
/// Where the panel's sums of the last row go.
const LAST_SUMS: u32 = 10;
/// Where the panels end, and where the rows of this one that count do.
const PANELS_END: u32 = 11;
const PANEL_END: u32 = 12;
/// The next weights of the panel.
const WEIGHTS: u32 = 13;
/// Where the tile's first row of `x` begins, and where its sums go.
const TILE_X: u32 = 14;
const TILE_SUMS: u32 = 15;
/// The next value of each row of the tile.
const VALUES: u32 = 16;
const INTEGERS: u32 = VALUES + ROWS as u32 - PARAMETERS;
const LEFT: u32 = PARAMETERS + INTEGERS;
const RIGHT: u32 = LEFT + 1;
/// A vector with one value in all places.
const VALUE_VECTOR: u32 = RIGHT + 1;
/// Two vectors of sums for each row of the tile.
const TILE: u32 = VALUE_VECTOR + 1;
const FLOATS: u32 = 3 + 2 * ROWS as u32;

/// The function: the products of every [`ROWS`] rows with every panel.
///
/// A tile that reaches beyond the last row computes and writes that row again.
fn function() -> Function {
    let mut function = Function::new([(INTEGERS, ValType::I32), (FLOATS, ValType::V128)]);
    let mut f = function.instructions();
    let at = |offset| MemArg { offset, align: 2, memory_index: 0 };

    f.local_get(INPUTS).i32_const(VALUE).i32_mul().local_set(X_STRIDE);
    f.local_get(PANEL_COUNT).i32_const(VECTORS).i32_mul().local_set(SUMS_STRIDE);
    f.local_get(ROW_COUNT).i32_const(1).i32_sub().local_get(X_STRIDE).i32_mul();
    f.local_get(X).i32_add().local_set(LAST_ROW);
    f.local_get(LENGTH).local_get(SUMS_STRIDE).i32_mul();
    f.local_get(PANEL_START).i32_add().local_set(PANELS_END);

    f.loop_(BlockType::Empty); // over panels
    f.local_get(INPUTS).i32_const(VECTORS).i32_mul();
    f.local_get(PANEL_START).i32_add().local_set(PANEL_END);
    f.local_get(X).local_set(TILE_X);
    f.local_get(SUMS).local_tee(TILE_SUMS);
    f.local_get(ROW_COUNT).i32_const(1).i32_sub().local_get(SUMS_STRIDE).i32_mul();
    f.i32_add().local_set(LAST_SUMS);

    f.loop_(BlockType::Empty); // over tiles
    f.local_get(PANEL_START).local_set(WEIGHTS);
    for row in 0..ROWS as u32 {
        // The smaller offset of this row and the last one.
        f.local_get(X_STRIDE).i32_const(row as i32).i32_mul();
        f.local_get(TILE_X).i32_add().local_tee(VALUES + row).local_get(LAST_ROW);
        f.local_get(VALUES + row).local_get(LAST_ROW).i32_lt_u();
        f.select().local_set(VALUES + row);
        for sums in [TILE + 2 * row, TILE + 2 * row + 1] {
            f.v128_const(0).local_set(sums);
        }
    }

    // Over inputs, one in a round: with more, V8 keeps sums in memory and takes 1.6 times as long.
    f.loop_(BlockType::Empty);
    f.local_get(WEIGHTS).v128_load(at(0)).local_set(LEFT);
    f.local_get(WEIGHTS).v128_load(at(VECTORS as u64 / 2)).local_set(RIGHT);
    for row in 0..ROWS as u32 {
        let (left, right) = (TILE + 2 * row, TILE + 2 * row + 1);
        f.local_get(VALUES + row).v128_load32_splat(at(0)).local_tee(VALUE_VECTOR);
        f.local_get(LEFT).local_get(left).f32x4_relaxed_madd().local_set(left);
        f.local_get(VALUE_VECTOR).local_get(RIGHT).local_get(right);
        f.f32x4_relaxed_madd().local_set(right);
        f.local_get(VALUES + row).i32_const(VALUE).i32_add().local_set(VALUES + row);
    }
    f.local_get(WEIGHTS).i32_const(VECTORS).i32_add().local_tee(WEIGHTS);
    f.local_get(PANEL_END).i32_lt_u().br_if(0).end();

    for row in 0..ROWS as u32 {
        f.local_get(TILE_SUMS).local_get(TILE + 2 * row).v128_store(at(0));
        f.local_get(TILE_SUMS).local_get(TILE + 2 * row + 1).v128_store(at(VECTORS as u64 / 2));
        if row + 1 < ROWS as u32 {
            // The smaller offset of the next row and the last one.
            f.local_get(TILE_SUMS).local_get(SUMS_STRIDE).i32_add().local_tee(TILE_SUMS);
            f.local_get(LAST_SUMS).local_get(TILE_SUMS).local_get(LAST_SUMS).i32_lt_u();
            f.select().local_set(TILE_SUMS);
        }
    }
    f.local_get(TILE_SUMS).local_get(SUMS_STRIDE).i32_add().local_set(TILE_SUMS);
    f.local_get(X_STRIDE).i32_const(ROWS as i32).i32_mul();
    f.local_get(TILE_X).i32_add().local_tee(TILE_X);
    f.local_get(LAST_ROW).i32_le_u().br_if(0).end();

    f.local_get(SUMS).i32_const(VECTORS).i32_add().local_set(SUMS);
    f.local_get(LENGTH).i32_const(VECTORS).i32_mul();
    f.local_get(PANEL_START).i32_add().local_tee(PANEL_START);
    f.local_get(PANELS_END).i32_lt_u().br_if(0).end();
    f.end();
    function
}
