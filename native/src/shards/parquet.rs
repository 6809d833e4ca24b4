//! What lies where in the Parquet files of img2dataset.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use parquet::basic::Type as Physical;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::ByteArrayType;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetStatisticsPolicy};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedPageReader};
use parquet::record::Field;
use parquet::schema::types::{SchemaDescriptor, Type};
use serde_json::{Map, Number, Value};
use wuerstchen::fs::decode;

use super::index::{Found, MAX_TEXT, Place, Shard};
use crate::pictures;

/// The columns with the name of a sample, and with whether its picture has been downloaded.
const KEY: &str = "key";
const STATUS: &str = "status";

/// What [`STATUS`] says of rows that have a picture.
const SUCCESS: &str = "success";

/// Most bytes of a picture.
const MAX_PICTURE: usize = 1 << 28;

/// A picture in a Parquet file.
pub(super) struct Row {
    group: Arc<Group>,
    /// Its number in the group.
    row: usize,
}

/// A group of rows.
struct Group {
    /// Where the group's pictures lie.
    pictures: ColumnChunkMetaData,
    /// The same as the first byte and how many there are.
    bytes: (u64, u64),
    rows: usize,
}

/// What the crate `parquet` reads; an error where it panics, as it does at some broken files.
fn caught<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    let read = std::panic::catch_unwind(AssertUnwindSafe(read));
    read.unwrap_or_else(|_| Err(anyhow!("the Parquet file is broken")))
}

impl Row {
    /// The bytes of the picture. Of the pages before the one that it is in, only headers are read.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>> {
        caught(|| self.read_page(path))
    }

    fn read_page(&self, path: &Path) -> Result<Vec<u8>> {
        let Group { pictures, rows, .. } = &*self.group;
        let pages = SerializedPageReader::new(Arc::new(File::open(path)?), pictures, *rows, None)?;
        let column = pictures.column_descr_ptr();
        let mut column = ColumnReaderImpl::<ByteArrayType>::new(column, Box::new(pages));
        column.skip_records(self.row)?;
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        column.read_records(1, Some(&mut levels), None, &mut values)?;
        match values.first().map(|picture| picture.data()) {
            None => bail!("expected a picture in the row, found none"),
            Some(picture) if picture.len() > MAX_PICTURE => {
                let found = picture.len();
                bail!("expected a picture of at most {MAX_PICTURE} bytes, found {found}")
            }
            Some(picture) => Ok(picture.to_vec()),
        }
    }
}

/// Tells one picture from others that were in its place.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, length) = self.group.bytes;
        write!(f, "{start} {length} {}", self.row)
    }
}

/// The samples of a shard; `wanted` are the fields that are read. One group of rows is read after the other, and no
/// pictures.
pub(super) fn read_shard(path: &Path, file: File, wanted: &BTreeSet<&str>) -> Result<Shard> {
    let mut shard = Shard::default();
    // The largest and smallest picture of every group say nothing.
    let options =
        ReadOptionsBuilder::new().with_column_stats_policy(ParquetStatisticsPolicy::SkipAll);
    let open = || Ok(SerializedFileReader::new_with_options(file, options.build())?);
    let reader = match caught(open) {
        Ok(reader) => reader,
        Err(error) => {
            shard.cut_off = Some(error.to_string());
            return Ok(shard);
        }
    };
    let about = reader.metadata().file_metadata();
    let columns = Columns::of(about.schema_descr(), wanted)
        .map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
    let rows = usize::try_from(about.num_rows()).unwrap_or_default();
    for column in &columns.unread {
        shard.unread.insert(format!("the column {column}"), rows);
    }
    for number in 0..reader.num_row_groups() {
        if let Err(error) = caught(|| read_group(&reader, number, &columns, &mut shard)) {
            shard.cut_off = Some(format!("its group {number} of rows: {error}"));
            break;
        }
    }
    Ok(shard)
}

/// Adds the samples of a group of rows.
fn read_group(
    reader: &SerializedFileReader<File>,
    number: usize,
    columns: &Columns,
    shard: &mut Shard,
) -> Result<()> {
    let group = reader.get_row_group(number)?;
    let rows = usize::try_from(group.metadata().num_rows())?;
    let pictures = group.metadata().column(columns.pictures).clone();
    let bytes = pictures.byte_range();
    let pictures = Arc::new(Group { pictures, bytes, rows });
    for (row, values) in group.get_row_iter(Some(columns.read.clone()))?.enumerate() {
        let mut fields = Map::new();
        for (name, field) in values?.into_columns() {
            match value(&field) {
                Ok(value) => drop(fields.insert(name, value)),
                Err(fault) => *shard.unread.entry(format!("{name} {fault}")).or_default() += 1,
            }
        }
        if let Some(status) = fields.get(STATUS).and_then(Value::as_str)
            && status != SUCCESS
        {
            *shard.unread.entry(format!("rows of the status {status}")).or_default() += 1;
            continue;
        }
        let key = fields.get(KEY).and_then(Value::as_str).map(str::to_owned);
        shard.samples.push(Found {
            name: key.unwrap_or_else(|| format!("row {row} of group {number}")),
            place: Place::Row(Row { group: pictures.clone(), row }),
            texts: BTreeMap::new(),
            fields,
            fault: None,
        });
    }
    Ok(())
}

/// The columns of a file.
struct Columns {
    /// The number of the one with the pictures.
    pictures: usize,
    /// Those that are read to know what there is.
    read: Type,
    /// The names of others that hold pictures, or what is wanted in a type that is not read.
    unread: Vec<String>,
}

impl Columns {
    fn of(schema: &SchemaDescriptor, wanted: &BTreeSet<&str>) -> Result<Self, String> {
        let is_of_pictures = |name: &str| pictures::ENDINGS.contains(&name);
        let is_of_bytes = |number: &usize| {
            let column = schema.column(*number);
            is_of_pictures(column.path().string().as_str())
                && column.physical_type() == Physical::BYTE_ARRAY
                && column.max_rep_level() == 0
        };
        let name = |number| schema.column(number).path().string();
        let mut pictures = (0..schema.num_columns()).filter(is_of_bytes);
        let Some(first) = pictures.next() else {
            let found: Vec<_> = (0..schema.num_columns()).map(name).collect();
            return Err(format!(
                "expected pictures in a column named by their type, such as jpg, found the columns {}: beside tar files, \
                 img2dataset keeps no pictures in Parquet",
                found.join(", ")
            ));
        };
        let mut unread: Vec<_> = pictures.map(name).collect();
        let is_wanted = |name: &str| wanted.contains(name) || [KEY, STATUS].contains(&name);
        let (mut read, root) = (Vec::new(), schema.root_schema());
        for field in root.get_fields().iter().filter(|field| is_wanted(field.name())) {
            if is_read(field) {
                read.push(field.clone());
            } else if !is_of_pictures(field.name()) {
                unread.push(field.name().to_owned());
            }
        }
        let read = Type::group_type_builder(root.name()).with_fields(read).build();
        Ok(Self { pictures: first, read: read.map_err(|error| error.to_string())?, unread })
    }
}

/// Whether a column holds numbers or texts, or lists of texts.
fn is_read(field: &Type) -> bool {
    let physical = |field: &Type| field.is_primitive().then(|| field.get_physical_type());
    match physical(field) {
        Some(Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY) => false,
        Some(_) => true,
        // A list is a group of a repeated group of an element.
        None => match field.get_fields() {
            [list] if !list.is_primitive() => match list.get_fields() {
                [element] => physical(element) == Some(Physical::BYTE_ARRAY),
                _ => false,
            },
            _ => false,
        },
    }
}

/// A value as a `.json` file would have it; says what is wrong where it cannot be.
fn value(field: &Field) -> Result<Value, String> {
    let text = |text: &str| {
        if text.len() as u64 > MAX_TEXT {
            Err(format!("of more than {MAX_TEXT} bytes"))
        } else {
            Ok(Value::from(text))
        }
    };
    let float = |number: f64| Ok(Number::from_f64(number).map_or(Value::Null, Value::Number));
    match field {
        Field::Null => Ok(Value::Null),
        Field::Bool(value) => Ok((*value).into()),
        Field::Byte(number) => Ok((*number).into()),
        Field::Short(number) => Ok((*number).into()),
        Field::Int(number) => Ok((*number).into()),
        Field::Long(number) => Ok((*number).into()),
        Field::UByte(number) => Ok((*number).into()),
        Field::UShort(number) => Ok((*number).into()),
        Field::UInt(number) => Ok((*number).into()),
        Field::ULong(number) => Ok((*number).into()),
        Field::Float16(number) => float(number.to_f64()),
        Field::Float(number) => float(f64::from(*number)),
        Field::Double(number) => float(*number),
        Field::Str(value) => text(value),
        Field::Bytes(bytes) => match decode(bytes.data()) {
            Ok(value) => text(&value),
            Err(_) => Err("that is no text in UTF-8 or UTF-16".to_owned()),
        },
        Field::ListInternal(list) => {
            list.elements().iter().map(value).collect::<Result<_, _>>().map(Value::Array)
        }
        _ => Err("that is neither a number nor a text".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/shards/00000.parquet");

    /// Reads a shard and all of its pictures; gives their sizes, and how many cannot be read.
    fn read(name: &str, bytes: &[u8]) -> (Result<Shard>, Vec<usize>, usize) {
        let file = format!("wuerstchen-{}-{name}.parquet", std::process::id());
        let path = std::env::temp_dir().join(file);
        std::fs::write(&path, bytes).unwrap();
        let wanted = BTreeSet::from(["caption", "width", "pwatermark"]);
        let shard = read_shard(&path, File::open(&path).unwrap(), &wanted);
        let samples = shard.as_ref().map(|shard| &shard.samples[..]).unwrap_or_default();
        let pictures: Vec<_> = samples.iter().map(|sample| sample.place.read(&path)).collect();
        std::fs::remove_file(&path).unwrap();
        let lengths: Vec<_> = pictures.iter().flatten().map(Vec::len).collect();
        let unread = pictures.len() - lengths.len();
        (shard, lengths, unread)
    }

    /// The third row has no picture, and the fifth one begins another group.
    #[test]
    fn rows_are_samples() {
        let (shard, lengths, unread) = read("rows", GOLDEN);
        let Shard { samples, cut_off, unread: counted } = shard.unwrap();
        assert_eq!((samples.len(), lengths.len(), unread, cut_off), (11, 11, 0, None));
        assert_eq!(counted, BTreeMap::from([("rows of the status failed_to_download".into(), 1)]));
        let names: Vec<_> = samples.iter().map(|sample| sample.name.as_str()).collect();
        assert_eq!(names[2..5], ["000000002", "000000004", "000000005"]);
        assert_eq!(lengths[4], 300);
        assert_eq!(samples[4].fields["caption"], "field number 5");
        assert_eq!(
            (&samples[0].fields["width"], &samples[7].fields["pwatermark"]),
            (&40.into(), &Value::Null)
        );
        assert!(!samples[0].fields.contains_key("url"));
    }

    /// Whatever is cut off or changed, there is an error or other content; what panics is caught.
    #[test]
    fn broken_files_are_errors() {
        for length in (4..GOLDEN.len()).step_by(97) {
            let (shard, ..) = read("cut", &GOLDEN[..length]);
            let shard = shard.unwrap();
            assert!(shard.samples.is_empty() && shard.cut_off.is_some(), "{length}");
        }
        for place in (4..GOLDEN.len()).step_by(11) {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = GOLDEN.to_vec();
                bytes[place] ^= change;
                let _ = read("changed", &bytes);
            }
        }
    }
}
