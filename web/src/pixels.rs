//! Pixels of JavaScript: four bytes each, as `ImageData` has them.

use wuerstchen::{Image, Mask};

/// A picture, on white where it is transparent, as viewers show it and as training sees it.
pub(crate) fn image(width: usize, rgba: &[u8]) -> Image {
    let rgb = rgba.chunks_exact(4).flat_map(|pixel| on(255, pixel)).collect();
    Image { width, height: height(width, rgba), rgb }
}

/// A mask, on black where it is transparent: the white that can be seen is painted anew.
pub(crate) fn mask(width: usize, rgba: &[u8]) -> Mask {
    let values = rgba.chunks_exact(4).map(|pixel| brightness(on(0, pixel))).collect();
    Mask { width, height: height(width, rgba), values }
}

fn height(width: usize, rgba: &[u8]) -> usize {
    rgba.len() / (4 * width.max(1))
}

/// A pixel on a ground of one brightness.
fn on(ground: u32, pixel: &[u8]) -> [u8; 3] {
    let [red, green, blue, alpha] = [pixel[0], pixel[1], pixel[2], pixel[3]].map(u32::from);
    [red, green, blue].map(|colour| ((colour * alpha + ground * (255 - alpha)) / 255) as u8)
}

/// Luma of ITU-R BT.709.
fn brightness(colours: [u8; 3]) -> u8 {
    let [red, green, blue] = colours.map(u32::from);
    ((2126 * red + 7152 * green + 722 * blue) / 10_000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Black at an opacity of 51/255 leaves 204 of the white below it.
    #[test]
    fn pictures_lie_on_white() {
        let rgba = [1, 2, 3, 255, 0, 0, 0, 0, 200, 200, 200, 0, 0, 0, 0, 51];
        let expected = [[1, 2, 3], [255; 3], [255; 3], [204; 3]].concat();
        assert_eq!(image(2, &rgba), Image { width: 2, height: 2, rgb: expected });
    }

    #[test]
    fn only_white_that_can_be_seen_is_painted() {
        let rgba = [[255; 4], [255, 255, 255, 0], [255, 255, 255, 51], [0, 0, 0, 255]].concat();
        let expected = Mask { width: 4, height: 1, values: vec![255, 0, 51, 0] };
        assert_eq!(mask(4, &rgba), expected);
    }
}
