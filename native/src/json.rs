//! JSON as Python writes it.

use std::borrow::Cow;

/// The same with null where it has a number that JSON does not know.
pub(crate) fn with_nulls(text: &str) -> Cow<'_, str> {
    let names = ["NaN", "-Infinity", "Infinity"];
    if !names.iter().any(|name| text.contains(name)) {
        return Cow::Borrowed(text);
    }
    let (mut json, mut rest, mut is_quoted) = (String::new(), text, false);
    while let Some(c) = rest.chars().next() {
        let name = names.into_iter().find(|name| !is_quoted && rest.starts_with(name));
        let length = match (name, c) {
            (Some(name), _) => {
                json.push_str("null");
                name.len()
            }
            // What is escaped closes no text.
            (None, '\\') if is_quoted => {
                let length = rest.chars().take(2).map(char::len_utf8).sum();
                json.push_str(&rest[..length]);
                length
            }
            (None, c) => {
                is_quoted ^= c == '"';
                json.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    Cow::Owned(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_does_not_know_are_null() {
        let json = with_nulls(r#"{"a": NaN, "b": [-Infinity, "NaN \" NaN"], "c": 1}"#);
        assert_eq!(json, r#"{"a": null, "b": [null, "NaN \" NaN"], "c": 1}"#);
    }
}
