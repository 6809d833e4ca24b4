//! The art: which concepts there are, what they are called, and how each pack draws them.

use std::collections::{BTreeMap, HashMap};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg;
use serde::Deserialize;

use super::held_out::is_unseen_by_stage_a;
use super::scene::Thing;
use super::words::Style;

/// Side of the small pictures that tell how a concept looks, in pixels.
const THUMBNAIL_SIDE: u32 = 16;

/// A keyword that more than this many concepts share is dropped, because it does not tell them apart.
const MAX_CONCEPTS_OF_A_KEYWORD: usize = 3;

/// Groups and subgroups of emojibase that are no concepts: flags, parts of other emoji, and letters,
/// digits and controls on buttons.
const EXCLUDED_GROUPS: [u32; 2] = [2, 9];
const EXCLUDED_SUBGROUPS: [u32; 3] = [88, 94, 95];

/// The group of emojibase for signs, whose art says less than its name.
const SYMBOLS: u32 = 8;

/// Fewest concepts: Stage A never sees a tenth of them, and that tenth must not be empty.
const MIN_CONCEPTS: usize = 40;

/// Why the art cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtError {
    /// A file is not what it should be.
    #[error("{file}: {reason}")]
    File {
        /// Its path in the folder of the art.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Too few concepts are drawn by every pack that must draw all of them.
    #[error(
        "expected at least {MIN_CONCEPTS} concepts that noto, fluent-emoji-flat and twemoji draw, found {0}"
    )]
    Few(usize),
    /// No concept is kept from Stage A, which evaluation needs.
    #[error("none of the concepts is among the tenth that is kept from Stage A, to measure it by")]
    AllSeen,
}

/// The texts of the art's files.
pub struct ArtFiles {
    /// `en/data.json` of emojibase-data.
    pub names: String,
    /// The packs, in the order of `Style::ALL`.
    pub packs: [PackFiles; Style::ALL.len()],
}

/// The texts of one of Iconify's packs.
pub struct PackFiles {
    /// `icons.json`: the bodies of the SVG files by name.
    pub icons: String,
    /// `chars.json`: the names by code points.
    pub chars: String,
}

/// Something that can be named and drawn.
pub struct Concept {
    /// Its name, such as `slice of pizza`, in lower case, without punctuation.
    pub name: String,
    /// Words that tell it from nearly all other concepts.
    pub keywords: Vec<String>,
    /// How often it is drawn, relative to the others.
    pub(super) weight: u32,
    icons: [Option<Icon>; Style::ALL.len()],
}

struct Icon {
    svg: String,
    /// The picture at [`THUMBNAIL_SIDE`].
    thumbnail: Pixmap,
}

/// All concepts.
pub struct Art {
    concepts: Vec<Concept>,
    /// Numbers of concepts, each as often as its weight says.
    lots: Vec<usize>,
}

#[derive(Deserialize)]
struct Emoji {
    hexcode: String,
    label: String,
    #[serde(default)]
    tags: Vec<String>,
    group: Option<u32>,
    subgroup: Option<u32>,
}

#[derive(Deserialize)]
struct Pack {
    icons: HashMap<String, Body>,
    #[serde(default)]
    aliases: HashMap<String, Alias>,
    #[serde(default = "sixteen")]
    width: f32,
    #[serde(default = "sixteen")]
    height: f32,
}

/// The size that Iconify assumes for an icon that states none.
fn sixteen() -> f32 {
    16.0
}

#[derive(Deserialize)]
struct Body {
    body: String,
    #[serde(default)]
    left: f32,
    #[serde(default)]
    top: f32,
    width: Option<f32>,
    height: Option<f32>,
}

#[derive(Deserialize)]
struct Alias {
    parent: String,
}

impl Pack {
    fn svg(&self, name: &str) -> Option<String> {
        let name = self.aliases.get(name).map_or(name, |alias| &alias.parent);
        let Body { body, left, top, width, height } = self.icons.get(name)?;
        let (width, height) = (width.unwrap_or(self.width), height.unwrap_or(self.height));
        Some(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
             viewBox=\"{left} {top} {width} {height}\">{body}</svg>"
        ))
    }
}

impl Art {
    /// Joins names and packs by their code points.
    ///
    /// A concept is drawn by all packs but [`Style::Classic`], which is older than many emoji.
    ///
    /// # Errors
    ///
    /// A file is not what it should be, there are too few concepts, or none of them is kept from Stage A.
    pub fn new(files: &ArtFiles) -> Result<Self, ArtError> {
        let names: Vec<Emoji> = parse("emojibase-data/en/data.json", &files.names)?;
        let mut packs = Vec::new();
        for (style, pack) in Style::ALL.into_iter().zip(&files.packs) {
            let icons: Pack = parse(&format!("{}/icons.json", style.pack()), &pack.icons)?;
            let file = format!("{}/chars.json", style.pack());
            let chars: HashMap<String, String> = parse(&file, &pack.chars)?;
            let chars: HashMap<_, _> =
                chars.into_iter().map(|(points, name)| (normal(&points), name)).collect();
            packs.push((icons, chars));
        }
        let mut concepts = Vec::new();
        for emoji in names.iter().filter(|emoji| is_concept(emoji)) {
            let points = normal(&emoji.hexcode);
            // The old pack lists no code points, but has the new one's names.
            let name = |chars: &HashMap<String, String>| {
                chars.get(&points).or_else(|| packs[Style::Glossy as usize].1.get(&points)).cloned()
            };
            let svgs = Style::ALL.map(|style| {
                let (pack, chars) = &packs[style as usize];
                pack.svg(&name(chars)?)
            });
            let is_drawn = |style: Style| svgs[style as usize].is_some();
            if Style::ALL.into_iter().all(|style| style == Style::Classic || is_drawn(style)) {
                concepts.push(concept(emoji, svgs)?);
            }
        }
        if concepts.len() < MIN_CONCEPTS {
            return Err(ArtError::Few(concepts.len()));
        }
        if !concepts.iter().any(|concept| is_unseen_by_stage_a(&concept.name)) {
            return Err(ArtError::AllSeen);
        }
        keep_telling_keywords(&mut concepts);
        let lots = concepts.iter().enumerate();
        let lots = lots.flat_map(|(number, each)| (0..each.weight).map(move |_| number)).collect();
        Ok(Self { concepts, lots })
    }

    /// All concepts, in Unicode's order.
    pub fn concepts(&self) -> &[Concept] {
        &self.concepts
    }

    /// The name of a thing's concept.
    pub(super) fn name(&self, thing: Thing) -> &str {
        &self.concepts[thing.concept].name
    }

    /// The number of the concept that the random number `lot` in `[0, 1)` draws.
    pub(super) fn draw_concept(&self, lot: f32) -> usize {
        self.lots[(lot * self.lots.len() as f32) as usize]
    }
}

impl Concept {
    /// Whether the pack draws the concept.
    pub fn has(&self, style: Style) -> bool {
        self.icons[style as usize].is_some()
    }

    /// Draws the concept into a picture; `transform` maps the unit square to pixels.
    ///
    /// # Panics
    ///
    /// Panics if the pack does not draw it.
    pub(super) fn render(&self, style: Style, transform: Transform, picture: &mut Pixmap) {
        let icon = self.icons[style as usize].as_ref().expect("the style draws the concept");
        render(&tree(&icon.svg).expect("it was parsed before"), transform, picture);
    }

    /// The share of its pixels that are nearly of this colour (sRGB).
    pub(super) fn share_like(&self, style: Style, rgb: [u8; 3]) -> f32 {
        let Some(icon) = &self.icons[style as usize] else { return 0.0 };
        let (mut like, mut all) = (0, 0);
        for pixel in icon.thumbnail.pixels().iter().map(|pixel| pixel.demultiply()) {
            if pixel.alpha() >= 128 {
                let own = [pixel.red(), pixel.green(), pixel.blue()];
                let far = own.into_iter().zip(rgb).any(|(a, b)| a.abs_diff(b) > 48);
                all += 1;
                like += u32::from(!far);
            }
        }
        if all == 0 { 1.0 } else { like as f32 / all as f32 }
    }
}

fn parse<'a, T: Deserialize<'a>>(file: &str, text: &'a str) -> Result<T, ArtError> {
    serde_json::from_str(text)
        .map_err(|error| ArtError::File { file: file.to_owned(), reason: error.to_string() })
}

/// Code points in hexadecimal, without the one that asks for a coloured picture.
fn normal(points: &str) -> String {
    let points = points.to_lowercase();
    let points: Vec<_> = points.split('-').filter(|&point| point != "fe0f").collect();
    points.join("-")
}

fn is_concept(emoji: &Emoji) -> bool {
    let clock = ["o’clock", "-thirty"].iter().any(|end| emoji.label.ends_with(end));
    let group = emoji.group.is_some_and(|group| !EXCLUDED_GROUPS.contains(&group));
    let subgroup = emoji.subgroup.is_some_and(|group| !EXCLUDED_SUBGROUPS.contains(&group));
    group && subgroup && !clock
}

fn concept(emoji: &Emoji, svgs: [Option<String>; Style::ALL.len()]) -> Result<Concept, ArtError> {
    let mut icons = [const { None }; Style::ALL.len()];
    for (style, svg) in Style::ALL.into_iter().zip(svgs) {
        let Some(svg) = svg else { continue };
        let tree = tree(&svg).map_err(|error| ArtError::File {
            file: format!("{}/icons.json", style.pack()),
            reason: format!("the icon of {:?} is no SVG: {error}", emoji.label),
        })?;
        let side = THUMBNAIL_SIDE as f32;
        let mut thumbnail = Pixmap::new(THUMBNAIL_SIDE, THUMBNAIL_SIDE).expect("it has pixels");
        render(&tree, Transform::from_scale(side, side), &mut thumbnail);
        icons[style as usize] = Some(Icon { svg, thumbnail });
    }
    let name = plain_words(&emoji.label);
    // Women and men who do something look much like the person who does it.
    let first = name.split(' ').next().unwrap_or_default();
    let is_variant = ["man", "woman", "men", "women"].contains(&first) && name.contains(' ');
    let rare = is_variant || emoji.group == Some(SYMBOLS);
    let keywords = emoji.tags.iter().map(|tag| plain_words(tag)).collect();
    Ok(Concept { name, keywords, weight: if rare { 1 } else { 3 }, icons })
}

/// Drops the keywords that many concepts share, and those that are another concept's name.
fn keep_telling_keywords(concepts: &mut [Concept]) {
    let mut counts = BTreeMap::<String, usize>::new();
    for keyword in concepts.iter().flat_map(|concept| &concept.keywords) {
        *counts.entry(keyword.clone()).or_default() += 1;
    }
    for name in concepts.iter().map(|concept| &concept.name) {
        counts.insert(name.clone(), usize::MAX);
    }
    for concept in concepts {
        concept
            .keywords
            .retain(|keyword| keyword.len() > 1 && counts[keyword] <= MAX_CONCEPTS_OF_A_KEYWORD);
    }
}

/// Lower-case words without punctuation, as the tokenizer reads them.
fn plain_words(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    plain.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn tree(svg: &str) -> Result<usvg::Tree, usvg::Error> {
    usvg::Tree::from_str(svg, &usvg::Options::default())
}

/// `transform` maps the unit square to pixels.
fn render(tree: &usvg::Tree, transform: Transform, picture: &mut Pixmap) {
    let size = tree.size();
    let side = size.width().max(size.height());
    let [x, y] = [size.width(), size.height()].map(|own| (side - own) / (2.0 * side));
    let unit = Transform::from_row(1.0 / side, 0.0, 0.0, 1.0 / side, x, y);
    resvg::render(tree, unit.post_concat(transform), &mut picture.as_mut());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::invented::{CONCEPTS, invented_art, invented_files};

    #[test]
    fn names_and_packs_are_joined_by_code_points() {
        let art = invented_art();
        assert_eq!(art.concepts().len(), CONCEPTS);
        let third = &art.concepts()[3];
        // "stuff" is a keyword of all, and tells nothing.
        assert_eq!(
            (third.name.as_str(), third.keywords.as_slice()),
            ("thing 3", &["item 3".into()][..])
        );
        assert!(third.has(Style::Flat) && !third.has(Style::Classic));
        assert!(art.concepts()[4].has(Style::Classic));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let mut files = invented_files();
        files.packs[Style::Bold as usize].icons = "{".into();
        let error = Art::new(&files).err().unwrap().to_string();
        assert!(error.starts_with("fluent-emoji-flat/icons.json: "), "{error}");
        let mut files = invented_files();
        let icons = &mut files.packs[Style::Flat as usize].icons;
        *icons = icons.replacen("<rect", "<rect <", 1);
        let error = Art::new(&files).err().unwrap().to_string();
        assert!(error.starts_with("twemoji/icons.json: the icon of \"Thing: 0\""), "{error}");
        let mut files = invented_files();
        files.names = "[]".into();
        assert!(matches!(Art::new(&files), Err(ArtError::Few(0))));
    }
}
