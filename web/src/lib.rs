//! Würstchen in the browser: the WebAssembly layer over [`wuerstchen::Pipeline`], not written yet.
