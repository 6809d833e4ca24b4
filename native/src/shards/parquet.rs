//! Indexes of the Parquet files of img2dataset: where each picture lies.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Once};

use anyhow::{Result, anyhow, bail};
use parquet::basic::{Compression, ConvertedType, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, DataType};
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetStatisticsPolicy, RowGroupMetaData,
};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedPageReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::{Map, Number, Value};

use super::filter::value_of;
use super::index::{Found, MAX_TEXT, Place, Shard};
use crate::pictures;
use crate::terminal::counted;

/// The columns with the name of a sample, and with the status of the download of its picture.
const KEY: &str = "key";
const STATUS: &str = "status";

/// The value of [`STATUS`] in rows that have a picture.
const SUCCESS: &str = "success";

/// The columns in which other programs than img2dataset keep pictures, besides those that are named by their type.
const PICTURES: [&str; 2] = ["image", "img"];

/// The field with the picture where the column has several, as Hugging Face's `datasets` writes them.
const BYTES: &str = ".bytes";

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
    /// The columns with the group's pictures; a row's picture is in the first of them that has one.
    pictures: Vec<ColumnChunkMetaData>,
    rows: usize,
}

thread_local! {
    /// Whether a panic of this thread is caught.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// The result of `read`, or an error where the crate `parquet` panics, as it does at some broken files. Such a panic is
/// not reported as others are.
fn caught<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_CAUGHT.get() {
                report(info);
            }
        }));
    });
    IS_CAUGHT.set(true);
    let read = std::panic::catch_unwind(AssertUnwindSafe(read));
    IS_CAUGHT.set(false);
    read.unwrap_or_else(|_| Err(anyhow!("the Parquet file is broken")))
}

impl Row {
    /// The bytes of the picture. Only the headers are read of pages before the one with the picture.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>> {
        for pictures in &self.group.pictures {
            match caught(|| self.read_in(path, pictures))? {
                // Some programs write no bytes in place of null.
                Some(picture) if !picture.is_empty() => return Ok(picture),
                _ => {}
            }
        }
        bail!("expected a picture in the row, found none")
    }

    fn read_in(&self, path: &Path, pictures: &ColumnChunkMetaData) -> Result<Option<Vec<u8>>> {
        let (file, rows) = (Arc::new(File::open(path)?), self.group.rows);
        let pages = SerializedPageReader::new(file, pictures, rows, None)?;
        let column = pictures.column_descr_ptr();
        let mut column = ColumnReaderImpl::<ByteArrayType>::new(column, Box::new(pages));
        column.skip_records(self.row)?;
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        column.read_records(1, Some(&mut levels), None, &mut values)?;
        let picture = values.first().map(ByteArray::data);
        if let Some(found) = picture.map(<[u8]>::len).filter(|length| *length > MAX_PICTURE) {
            bail!("expected a picture of at most {MAX_PICTURE} bytes, found {found}");
        }
        Ok(picture.map(<[u8]>::to_vec))
    }
}

/// Text by which one picture differs from others that were in its place.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, length) = self.group.pictures[0].byte_range();
        write!(f, "{start} {length} {}", self.row)
    }
}

/// The samples of a shard; `wanted` are the fields that are read. Groups of rows are read one after the other, without
/// their pictures.
pub(super) fn read_shard(path: &Path, file: File, wanted: &BTreeSet<&str>) -> Result<Shard> {
    let mut shard = Shard::default();
    // Statistics are skipped, because the largest and smallest picture of a group say nothing.
    let options =
        ReadOptionsBuilder::new().with_column_stats_policy(ParquetStatisticsPolicy::SkipAll);
    let open = || Ok(SerializedFileReader::new_with_options(file, options.build())?);
    let reader = match caught(open) {
        Ok(reader) => reader,
        Err(error) => {
            shard.faults.push(format!("cannot be read: {error}"));
            return Ok(shard);
        }
    };
    let about = reader.metadata();
    let columns = Columns::of(about.file_metadata().schema_descr(), wanted)
        .and_then(|columns| columns.check_compression(about).map(|()| columns))
        .map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
    let names = about.file_metadata().schema_descr().columns().iter();
    shard.fields.extend(names.map(|column| column.path().parts()[0].clone()));
    let rows = usize::try_from(about.file_metadata().num_rows()).unwrap_or_default();
    for column in &columns.unread {
        shard.unread.insert(format!("the column {column}"), rows);
    }
    if let [first, others @ ..] = &columns.pictures[..]
        && !others.is_empty()
    {
        let schema = about.file_metadata().schema_descr();
        let name = |number: &usize| schema.column(*number).path().string();
        let others: Vec<_> = others.iter().map(name).collect();
        let (first, others) = (name(first), others.join(" and "));
        shard
            .notes
            .insert(format!("pictures in {others} are taken where a row has none in {first}"));
    }
    for number in 0..reader.num_row_groups() {
        match caught(|| read_group(&reader, number, &columns)) {
            Ok(group) => group.add_to(&mut shard, number),
            Err(error) => {
                let rows = usize::try_from(about.row_group(number).num_rows()).unwrap_or_default();
                let rows = counted(rows, "row");
                shard
                    .faults
                    .push(format!("has {rows} (group {number}) that cannot be read: {error}"));
            }
        }
    }
    Ok(shard)
}

/// The values that are read from a group of rows.
struct Rows {
    group: Arc<Group>,
    /// The values of every row, by the names of their columns.
    columns: BTreeMap<String, Cells>,
}

/// The values of a column, row by row.
type Cells = Vec<Result<Value, String>>;

fn read_group(
    reader: &SerializedFileReader<File>,
    number: usize,
    columns: &Columns,
) -> Result<Rows> {
    let group = reader.get_row_group(number)?;
    let rows = usize::try_from(group.metadata().num_rows())?;
    let mut read = BTreeMap::new();
    for &index in &columns.read {
        let about = group.metadata().column(index).column_descr_ptr();
        let cells = cells_of(group.get_column_reader(index)?, &about)?;
        if cells.len() != rows {
            bail!("expected {rows} rows in the column {}, found {}", about.path(), cells.len());
        }
        read.insert(about.path().parts()[0].clone(), cells);
    }
    let pictures = columns.pictures.iter().map(|index| group.metadata().column(*index).clone());
    Ok(Rows { group: Arc::new(Group { pictures: pictures.collect(), rows }), columns: read })
}

impl Rows {
    /// Adds the samples of the group with this number.
    fn add_to(mut self, shard: &mut Shard, number: usize) {
        for row in 0..self.group.rows {
            let mut fields = Map::new();
            for (name, cells) in &mut self.columns {
                match std::mem::replace(&mut cells[row], Ok(Value::Null)) {
                    Ok(value) => drop(fields.insert(name.clone(), value)),
                    Err(fault) => *shard.unread.entry(format!("{name} {fault}")).or_default() += 1,
                }
            }
            if let Some(status) = value_of(&fields, STATUS).and_then(Value::as_str)
                && status != SUCCESS
            {
                *shard.unread.entry(format!("rows of the status {status}")).or_default() += 1;
                continue;
            }
            let key = value_of(&fields, KEY).and_then(Value::as_str).map(str::to_owned);
            shard.samples.push(Found {
                name: key.unwrap_or_else(|| format!("row {row} of group {number}")),
                place: Place::Row(Row { group: self.group.clone(), row }),
                texts: BTreeMap::new(),
                fields,
                fault: None,
            });
        }
    }
}

/// The columns of a file, by their numbers.
struct Columns {
    /// Columns with pictures.
    pictures: Vec<usize>,
    /// Columns that are read for the index.
    read: Vec<usize>,
    /// The names of wanted columns whose type this program does not read.
    unread: BTreeSet<String>,
}

impl Columns {
    fn of(schema: &SchemaDescriptor, wanted: &BTreeSet<&str>) -> Result<Self, String> {
        let all = || schema.columns().iter().enumerate();
        let is_of_pictures = |column: &ColumnDescriptor| {
            let name = column.path().string();
            let name = name.strip_suffix(BYTES).unwrap_or(&name);
            let is_known = |known: &&str| known.eq_ignore_ascii_case(name);
            pictures::ENDINGS.iter().chain(&PICTURES).any(is_known)
        };
        let named: Vec<_> = all().filter(|(_, column)| is_of_pictures(column)).collect();
        let is_of_bytes = |column: &ColumnDescriptor| {
            column.physical_type() == Physical::BYTE_ARRAY
                && column.max_rep_level() == 0
                && column.converted_type() == ConvertedType::NONE
                && column.logical_type_ref().is_none()
        };
        let pictures = named.iter().filter(|(_, column)| is_of_bytes(column));
        let pictures: Vec<_> = pictures.map(|(number, _)| *number).collect();
        if let (true, Some((_, column))) = (pictures.is_empty(), named.first()) {
            let (name, found) = (column.path(), type_of(column));
            return Err(format!(
                "expected the bytes of a picture in each row of the column {name}, found {found}"
            ));
        }
        if pictures.is_empty() {
            let found: Vec<_> = all().map(|(_, column)| column.path().string()).collect();
            return Err(format!(
                "expected pictures in a column image, img or named by their type, such as jpg, or in its field bytes, \
                 found the columns {}; beside tar files, img2dataset writes Parquet files without pictures",
                found.join(", ")
            ));
        }
        let is_wanted = |name: &str| {
            let mut wanted = wanted.iter().chain(&[KEY, STATUS]);
            wanted.any(|wanted| wanted.eq_ignore_ascii_case(name))
        };
        let (mut read, mut unread) = (Vec::new(), BTreeSet::new());
        for (number, column) in all().filter(|(number, _)| !pictures.contains(number)) {
            let name = &column.path().parts()[0];
            let parts = all().filter(|(_, column)| column.path().parts()[0] == *name).count();
            if is_of_pictures(column) {
                unread.insert(format!("{} of {}", column.path(), type_of(column)));
            } else if is_wanted(name) && parts == 1 && is_read(column) {
                read.push(number);
            } else if is_wanted(name) {
                unread.insert(name.clone());
            }
        }
        Ok(Self { pictures, read, unread })
    }

    /// Fails where a column is compressed in a way that this program does not read.
    fn check_compression(&self, about: &ParquetMetaData) -> Result<(), String> {
        let numbers = || self.pictures.iter().chain(&self.read);
        let compression =
            |group: &RowGroupMetaData, number: usize| group.column(number).compression();
        let all = about.row_groups().iter();
        let mut all = all.flat_map(|group| numbers().map(|number| compression(group, *number)));
        let is_read = |found: &Compression| {
            use Compression::{GZIP, SNAPPY, UNCOMPRESSED, ZSTD};
            matches!(found, UNCOMPRESSED | SNAPPY | GZIP(_) | ZSTD(_))
        };
        match all.find(|found| !is_read(found)) {
            Some(found) => Err(format!(
                "expected columns that are compressed with snappy, gzip or zstd, or not at all, found {found}"
            )),
            None => Ok(()),
        }
    }
}

/// The type of a column, for messages.
fn type_of(column: &ColumnDescriptor) -> String {
    let is_list = column.max_rep_level() > 0;
    let of = match (column.physical_type(), column.converted_type()) {
        (Physical::BYTE_ARRAY, ConvertedType::UTF8) => "texts (UTF8)".to_owned(),
        (physical, ConvertedType::NONE) => physical.to_string(),
        (physical, converted) => format!("{physical} ({converted})"),
    };
    if is_list { format!("lists of {of}") } else { of }
}

/// Whole numbers without a sign.
const UNSIGNED: [ConvertedType; 4] =
    [ConvertedType::UINT_8, ConvertedType::UINT_16, ConvertedType::UINT_32, ConvertedType::UINT_64];

/// Whether a column holds numbers or texts, or lists of texts.
fn is_read(column: &ColumnDescriptor) -> bool {
    use ConvertedType::{ENUM, INT_8, INT_16, INT_32, INT_64, JSON, NONE, UTF8};
    let is_list = column.max_rep_level() == 1;
    let is_flat = column.path().parts().len() == 1;
    match column.physical_type() {
        Physical::BYTE_ARRAY => {
            (is_flat || is_list) && matches!(column.converted_type(), NONE | UTF8 | ENUM | JSON)
        }
        Physical::INT32 | Physical::INT64 => {
            is_flat
                && (matches!(column.converted_type(), NONE | INT_8 | INT_16 | INT_32 | INT_64)
                    || UNSIGNED.contains(&column.converted_type()))
        }
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => is_flat,
        Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
    }
}

/// The values of a column as a `.json` file would have them.
fn cells_of(column: ColumnReader, about: &ColumnDescriptor) -> Result<Cells> {
    fn float(number: f64) -> Value {
        Number::from_f64(number).map_or(Value::Null, Value::Number)
    }
    let is_unsigned = UNSIGNED.contains(&about.converted_type());
    match column {
        ColumnReader::BoolColumnReader(column) => cells(column, about, |value| Ok((*value).into())),
        ColumnReader::Int32ColumnReader(column) => cells(column, about, |value| {
            Ok(if is_unsigned { value.cast_unsigned().into() } else { (*value).into() })
        }),
        ColumnReader::Int64ColumnReader(column) => cells(column, about, |value| {
            Ok(if is_unsigned { value.cast_unsigned().into() } else { (*value).into() })
        }),
        ColumnReader::FloatColumnReader(column) => {
            cells(column, about, |value| Ok(float(f64::from(*value))))
        }
        ColumnReader::DoubleColumnReader(column) => cells(column, about, |value| Ok(float(*value))),
        ColumnReader::ByteArrayColumnReader(column) => cells(column, about, text),
        _ => bail!("expected numbers or texts in the column {}", about.path()),
    }
}

/// The text of some bytes, or what is wrong with them.
fn text(bytes: &ByteArray) -> Result<Value, String> {
    match std::str::from_utf8(bytes.data()) {
        _ if bytes.len() as u64 > MAX_TEXT => Err(format!("of more than {MAX_TEXT} bytes")),
        Ok(text) => Ok(Value::from(text)),
        Err(_) => Err("that is no text in UTF-8".to_owned()),
    }
}

/// Number of records that are read at a time.
const BATCH: usize = 1024;

/// The values of a column row by row: where rows are lists, each is an array of those that are there.
fn cells<T: DataType>(
    mut column: ColumnReaderImpl<T>,
    about: &ColumnDescriptor,
    value: impl Fn(&T::T) -> Result<Value, String>,
) -> Result<Cells> {
    let (is_list, present) = (about.max_rep_level() > 0, about.max_def_level());
    let mut cells = Cells::new();
    loop {
        let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let read =
            column.read_records(BATCH, Some(&mut defined), Some(&mut repeated), &mut values)?;
        if read.0 == 0 {
            return Ok(cells);
        }
        // Columns without missing values have no levels.
        let levels = defined.len().max(values.len());
        let mut values = values.iter();
        for level in 0..levels {
            let is_there = defined.get(level).is_none_or(|defined| *defined == present);
            let cell = if is_there { values.next().map(&value) } else { None };
            let begins = repeated.get(level).is_none_or(|repeated| *repeated == 0);
            match (cell, is_list, cells.last_mut()) {
                (cell, false, _) => cells.push(cell.unwrap_or(Ok(Value::Null))),
                (cell, true, last) => {
                    let last = if begins {
                        cells.push(Ok(Value::Array(Vec::new())));
                        cells.last_mut()
                    } else {
                        last
                    };
                    match (last, cell) {
                        (Some(Ok(Value::Array(list))), Some(Ok(value))) => list.push(value),
                        (Some(last), Some(Err(fault))) => *last = Err(fault),
                        _ => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

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
        let Shard { samples, faults, unread: counted, .. } = shard.unwrap();
        assert_eq!((samples.len(), lengths.len(), unread, faults.len()), (11, 11, 0, 0));
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

    /// A file of one group of rows; each column has the bytes of every row, or none.
    fn write(schema: &str, columns: &[&[Option<&str>]]) -> Vec<u8> {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for rows in columns {
            let levels: Vec<_> = rows.iter().map(|row| i16::from(row.is_some())).collect();
            let values: Vec<_> = rows.iter().flatten().map(|row| ByteArray::from(*row)).collect();
            let mut column = group.next_column().unwrap().unwrap();
            let typed = column.typed::<ByteArrayType>();
            typed.write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.into_inner().unwrap()
    }

    /// An empty picture is none, so the next column counts.
    #[test]
    fn the_first_picture_that_is_not_empty_is_taken() {
        let schema =
            "message m { optional binary jpg; optional group img { required binary bytes; } }";
        let file = write(schema, &[&[Some("1"), Some(""), None], &[Some("22"), Some("333"), None]]);
        let (shard, lengths, unread) = read("empty", &file);
        assert_eq!(shard.unwrap().samples.len(), 3);
        assert_eq!((lengths, unread), (vec![1, 3], 1));
    }

    #[test]
    fn names_of_columns_may_be_in_any_case() {
        let schema = "message m { optional binary JPG; optional binary KEY (UTF8);
            optional binary Status (UTF8); }";
        let [pictures, keys] = [[Some("1"), Some("2")], [Some("a"), Some("b")]];
        let file = write(schema, &[&pictures, &keys, &[Some("success"), Some("failed")]]);
        let Shard { samples, unread, .. } = read("case", &file).0.unwrap();
        assert_eq!(samples.iter().map(|sample| &*sample.name).collect::<Vec<_>>(), ["a"]);
        assert_eq!(unread, BTreeMap::from([("rows of the status failed".to_owned(), 1)]));
    }

    #[test]
    fn texts_in_place_of_pictures_are_refused() {
        let texts = write("message m { optional binary image (UTF8); }", &[&[Some("a.png")]]);
        let error = read("texts", &texts).0.err().unwrap().to_string();
        let expected = "expected the bytes of a picture in each row of the column \"image\", found texts (UTF8)";
        assert!(error.ends_with(expected), "{error}");
        // Beside pictures, they are told.
        let schema = "message m { optional binary png; optional binary image (UTF8); }";
        let both = write(schema, &[&[Some("1")], &[Some("a.png")]]);
        let (shard, lengths, _) = read("both", &both);
        let told = "the column \"image\" of texts (UTF8)".to_owned();
        assert_eq!((shard.unwrap().unread, lengths), (BTreeMap::from([(told, 1)]), vec![1]));
    }

    /// Whatever is cut off or changed, there is an error or other content; what panics is caught.
    #[test]
    fn broken_files_are_errors() {
        for length in (4..GOLDEN.len()).step_by(97) {
            let (shard, ..) = read("cut", &GOLDEN[..length]);
            let shard = shard.unwrap();
            assert!(shard.samples.is_empty() && shard.faults.len() == 1, "{length}");
        }
        let mut broken = 0;
        for place in (4..GOLDEN.len()).step_by(11) {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = GOLDEN.to_vec();
                bytes[place] ^= change;
                let Ok(shard) = read("changed", &bytes).0 else { continue };
                let is_told = shard.faults.iter().any(|fault| fault.contains(" rows (group "));
                // One of three groups; the others are read.
                broken += usize::from(is_told && shard.samples.len() >= 6);
            }
        }
        assert!(broken > 10, "{broken} broken groups");
    }
}
