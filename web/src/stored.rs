//! Bytes that stay with the browser until they are needed.

use std::borrow::Cow;
use std::io;
use std::ops::Range;

use js_sys::{Function, Uint8Array};
use wasm_bindgen::JsValue;
use wuerstchen::ReadBytes;

/// A file of which the browser reads any range at once.
pub(crate) struct Stored {
    pub(crate) length: usize,
    /// Takes the start and the end of a range; returns its bytes.
    pub(crate) read: Function,
}

impl ReadBytes for Stored {
    fn length(&self) -> usize {
        self.length
    }

    fn read(&self, range: Range<usize>) -> io::Result<Cow<'_, [u8]>> {
        let [start, end] = [range.start, range.end].map(|at| JsValue::from(at as f64));
        let bytes = self.read.call2(&JsValue::UNDEFINED, &start, &end).map_err(|thrown| {
            let reason = js_sys::Error::from(thrown).message();
            io::Error::other(String::from(reason))
        })?;
        let bytes = Uint8Array::from(bytes).to_vec();
        if bytes.len() != range.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Cow::Owned(bytes))
    }
}
