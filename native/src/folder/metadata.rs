//! Files that tell the captions of the pictures beside them, as the folders of Hugging Face's `datasets`
//! have them: `metadata.jsonl` or `metadata.csv`.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use wuerstchen::fs::{has_extension, read_text};
use wuerstchen::json::with_nulls;

use crate::shards::MAX_TEXT;

/// A line about a picture.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) file_name: String,
    pub(super) captions: Vec<String>,
    /// Whether a cell of a caption stands for none.
    pub(super) has_null: bool,
}

/// The fields of an object in JSON, including those that occur twice.
pub(crate) struct Entry(pub(crate) Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Entry;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let next = || map.next_entry().transpose();
                Ok(Entry(std::iter::from_fn(next).collect::<Result<_, _>>()?))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl Entry {
    /// The value of a field, whose name may be in any case; null where there is no such field.
    fn field(&self, field: &str) -> Result<Value> {
        let found = self.0.iter().filter(|(name, _)| name.eq_ignore_ascii_case(field));
        match &found.collect::<Vec<_>>()[..] {
            [] => Ok(Value::Null),
            [(_, value)] => Ok(value.clone()),
            several => bail!("expected one field {field:?}, found {}", several.len()),
        }
    }
}

/// The field or column with the name of the picture.
const FILE_NAME: &str = "file_name";

/// The fields or columns of a row that tell captions.
pub(super) const CAPTIONS: [&str; 4] = ["text", "caption", "captions", "prompt"];

/// What Python's programs write into the cells of tables where there is no text.
pub(super) const NULLS: [&str; 5] = ["nan", "NaN", "None", "NULL", "null"];

/// The captions in a field: one text, several or none.
fn texts_of(field: &str, value: Value) -> Result<Vec<String>> {
    let values = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(values) => values,
        value => vec![value],
    };
    let text = |value| match value {
        // What has zeros in it is refused in tables and text files as well.
        Value::String(text) if text.contains('\0') => {
            bail!("expected {field:?} to be a text, found one with a zero byte")
        }
        Value::String(text) => Ok(text),
        other => bail!("expected {field:?} to be a text or a list of texts, found {other}"),
    };
    values.into_iter().map(text).collect()
}

/// A row, and the number of its line.
pub(super) type Numbered = (u64, Row);

/// Reads the rows of a file; a picture may have several.
pub(super) fn read_rows(path: &Path) -> Result<Vec<Numbered>> {
    let text = read_text(path)?;
    let rows = if has_extension(path, "csv") { csv_rows(&text) } else { json_rows(&text) };
    rows.and_then(with_short_captions).with_context(|| path.display().to_string())
}

/// The rows, if no caption is longer than a text file may be.
fn with_short_captions(rows: Vec<Numbered>) -> Result<Vec<Numbered>> {
    for (line, row) in &rows {
        let longest = row.captions.iter().map(String::len).max().unwrap_or(0);
        if longest as u64 > MAX_TEXT {
            bail!("line {line}: expected a caption of at most {MAX_TEXT} bytes, found {longest}");
        }
    }
    Ok(rows)
}

fn json_rows(text: &str) -> Result<Vec<Numbered>> {
    if text.trim_start().starts_with('[') {
        bail!("expected one object a line, found a JSON array");
    }
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(number, line)| {
        let read = || {
            let expected = "expected {\"file_name\": …, \"text\": …}";
            let entry: Entry = serde_json::from_str(&with_nulls(line)).map_err(|error| {
                if error.is_eof() && line.trim_start().starts_with('{') {
                    anyhow!("{expected} as one line, found the beginning of an object")
                } else {
                    anyhow!(error).context(expected)
                }
            })?;
            let Value::String(file_name) = entry.field(FILE_NAME)? else {
                bail!("{expected}: missing the text \"file_name\"");
            };
            if file_name.is_empty() {
                bail!("expected the name of a picture as \"file_name\", found an empty text");
            }
            let mut captions = Vec::new();
            for field in CAPTIONS {
                captions.extend(texts_of(field, entry.field(field)?)?);
            }
            Ok::<_, anyhow::Error>((number, row(file_name, captions.into_iter())))
        };
        read().with_context(|| format!("line {number}"))
    });
    rows.collect()
}

fn csv_rows(text: &str) -> Result<Vec<Numbered>> {
    let header = text.lines().next().unwrap_or_default();
    // Spreadsheets write semicolons in languages whose decimal mark is a comma.
    let names_pictures = |separator: &u8| {
        let mut cells = header.split(char::from(*separator));
        cells.any(|cell| cell.trim().trim_matches('"').eq_ignore_ascii_case(FILE_NAME))
    };
    let separator = [b',', b';', b'\t'].into_iter().find(names_pictures).unwrap_or(b',');
    check_quotes(text, char::from(separator))?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator)
        .trim(csv::Trim::Headers)
        .from_reader(text.as_bytes());
    let headers = reader.headers()?.clone();
    let named =
        |name: &str| headers.iter().filter(|header| header.eq_ignore_ascii_case(name)).count();
    if let Some(name) = [FILE_NAME].into_iter().chain(CAPTIONS).find(|name| named(name) > 1) {
        bail!("line 1: expected one column {name}, found {}", named(name));
    }
    let column = |name: &str| headers.iter().position(|header| header.eq_ignore_ascii_case(name));
    let captions: Vec<_> = CAPTIONS.into_iter().filter_map(column).collect();
    let (Some(file_name), false) = (column(FILE_NAME), captions.is_empty()) else {
        let found = headers.iter().collect::<Vec<_>>().join(", ");
        let captions = CAPTIONS.join(", ");
        bail!("line 1: expected the column file_name and one of {captions}, found {found}");
    };
    // Spreadsheets write rows of empty cells behind the last one.
    let is_empty = |record: &csv::StringRecord| record.iter().all(|cell| cell.trim().is_empty());
    let records = reader.records().filter(|record| !record.as_ref().is_ok_and(is_empty));
    let rows = records.map(|record| {
        let record = record.map_err(|error| match error.kind() {
            csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
                let line = pos.as_ref().map_or(0, csv::Position::line);
                let quotes = "a cell with a separator or line break stands in quotes";
                anyhow!("line {line}: expected {expected_len} cells, as in line 1, found {len}: {quotes}")
            }
            _ => error.into(),
        })?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |column: usize| record.get(column).unwrap_or_default();
        if cell(file_name).is_empty() {
            bail!("line {line}: expected the name of a picture in the column file_name, found an empty cell");
        }
        if let Some(list) = captions.iter().map(|&column| cell(column)).find(|cell| is_list(cell)) {
            bail!("line {line}: expected a caption, found the list {list}: lists are for metadata.jsonl");
        }
        let is_null = |cell: &&str| NULLS.contains(&cell.trim());
        let (nulls, captions): (Vec<_>, Vec<_>) =
            captions.iter().map(|&column| cell(column)).partition(is_null);
        let captions = captions.into_iter().map(str::to_owned);
        let row = row(cell(file_name).to_owned(), captions);
        Ok((line, Row { has_null: !nulls.is_empty(), ..row }))
    });
    rows.collect()
}

/// Whether a cell is a list of texts, or texts with names, as Python and JSON write them.
fn is_list(cell: &str) -> bool {
    let inside = |(open, close)| cell.trim().strip_prefix(open)?.strip_suffix(close);
    let begins_a_text = |inside: &str| inside.trim_start().starts_with(['\'', '"']);
    [('[', ']'), ('(', ')'), ('{', '}')].into_iter().any(|brackets| {
        inside(brackets).is_some_and(|inside| {
            begins_a_text(inside) || inside.trim().is_empty() && brackets.0 == '['
        })
    })
}

/// The place of a character in a cell of a table.
#[derive(Clone, Copy)]
enum Place {
    Start,
    /// After spaces at the start.
    Spaces,
    Plain,
    /// In a quoted cell, whose opening quote stands in this line.
    Quoted(usize),
    /// After the quote that closes the cell, or after the first of two quotes inside it.
    Closed(usize),
}

/// Fails where a quote that opens a cell is not closed at the cell's end: all rows up to the next quote
/// would be taken for a part of the cell. Fails also where spaces stand before it, because it would be taken for a part
/// of the text.
fn check_quotes(text: &str, separator: char) -> Result<()> {
    let (mut place, mut line) = (Place::Start, 1);
    for character in text.chars() {
        place = match (place, character) {
            (Place::Quoted(opened), '"') => Place::Closed(opened),
            (Place::Quoted(opened), _) | (Place::Closed(opened), '"') => Place::Quoted(opened),
            (_, '\n' | '\r') => Place::Start,
            (_, character) if character == separator => Place::Start,
            (Place::Closed(opened), character) if !character.is_whitespace() => {
                bail!("line {opened}: a quote is not closed at the end of its cell")
            }
            (Place::Start, '"') => Place::Quoted(line),
            (Place::Spaces, '"') => {
                bail!(
                    "line {line}: found white space before the quote that opens a cell: remove it"
                )
            }
            (Place::Start | Place::Spaces, character) if character.is_whitespace() => Place::Spaces,
            _ => Place::Plain,
        };
        line += usize::from(character == '\n');
    }
    match place {
        Place::Quoted(opened) => bail!("line {opened}: a quote is not closed"),
        _ => Ok(()),
    }
}

/// A row with the captions that are not blank, each once.
fn row(file_name: String, captions: impl Iterator<Item = String>) -> Row {
    let mut different: Vec<String> = Vec::new();
    for caption in trimmed(captions) {
        if !different.contains(&caption) {
            different.push(caption);
        }
    }
    Row { file_name, captions: different, has_null: false }
}

/// The captions that are not blank, trimmed.
pub(super) fn trimmed<S: AsRef<str>>(captions: impl Iterator<Item = S>) -> Vec<String> {
    // Files that were put together have byte-order marks in the middle.
    let blank = |c: char| c.is_whitespace() || c == '\u{feff}';
    let captions = captions.map(|caption| caption.as_ref().trim_matches(blank).to_owned());
    captions.filter(|caption| !caption.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn without_lines(rows: Result<Vec<Numbered>>) -> Result<Vec<Row>> {
        Ok(rows?.into_iter().map(|(_, row)| row).collect())
    }

    fn json_rows(text: &str) -> Result<Vec<Row>> {
        without_lines(super::json_rows(text))
    }

    fn csv_rows(text: &str) -> Result<Vec<Row>> {
        without_lines(super::csv_rows(text))
    }

    #[test]
    fn rows_have_the_numbers_of_their_lines() {
        let lines = |rows: Result<Vec<Numbered>>| {
            rows.unwrap().iter().map(|(line, _)| *line).collect::<Vec<_>>()
        };
        let row = r#"{"file_name": "a.png", "text": "a fox"}"#;
        assert_eq!(lines(super::json_rows(&format!("{row}\n\n{row}\n"))), [1, 3]);
        let table = "file_name,text\na.png,\"a\nfox\"\nb.png,a dog\n";
        assert_eq!(lines(super::csv_rows(table)), [2, 4]);
    }

    fn expected(rows: &[(&str, &[&str])]) -> Vec<Row> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let row = |(file, captions): &(&str, &[&str])| Row {
            file_name: (*file).to_owned(),
            captions: owned(captions),
            has_null: false,
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn text_and_caption_are_both_captions() {
        let rows = [
            r#"{"file_name": "a.png", "text": " a fox ", "caption": "a red fox"}"#,
            "",
            r#"{"file_name": "a.png", "text": "a fox", "caption": "a fox", "width": 3}"#,
            r#"{"file_name": "b.png", "caption": ["one", "two"]}"#,
            r#"{"file_name": "c.png", "text": null, "score": NaN}"#,
            r#"{"file_name": "d.png", "captions": ["three", "four"], "prompt": "five"}"#,
        ];
        let found = json_rows(&rows.join("\n")).unwrap();
        let captions: [(&str, &[&str]); 5] = [
            ("a.png", &["a fox", "a red fox"]),
            ("a.png", &["a fox"]),
            ("b.png", &["one", "two"]),
            ("c.png", &[]),
            ("d.png", &["three", "four", "five"]),
        ];
        assert_eq!(found, expected(&captions));
    }

    #[test]
    fn tables_have_columns_of_these_names() {
        let captions: [(&str, &[&str]); 2] =
            [("a.png", &["a fox, red"]), ("b.png", &["a \"fox\"\nin snow"])];
        let quoted = "\"a fox, red\"\nb.png,2,\"a \"\"fox\"\"\nin snow\"\n";
        let commas = format!("file_name,id,text\na.png,1,{quoted}");
        assert_eq!(csv_rows(&commas).unwrap(), expected(&captions));
        let prompts = "Prompt,file_name\n\"a fox, red\",a.png\n";
        assert_eq!(csv_rows(prompts).unwrap(), expected(&captions[..1]));
        let semicolons = "text;file_name\r\na fox, red;a.png\r\n";
        assert_eq!(csv_rows(semicolons).unwrap(), expected(&captions[..1]));
        let error = csv_rows("image,label\na.png,x\n").unwrap_err().to_string();
        let columns = "expected the column file_name and one of text, caption, captions, prompt";
        assert_eq!(error, format!("line 1: {columns}, found image, label"));
        assert!(csv_rows("file_name,text\na.png\n").is_err());
        let commas = csv_rows("file_name,text\na.png,x, y\n").unwrap_err().to_string();
        assert_eq!(
            commas,
            "line 2: expected 2 cells, as in line 1, found 3: a cell with a separator or line break stands in quotes"
        );
        let empty_rows = "file_name,text\na.png,\"a fox, red\"\n,\n , \n";
        assert_eq!(csv_rows(empty_rows).unwrap(), expected(&captions[..1]));
        let unnamed = csv_rows("file_name,text\na.png,a fox\n,a dog\n").unwrap_err().to_string();
        assert!(unnamed.starts_with("line 3: expected the name of a picture"), "{unnamed}");
        let list = csv_rows("file_name,text\na.png,\"['a fox', 'a dog']\"\n").unwrap_err();
        assert!(list.to_string().contains("found the list ['a fox', 'a dog']"), "{list}");
        for list in ["[\"it's a fox\", 'a dog']", "[]", "[ 'a' ]", "('a', 'b')", "{'en': 'a'}"] {
            assert!(is_list(list), "{list}");
        }
        for text in ["[a fox]", "(a fox:1.2)", "a fox", "()", "'a'", "[[very] red]"] {
            assert!(!is_list(text), "{text}");
        }
        let long =
            vec![(7, row("a.png".to_owned(), ["x".repeat(MAX_TEXT as usize + 1)].into_iter()))];
        let error = with_short_captions(long).unwrap_err().to_string();
        assert_eq!(error, "line 7: expected a caption of at most 1048576 bytes, found 1048577");
    }

    #[test]
    fn names_of_columns_and_fields_may_be_in_capitals() {
        let captions: [(&str, &[&str]); 1] = [("a.png", &["a fox"])];
        assert_eq!(csv_rows("File_Name,TEXT\na.png,a fox\n").unwrap(), expected(&captions));
        let line = r#"{"FILE_NAME": "a.png", "Text": "a fox"}"#;
        assert_eq!(json_rows(line).unwrap(), expected(&captions));
        let twice = csv_rows("file_name,text,Text\na.png,a fox,b\n").unwrap_err().to_string();
        assert_eq!(twice, "line 1: expected one column text, found 2");
        let twice = json_rows(r#"{"file_name": "a.png", "text": "a", "TEXT": "b"}"#).unwrap_err();
        assert_eq!(format!("{twice:#}"), "line 1: expected one field \"text\", found 2");
    }

    /// Otherwise the rows after the quote would be lost.
    #[test]
    fn quotes_that_are_not_closed_are_named() {
        let error = |rows: &str| {
            let table = format!("file_name,text\na.png,\"two\nlines\"\n{rows}");
            csv_rows(&table).unwrap_err().to_string()
        };
        assert_eq!(error("b.png,\"a fox\nc.png,a dog\n"), "line 4: a quote is not closed");
        let closed = error("b.png,\"a fox\nc.png,\"a dog\"\n");
        assert_eq!(closed, "line 4: a quote is not closed at the end of its cell");
        let spaced = error("b.png, \"a fox\"\n");
        let expected = "line 4: found white space before the quote that opens a cell: remove it";
        assert_eq!(spaced, expected);
    }

    #[test]
    fn what_python_writes_for_no_text_is_no_caption() {
        let rows = csv_rows("file_name,text,caption\na.png,nan,a fox\nb.png,nano,None\n").unwrap();
        let found: Vec<_> =
            rows.iter().map(|row| (row.captions[0].as_str(), row.has_null)).collect();
        assert_eq!(found, [("a fox", true), ("nano", true)]);
    }

    /// A comma in the header may belong to the name of a column.
    #[test]
    fn the_separator_is_the_one_beside_the_names_of_files() {
        for table in
            ["file_name;\"text\";\"a, b\"\na.png;x, y;z\n", "file_name;text;a, b\na.png;x, y;z\n"]
        {
            assert_eq!(csv_rows(table).unwrap(), expected(&[("a.png", &["x, y"])]), "{table}");
        }
        assert!(
            csv_rows("file_name,text\na.png,a 5\" disk\nb.png,\"a \"\"5\"\" disk\" \n").is_ok()
        );
    }

    #[test]
    fn lines_that_are_no_rows_say_what_is_expected() {
        let error = |text: &str| format!("{:#}", json_rows(text).unwrap_err());
        let array = error(r#" [{"file_name": "a.png", "text": "a fox"}]"#);
        assert_eq!(array, "expected one object a line, found a JSON array");
        let pretty = error("{\n  \"file_name\": \"a.png\"\n}");
        assert!(pretty.ends_with("as one line, found the beginning of an object"), "{pretty}");
        let number = error("\n{\"file_name\": \"a.png\", \"text\": 7}");
        let expected = r#"line 2: expected "text" to be a text or a list of texts, found 7"#;
        assert_eq!(number, expected);
        let list = error(r#"{"file_name": "a.png", "caption": ["a fox", null]}"#);
        assert!(
            list.ends_with(r#""caption" to be a text or a list of texts, found null"#),
            "{list}"
        );
        let zero = error(r#"{"file_name": "a.png", "text": "a\u0000b"}"#);
        assert!(
            zero.ends_with(r#"expected "text" to be a text, found one with a zero byte"#),
            "{zero}"
        );
        let name = error(r#"{"image": "a.png"}"#);
        assert!(
            name.contains(r#"line 1: expected {"file_name": …, "text": …}: missing"#),
            "{name}"
        );
    }

    proptest! {
        /// Whatever a file holds is read or refused; what was written as rows is read as them.
        #[test]
        fn rows_are_read_as_they_were_written(
            rows in prop::collection::vec(("\\w\\PC{0,11}", "[^\u{feff}\u{0}]{0,12}"), 0..5),
            noise in "\\PC{0,40}",
        ) {
            let _ = (json_rows(&noise), csv_rows(&noise));
            let expected: Vec<_> = rows.iter().map(|(file, text)| {
                Row { file_name: file.clone(), captions: trimmed([text].into_iter()), has_null: false }
            }).collect();
            let lines = rows.iter().map(|(file, text)| {
                serde_json::json!({"file_name": file, "text": text}).to_string()
            });
            prop_assert_eq!(&json_rows(&lines.collect::<Vec<_>>().join("\n")).unwrap(), &expected);
            let mut table = csv::Writer::from_writer(Vec::new());
            table.write_record(["file_name", "text"]).unwrap();
            for (file, text) in &rows {
                table.write_record([file, text]).unwrap();
            }
            let table = String::from_utf8(table.into_inner().unwrap()).unwrap();
            prop_assert_eq!(&csv_rows(&table).unwrap(), &expected);
        }
    }
}
