//! Threads in WebAssembly.
//!
//! The standard library for WebAssembly is compiled for one thread, and so is this program. But a page that is isolated
//! from other origins can give one memory to several instances of it, each in a worker (`web/js/threads.ts`). The
//! other instances run nothing but the tasks of [`for_each`]. Therefore a task must not allocate memory, use thread-local
//! variables, take much of its stack of 1 MiB, or call JavaScript other than `tilesOfThread`. It only calculates with
//! memory that no other task writes. Nothing checks this.

use std::sync::atomic::{AtomicUsize, Ordering};

use wasm_bindgen::prelude::*;

use super::relaxed;

#[wasm_bindgen]
extern "C" {
    /// Calls `task` with every number below `tasks`, on any thread, and waits for all calls to end.
    #[wasm_bindgen(js_name = runOnThreads)]
    fn run_on_threads(tasks: usize, task: &dyn Fn(usize));
}

static COUNT: AtomicUsize = AtomicUsize::new(1);

/// Divides the work of all kernels among `count` threads from now on. Returns the bytes of a module that each thread
/// instantiates, with its memory as `program.memory`. The module exports `tiles`, the inner loops of products. Where it
/// is not valid, a thread has no such function.
#[wasm_bindgen(js_name = useThreads)]
#[expect(unreachable_pub, reason = "wasm-bindgen exports public functions only")]
pub fn use_threads(count: usize) -> Vec<u8> {
    COUNT.store(count, Ordering::Relaxed);
    relaxed::module(true)
}

/// Number of threads.
pub(super) fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Calls `task` with every number below `tasks`, side by side if there are several threads.
pub(super) fn for_each(tasks: usize, task: &dyn Fn(usize)) {
    if count() > 1 && tasks > 1 {
        run_on_threads(tasks, &|number: usize| task(number));
    } else {
        (0..tasks).for_each(task);
    }
}
