//! JSON as Python writes it.

use std::borrow::Cow;

/// The text with `null` in place of NaN and infinities, which JSON does not have.
pub fn with_nulls(text: &str) -> Cow<'_, str> {
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
            // An escaped quote does not end a text.
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

/// Why a text cannot be read as JSON. Python writes NaN and infinities, which serde's message does not mention.
pub(crate) fn reason(text: &str, error: &serde_json::Error) -> String {
    if error.is_syntax() && with_nulls(text) != text {
        return format!(
            "{error}: it has NaN or Infinity, as Python writes them, which JSON does not know: expected a finite \
             number or null"
        );
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn numbers_of_python_are_told_where_they_are_what_is_wrong() {
        let of = |text: &str| reason(text, &serde_json::from_str::<Value>(text).unwrap_err());
        for text in [r#"{"dropout": NaN}"#, r#"{"dropout": -Infinity}"#] {
            let reason = of(text);
            assert!(reason.contains("at line 1") && reason.contains("NaN or Infinity"), "{reason}");
        }
        assert!(!of(r#"{"name": "NaN""#).contains("Python"));
    }

    #[test]
    fn numbers_that_json_does_not_know_are_null() {
        let json = with_nulls(r#"{"a": NaN, "b": [-Infinity, "NaN \" NaN"], "c": 1}"#);
        assert_eq!(json, r#"{"a": null, "b": [null, "NaN \" NaN"], "c": 1}"#);
    }
}
