//! Splits a WebAssembly module in two by what a run of it called.
//!
//! The first part keeps the functions that ran, and all data. Each of the others that it still refers
//! to is a stub there: it calls the import `rest.load` unless the rest is there already, and then what
//! lies in its slot of an exported table. The rest imports from `first` everything that it shares with
//! the first part, and fills the table as it is instantiated. The first part also exports its stack pointer as `stack`,
//! so that each thread can have a stack of its own.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Context, Result, bail, ensure};
use walrus::ir::{MemArg, StoreKind, Value};
use walrus::{
    ConstExpr, ElementItems, ElementKind, ExportItem, FunctionBuilder, FunctionId, FunctionKind,
    GlobalKind, ImportId, ImportKind, ImportedFunction, InstrSeqBuilder, LocalId, Module,
    ModuleConfig, RefType, ValType,
};

/// The namespace of what the rest imports from the first part.
const FIRST: &str = "first";

/// Both parts of a module.
pub(crate) struct Parts {
    pub(crate) first: Vec<u8>,
    pub(crate) rest: Vec<u8>,
}

/// The module with a byte for each function in the exported memory `calls`, which is 1 once the
/// function was called.
pub(crate) fn profiled(wasm: &[u8]) -> Result<Vec<u8>> {
    const PAGE: u64 = 65536;
    let mut module = parse(wasm)?;
    let pages = (module.funcs.iter().count() as u64).div_ceil(PAGE);
    let calls = module.memories.add_local(false, false, pages, Some(pages), None);
    module.exports.add("calls", calls);
    for (id, function) in module.funcs.iter_local_mut() {
        let entry = function.entry_block();
        function
            .builder_mut()
            .instr_seq(entry)
            .const_at(0, Value::I32(id.index() as i32))
            .const_at(1, Value::I32(1))
            .store_at(2, calls, StoreKind::I32_8 { atomic: false }, MemArg { align: 1, offset: 0 });
    }
    Ok(module.emit_wasm())
}

/// Splits by the memory `calls` that a run of the profiled module has filled.
pub(crate) fn split(wasm: &[u8], calls: &[u8]) -> Result<Parts> {
    let slots = slots(wasm, calls)?;
    let mut hasher = DefaultHasher::new();
    (wasm, calls).hash(&mut hasher);
    // Of another build, it could not be imported.
    let table = format!("deferred-{:016x}", hasher.finish());
    let (rest, shared) = rest(wasm, calls, &slots, &table)?;
    let first = first(wasm, &slots, &table, &shared)?;
    Ok(Parts { first, rest })
}

/// The indices of the deferred functions that the first part refers to, in the order of the table.
fn slots(wasm: &[u8], calls: &[u8]) -> Result<Vec<usize>> {
    let mut module = parse(wasm)?;
    let count = module.funcs.iter().count();
    ensure!(calls.len() >= count, "{count} functions, but a profile of {}", calls.len());
    ensure!(calls.contains(&1), "the profile says that nothing was called");
    for id in local_functions(&module) {
        if !is_called(calls, id) {
            replace(&mut module, id, |body, _| {
                body.unreachable();
            });
        }
    }
    walrus::passes::gc::run(&mut module);
    let deferred = local_functions(&module).into_iter().filter(|&id| !is_called(calls, id));
    Ok(deferred.map(|id| id.index()).collect())
}

/// The rest, and what it imports from the first part.
fn rest(
    wasm: &[u8],
    calls: &[u8],
    slots: &[usize],
    table: &str,
) -> Result<(Vec<u8>, HashSet<String>)> {
    let mut module = parse(wasm)?;
    for id in local_functions(&module).into_iter().filter(|&id| is_called(calls, id)) {
        let ty = module.funcs.get(id).ty();
        let import = import(&mut module, "f", id.index(), id);
        module.funcs.get_mut(id).kind = FunctionKind::Import(ImportedFunction { import, ty });
    }
    for id in Vec::from_iter(module.globals.iter().map(|global| global.id())) {
        if matches!(module.globals.get(id).kind, GlobalKind::Local(_)) {
            let import = import(&mut module, "g", id.index(), id);
            module.globals.get_mut(id).kind = GlobalKind::Import(import);
        }
    }
    for id in Vec::from_iter(module.tables.iter().map(|table| table.id())) {
        let import = import(&mut module, "t", id.index(), id);
        let table = module.tables.get_mut(id);
        (table.import, table.init) = (Some(import), None);
        table.elem_segments.clear();
    }
    for id in Vec::from_iter(module.memories.iter().map(|memory| memory.id())) {
        let import = import(&mut module, "m", id.index(), id);
        let memory = module.memories.get_mut(id);
        memory.import = Some(import);
        memory.data_segments.clear();
    }

    // What the first part sets up.
    module.start = None;
    for id in Vec::from_iter(module.exports.iter().map(|export| export.id())) {
        module.exports.delete(id);
    }
    for id in Vec::from_iter(module.elements.iter().map(|element| element.id())) {
        module.elements.delete(id);
    }
    for id in Vec::from_iter(module.data.iter().map(|data| data.id())) {
        module.data.delete(id);
    }

    let count = slots.len() as u64;
    let functions = with_indices(&module, slots);
    let (table, _) =
        module.add_import_table(FIRST, table, false, count, Some(count), RefType::FUNCREF);
    let start = ElementKind::Active { table, offset: ConstExpr::Value(Value::I32(0)) };
    let element = module.elements.add(start, ElementItems::Functions(functions));
    module.tables.get_mut(table).elem_segments.insert(element);
    walrus::passes::gc::run(&mut module);

    let shared = module.imports.iter().filter(|import| import.module == FIRST);
    let shared = shared.map(|import| import.name.clone()).collect();
    Ok((module.emit_wasm(), shared))
}

/// The first part, which exports what it shares with the rest.
fn first(wasm: &[u8], slots: &[usize], table: &str, shared: &HashSet<String>) -> Result<Vec<u8>> {
    let mut module = parse(wasm)?;
    let no_values = module.types.add(&[], &[]);
    let (load, _) = module.add_import_func("rest", "load", no_values);
    let zero = ConstExpr::Value(Value::I32(0));
    let is_loaded = module.globals.add_local(ValType::I32, true, false, zero);
    let mut ensure_loaded = FunctionBuilder::new(&mut module.types, &[], &[]);
    ensure_loaded.func_body().global_get(is_loaded).if_else(
        None,
        |_| {},
        |missing| {
            missing.call(load).i32_const(1).global_set(is_loaded);
        },
    );
    let ensure_loaded = ensure_loaded.finish(vec![], &mut module.funcs);

    let count = slots.len() as u64;
    let deferred = module.tables.add_local(false, count, Some(count), RefType::FUNCREF);
    module.exports.add(table, deferred);
    for (slot, id) in with_indices(&module, slots).into_iter().enumerate() {
        let ty = module.funcs.get(id).ty();
        replace(&mut module, id, |body, arguments| {
            body.call(ensure_loaded);
            for &argument in arguments {
                body.local_get(argument);
            }
            body.i32_const(slot as i32).call_indirect(ty, deferred);
        });
    }
    let variables = module.globals.iter().filter(|global| {
        matches!(global.kind, GlobalKind::Local(_)) && global.mutable && global.id() != is_loaded
    });
    let variables: Vec<_> = variables.map(|global| global.id()).collect();
    let [stack] = variables[..] else {
        bail!("{} variables, of which one is the stack pointer", variables.len())
    };
    module.exports.add("stack", stack);
    let functions = module.funcs.iter().map(|function| function.id());
    let functions = functions.map(|id| (name("f", id.index()), ExportItem::from(id)));
    let globals = module.globals.iter().map(|global| global.id());
    let globals = globals.map(|id| (name("g", id.index()), ExportItem::from(id)));
    let tables = module.tables.iter().map(|table| table.id());
    let tables = tables.map(|id| (name("t", id.index()), ExportItem::from(id)));
    let memories = module.memories.iter().map(|memory| memory.id());
    let memories = memories.map(|id| (name("m", id.index()), ExportItem::from(id)));
    for (name, item) in functions.chain(globals).chain(tables).chain(memories) {
        if shared.contains(&name) {
            module.exports.add(&name, item);
        }
    }
    walrus::passes::gc::run(&mut module);
    Ok(module.emit_wasm())
}

/// Imports an item from the first part.
fn import(module: &mut Module, kind: &str, index: usize, item: impl Into<ImportKind>) -> ImportId {
    module.imports.add(FIRST, &name(kind, index), item)
}

/// What both parts call an item.
fn name(kind: &str, index: usize) -> String {
    format!("{kind}{index}")
}

/// The same bytes give the same indices; ids are of one parsed module.
fn parse(wasm: &[u8]) -> Result<Module> {
    let mut config = ModuleConfig::new();
    config.generate_name_section(false).generate_producers_section(false);
    config.parse(wasm).context("not a WebAssembly module")
}

fn is_called(calls: &[u8], id: FunctionId) -> bool {
    calls[id.index()] != 0
}

fn local_functions(module: &Module) -> Vec<FunctionId> {
    module.funcs.iter_local().map(|(id, _)| id).collect()
}

fn with_indices(module: &Module, indices: &[usize]) -> Vec<FunctionId> {
    let ids: HashMap<_, _> =
        local_functions(module).into_iter().map(|id| (id.index(), id)).collect();
    indices.iter().map(|index| ids[index]).collect()
}

/// Gives a function another body, made of its arguments.
fn replace(
    module: &mut Module,
    id: FunctionId,
    write: impl FnOnce(&mut InstrSeqBuilder<'_>, &[LocalId]),
) {
    let ty = module.funcs.get(id).ty();
    let parameters = module.types.params(ty).to_vec();
    let results = module.types.results(ty).to_vec();
    let arguments: Vec<_> = parameters.iter().map(|&ty| module.locals.add(ty)).collect();
    let mut builder = FunctionBuilder::new(&mut module.types, &parameters, &results);
    write(&mut builder.func_body(), &arguments);
    module.funcs.get_mut(id).kind = FunctionKind::Local(builder.local_func(arguments));
}
