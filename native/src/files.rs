//! stub
use std::path::Path;
use anyhow::Result;
use wuerstchen::Image;
pub(crate) fn write_png_grid(path: &Path, images: &[Image], columns: usize) -> Result<()> {
    let (w, h) = (images[0].width, images[0].height);
    let rows = images.len().div_ceil(columns);
    let width = w * columns;
    let mut rgb = vec![255u8; width * h * rows * 3];
    for (i, image) in images.iter().enumerate() {
        let (column, row) = (i % columns, i / columns);
        for y in 0..h {
            let at = ((row * h + y) * width + column * w) * 3;
            rgb[at..at + w * 3].copy_from_slice(&image.rgb[y * w * 3..][..w * 3]);
        }
    }
    let mut encoder = png::Encoder::new(std::fs::File::create(path)?, width as u32, (h * rows) as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&rgb)?;
    Ok(())
}
pub(crate) fn read_model(path: Option<&Path>) -> Result<wuerstchen::ModelFiles> {
    let bytes = std::fs::read(path.unwrap())?;
    Ok(wuerstchen::ModelFiles::from_bundle("model", std::sync::Arc::new(bytes))?)
}
