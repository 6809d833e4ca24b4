//! Metrics and pictures in the event files that `TensorBoard` opens.
//!
//! A file is a sequence of records. Each has its length, a checksum of the length, a message `Event`, and a checksum of
//! the message.
//!
//! Source: `tensorflow/core/lib/io/record_writer.cc`, `tensorflow/core/util/event.proto` and
//! `tensorflow/core/framework/summary.proto` of tensorflow/tensorflow.

/// A picture's colours are red, green and blue.
const RGB: u64 = 3;

/// Fields of `Event`.
const SUMMARY: u64 = 5;
const SESSION_LOG: u64 = 7;

/// What a file starts with.
pub(crate) fn header(wall_time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.bytes(3, b"brain.Event:2");
    record(&event.0)
}

/// Says that the steps from `step` on are done again: what earlier files say of them does not count.
pub(crate) fn restart(step: u64, wall_time: f64) -> Vec<u8> {
    /// `SessionLog.START`.
    const START: u64 = 1;
    let mut log = Message::default();
    log.number(1, START);
    event(step, wall_time, SESSION_LOG, &log)
}

/// Numbers of a step, by their tags. `wall_time` is in seconds since 1970.
pub(crate) fn scalars(step: u64, wall_time: f64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, number) in values {
        let mut value = Message::default();
        value.bytes(1, tag.as_bytes());
        value.float(2, *number as f32);
        summary.bytes(1, &value.0);
    }
    event(step, wall_time, SUMMARY, &summary)
}

/// A picture of a step as PNG, of the given width and height in pixels.
pub(crate) fn picture(
    step: u64,
    wall_time: f64,
    tag: &str,
    png: &[u8],
    [width, height]: [usize; 2],
) -> Vec<u8> {
    let mut image = Message::default();
    image.number(1, height as u64);
    image.number(2, width as u64);
    image.number(3, RGB);
    image.bytes(4, png);
    let mut value = Message::default();
    value.bytes(1, tag.as_bytes());
    value.bytes(4, &image.0);
    let mut summary = Message::default();
    summary.bytes(1, &value.0);
    event(step, wall_time, SUMMARY, &summary)
}

/// An event of a step with a message in one of its fields.
fn event(step: u64, wall_time: f64, field: u64, message: &Message) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.number(2, step);
    event.bytes(field, &message.0);
    record(&event.0)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(checksum(&length));
    bytes.extend(data);
    bytes.extend(checksum(data));
    bytes
}

/// CRC-32C, rotated and shifted, because plain CRCs are unreliable for data that contains CRCs itself.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// A message of protocol buffers. Fields are known by their numbers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    /// Appends an integer with seven bits in each byte, the lowest first.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `RecordWriter` of `TensorBoard` 2.21 for the same events.
    #[test]
    fn records_are_those_of_tensorboard() {
        let hex = |record: Vec<u8>| -> String {
            record.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        assert_eq!(
            hex(scalars(300, 1.5, &[("loss", 0.25)])),
            "1b000000000000001a0d9e1309000000000000f83f10ac022a0d0a0b0a046c6f7373150000803e9908deed"
        );
        assert_eq!(
            hex(restart(300, 1.5)),
            "100000000000000095fbfe1809000000000000f83f10ac023a020801713b788a"
        );
    }
}
