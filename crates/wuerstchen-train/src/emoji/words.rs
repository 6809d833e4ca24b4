//! The attributes of a scene, with their words and colours.

use crate::shapes::words;

words! {
    /// A pack of art: every concept is drawn in most of them.
    Style {
        /// Noto Emoji: soft gradients. What a prompt without a style means.
        Glossy => "glossy",
        /// Noto Emoji before 2018: blobs.
        Classic => "classic",
        /// Fluent Emoji, flat: large simple forms.
        Bold => "bold",
        /// Twemoji: plain forms without gradients.
        Flat => "flat",
    }
}

words! {
    /// Colour of everything that no object covers.
    Colour {
        /// White. What a prompt without a background means.
        White => "white",
        /// Black.
        Black => "black",
        /// Middle gray.
        Gray => "gray",
        /// Red.
        Red => "red",
        /// Orange.
        Orange => "orange",
        /// Yellow.
        Yellow => "yellow",
        /// Middle green.
        Green => "green",
        /// Dark green.
        DarkGreen => "dark green",
        /// Yellowish light green.
        Lime => "lime",
        /// Middle blue.
        Blue => "blue",
        /// The sky's blue.
        LightBlue => "light blue",
        /// Very dark blue.
        Navy => "navy",
        /// Dark blue-green.
        Teal => "teal",
        /// Light blue-green.
        Turquoise => "turquoise",
        /// Purple.
        Purple => "purple",
        /// Pink.
        Pink => "pink",
        /// Brown.
        Brown => "brown",
        /// Pale warm brown.
        Beige => "beige",
    }
}

words! {
    /// Hue that takes the place of all of an object's hues.
    Tint {
        /// Red.
        Red => "red",
        /// Orange.
        Orange => "orange",
        /// Yellow.
        Yellow => "yellow",
        /// Green.
        Green => "green",
        /// Blue.
        Blue => "blue",
        /// Purple.
        Purple => "purple",
        /// Pink.
        Pink => "pink",
    }
}

words! {
    /// A size that a caption states; most captions state none.
    Size {
        /// A third to a half of the picture.
        Small => "small",
        /// Nearly all of the picture.
        Large => "large",
    }
}

impl Style {
    /// The name of the pack's folder among the art's files.
    pub const fn pack(self) -> &'static str {
        match self {
            Self::Glossy => "noto",
            Self::Classic => "noto-v1",
            Self::Bold => "fluent-emoji-flat",
            Self::Flat => "twemoji",
        }
    }
}

impl Colour {
    /// Red, green and blue in sRGB.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::White => [255, 255, 255],
            Self::Black => [0, 0, 0],
            Self::Gray => [128, 128, 128],
            Self::Red => [220, 30, 35],
            Self::Orange => [245, 135, 25],
            Self::Yellow => [255, 220, 45],
            Self::Green => [45, 165, 75],
            Self::DarkGreen => [15, 75, 40],
            Self::Lime => [165, 225, 55],
            Self::Blue => [45, 105, 220],
            Self::LightBlue => [160, 210, 245],
            Self::Navy => [25, 35, 95],
            Self::Teal => [15, 130, 130],
            Self::Turquoise => [65, 215, 205],
            Self::Purple => [130, 60, 190],
            Self::Pink => [255, 150, 195],
            Self::Brown => [130, 80, 45],
            Self::Beige => [240, 225, 195],
        }
    }

    /// Other words for it.
    pub(super) const fn synonyms(self) -> &'static [&'static str] {
        match self {
            Self::Gray => &["grey"],
            Self::LightBlue => &["sky blue"],
            Self::Navy => &["dark blue"],
            Self::Turquoise => &["cyan"],
            Self::Purple => &["violet"],
            Self::Beige => &["cream"],
            _ => &[],
        }
    }

    /// The colour nearest to red, green and blue in sRGB, by the squared distance.
    pub fn nearest(rgb: [f32; 3]) -> Self {
        let distance = |colour: &Self| -> f32 {
            let own = colour.rgb().map(f32::from);
            (0..3).map(|i| (own[i] - rgb[i]).powi(2)).sum()
        };
        let nearer = |a: &Self, b: &Self| distance(a).total_cmp(&distance(b));
        Self::ALL.into_iter().min_by(nearer).expect("there are colours")
    }
}

impl Tint {
    /// What a middle gray becomes, in sRGB.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [225, 35, 40],
            Self::Orange => [245, 130, 20],
            Self::Yellow => [240, 205, 30],
            Self::Green => [50, 170, 70],
            Self::Blue => [45, 100, 230],
            Self::Purple => [135, 60, 195],
            Self::Pink => [250, 120, 185],
        }
    }
}

impl Size {
    /// Smallest and largest side of an object, in sides of the picture.
    pub const fn sides(self) -> [f32; 2] {
        match self {
            Self::Small => [0.34, 0.48],
            Self::Large => [0.90, 0.98],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_is_nearest_to_itself_and_far_from_the_others() {
        for colour in Colour::ALL {
            assert_eq!(Colour::nearest(colour.rgb().map(f32::from)), colour);
            for other in Colour::ALL.into_iter().filter(|other| *other != colour) {
                let [a, b] = [colour.rgb(), other.rgb()].map(|rgb| rgb.map(f32::from));
                let distance = (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f32>().sqrt();
                assert!(distance > 50.0, "{} and {}: {distance}", colour.name(), other.name());
            }
        }
    }
}
