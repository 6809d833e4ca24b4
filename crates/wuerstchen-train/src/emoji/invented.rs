//! Art for tests: patterns of coloured squares instead of emoji.

use serde_json::json;

use super::art::{Art, ArtFiles, PackFiles};
use super::words::Style;

/// Concepts of [`invented_art`].
pub(super) const CONCEPTS: usize = 60;

/// [`CONCEPTS`] concepts, `thing 0` and so on, with the keywords `item 0` (of one concept) and `stuff` (of
/// all), and a flag, which is no concept. The old pack draws every second one.
pub(super) fn invented_art() -> Art {
    Art::new(&invented_files()).unwrap()
}

pub(super) fn invented_files() -> ArtFiles {
    let points = |i: usize| format!("1F{i:03X}");
    let emoji = |i: usize, group: u32, label: String| {
        json!({"hexcode": format!("{}-FE0F", points(i)), "label": label, "group": group,
               "subgroup": 0, "tags": [format!("item {i}"), "stuff"]})
    };
    let mut names: Vec<_> = (0..CONCEPTS).map(|i| emoji(i, 3, format!("Thing: {i}"))).collect();
    names.push(emoji(CONCEPTS, 9, "flag".into()));
    let packs = Style::ALL.map(|style| {
        let drawn = (0..=CONCEPTS).filter(|i| style != Style::Classic || i % 2 == 0);
        let icons: serde_json::Map<_, _> =
            drawn.map(|i| (format!("icon-{i}"), json!({"body": pattern(i, style)}))).collect();
        let chars: serde_json::Map<_, _> = (0..=CONCEPTS)
            .filter(|_| style != Style::Classic)
            .map(|i| (points(i).to_lowercase(), json!(format!("icon-{i}"))))
            .collect();
        PackFiles {
            icons: json!({"icons": icons, "width": 4, "height": 4}).to_string(),
            chars: json!(chars).to_string(),
        }
    });
    ArtFiles { names: json!(names).to_string(), packs }
}

/// A cross of gray, so that every pattern fills its square, with up to six squares of different shades.
fn pattern(i: usize, style: Style) -> String {
    let mut body = String::from(
        r##"<rect x="1.5" width="1" height="4" fill="#707070"/>
            <rect y="1.5" width="4" height="1" fill="#707070"/>"##,
    );
    for bit in (0..6).filter(|bit| (i + 1) >> bit & 1 == 1) {
        let [x, y] = [[0.0, 0.0], [2.5, 0.0], [0.0, 2.5], [2.5, 2.5], [1.5, 0.5], [1.5, 2.5]][bit];
        let (side, shade) = (if bit < 4 { 1.5 } else { 1.0 }, 50 * style as usize + 20 * bit);
        body += &format!(
            r#"<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="rgb({},{shade},30)"/>"#,
            250 - 30 * bit,
        );
    }
    body
}
