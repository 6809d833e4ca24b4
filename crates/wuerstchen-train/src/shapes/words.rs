//! The attributes a scene is made of, with their words and colours.

/// Declares an enum of words: each variant with the word captions and reports use for it.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: [Self; [$($word),*].len()] = [$(Self::$variant),*];

            /// The word or words for it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}
pub(crate) use words;

words! {
    /// Colour of everything that no object covers.
    Background {
        /// White.
        White => "white",
        /// Black.
        Black => "black",
        /// Middle gray.
        Gray => "gray",
        /// Pale warm brown.
        Beige => "beige",
        /// Dark blue-green.
        Teal => "teal",
        /// Very dark blue.
        Navy => "navy",
    }
}

words! {
    /// Colour of an object.
    Colour {
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
        /// Light blue-green; brown would lie too close to dark mixtures of red and orange.
        Cyan => "cyan",
    }
}

words! {
    /// Outline of an object; none is ever rotated.
    Shape {
        /// Disc.
        Circle => "circle",
        /// Square with level sides.
        Square => "square",
        /// Triangle pointing up.
        Triangle => "triangle",
        /// Rhombus, taller than wide.
        Diamond => "diamond",
        /// Star of five points, one of them up.
        Star => "star",
        /// Heart, its tip down.
        Heart => "heart",
        /// Plus sign.
        Cross => "cross",
        /// Annulus.
        Ring => "ring",
    }
}

words! {
    /// One of the two sizes of an object.
    Size {
        /// Radius 0.12 to 0.15 sides.
        Small => "small",
        /// Radius 0.20 to 0.235 sides.
        Large => "large",
    }
}

words! {
    /// Where the first of two objects lies, seen from the second.
    Relation {
        /// Left of it.
        LeftOf => "left of",
        /// Right of it.
        RightOf => "right of",
        /// Above it.
        Above => "above",
        /// Below it.
        Below => "below",
    }
}

impl Background {
    /// Red, green and blue in sRGB.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::White => [255, 255, 255],
            Self::Black => [0, 0, 0],
            Self::Gray => [128, 128, 128],
            Self::Beige => [228, 208, 165],
            Self::Teal => [0, 108, 108],
            Self::Navy => [15, 20, 88],
        }
    }
}

impl Colour {
    /// Red, green and blue in sRGB, at least 60 away from every mixture of a background with
    /// another of these colours.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [225, 20, 25],
            Self::Orange => [255, 130, 0],
            Self::Yellow => [255, 235, 20],
            Self::Green => [30, 185, 40],
            Self::Blue => [35, 85, 255],
            Self::Purple => [145, 20, 190],
            Self::Pink => [255, 120, 205],
            Self::Cyan => [60, 230, 255],
        }
    }
}

impl Shape {
    /// The word for several.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Diamond => "diamonds",
            Self::Star => "stars",
            Self::Heart => "hearts",
            Self::Cross => "crosses",
            Self::Ring => "rings",
        }
    }
}

impl Size {
    /// Smallest and largest radius, in sides of the picture.
    pub const fn radii(self) -> [f32; 2] {
        match self {
            Self::Small => [0.12, 0.15],
            Self::Large => [0.20, 0.235],
        }
    }

    /// The size nearest to a radius given in sides of the picture.
    pub fn of_radius(radius: f32) -> Self {
        let threshold = (Self::Small.radii()[1] + Self::Large.radii()[0]) / 2.0;
        if radius < threshold { Self::Small } else { Self::Large }
    }
}

impl Relation {
    /// The same arrangement seen from the other object.
    pub fn converse(self) -> Self {
        match self {
            Self::LeftOf => Self::RightOf,
            Self::RightOf => Self::LeftOf,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }

    /// The coordinate along which the two differ (0 is x, 1 is y) and the sign of the second
    /// object's minus the first's.
    pub(crate) fn axis(self) -> (usize, f32) {
        match self {
            Self::LeftOf => (0, 1.0),
            Self::RightOf => (0, -1.0),
            Self::Above => (1, 1.0),
            Self::Below => (1, -1.0),
        }
    }

    /// Whether an object centred at `first` has this relation to one centred at `second`: the
    /// offset has the right sign and is larger than the offset on the other axis.
    pub fn holds(self, first: [f32; 2], second: [f32; 2]) -> bool {
        let (axis, sign) = self.axis();
        let along = sign * (second[axis] - first[axis]);
        along > (second[1 - axis] - first[1 - axis]).abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
        (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f32>().sqrt()
    }

    /// The claim of [`Colour::rgb`], on 101 mixtures of each background and colour.
    #[test]
    fn no_mixture_with_a_background_passes_for_another_colour() {
        for background in Background::ALL.map(|b| b.rgb().map(f32::from)) {
            for one in Colour::ALL {
                for other in Colour::ALL.into_iter().filter(|other| *other != one) {
                    let [one, other] = [one, other].map(|c| c.rgb().map(f32::from));
                    for step in 0..=100 {
                        let share = step as f32 / 100.0;
                        let mixture =
                            [0, 1, 2].map(|i| background[i] + share * (other[i] - background[i]));
                        assert!(distance(mixture, one) > 59.0);
                    }
                }
            }
        }
    }

    /// (0, 0) to (3, 2): the larger offset is 3 to the right.
    #[test]
    fn the_larger_offset_decides_the_relation() {
        let held = Relation::ALL.map(|relation| relation.holds([0.0, 0.0], [3.0, 2.0]));
        assert_eq!(held, [true, false, false, false]);
        assert!(Relation::RightOf.holds([3.0, 2.0], [0.0, 0.0]));
        assert!(Relation::Above.holds([0.0, 0.0], [-1.0, 2.0]));
    }

    #[test]
    fn radii_belong_to_their_size() {
        for size in Size::ALL {
            assert_eq!(size.radii().map(Size::of_radius), [size; 2]);
        }
    }
}
