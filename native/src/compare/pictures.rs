//! The pictures of a folder as they are compared: whole, cut, or as Stage A makes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::{Device, Tensor};
use image::imageops::FilterType;
use image::{RgbImage, imageops};
use indicatif::ProgressBar;
use unicode_normalization::UnicodeNormalization;
use wuerstchen::vqgan::strip_rows;
use wuerstchen::{Image, Statistics, Vqgan, VqganConfig};
use wuerstchen_train::compare::clip_score::ClipScore;
use wuerstchen_train::compare::inception::{self, Inception};

use crate::files::read_model;
use crate::folder::pictures_of;
use crate::pictures::{read_image, size_of};

/// Side in pixels to which pictures are scaled to find the nearest one by pixels.
const NEAREST_SIDE: usize = 32;

/// The pictures of a folder, sorted.
pub(super) struct Pictures {
    pub(super) folder: PathBuf,
    paths: Vec<PathBuf>,
    /// Their names below the folder.
    pub(super) names: Vec<String>,
    /// Sides are cut to multiples of this.
    multiple: usize,
    /// The Stage A that encodes and decodes the pictures, if one does.
    stage_a: Option<(Vqgan, Device)>,
}

/// The rows of values that stand for pictures.
pub(super) type Rows = Vec<Vec<f32>>;

impl Pictures {
    /// The pictures of a folder, as they are.
    pub(super) fn find(folder: &Path) -> Result<Self> {
        let paths = pictures_of(folder)?;
        let name = |path: &PathBuf| {
            let below = path.strip_prefix(folder).unwrap_or(path);
            below.display().to_string()
        };
        let names = paths.iter().map(name).collect();
        Ok(Self { folder: folder.to_owned(), paths, names, multiple: 1, stage_a: None })
    }

    /// The same pictures cut to whole latents of a model's Stage A, and what that Stage A makes of them.
    pub(super) fn through_stage_a(self, model: &Path, device: &Device) -> Result<[Self; 2]> {
        let files = read_model(Some(model))?;
        let (config, vqgan) = files.load::<VqganConfig>(files.family().vqgan, device)?;
        let multiple = config.downscale();
        let made = Self {
            folder: self.folder.clone(),
            paths: self.paths.clone(),
            names: self.names.clone(),
            multiple,
            stage_a: Some((vqgan, device.clone())),
        };
        Ok([Self { multiple, ..self }, made])
    }

    /// The number of pictures.
    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }

    /// The path of a picture, or of the picture that Stage A encodes.
    pub(super) fn path(&self, place: usize) -> &Path {
        &self.paths[place]
    }

    /// The height and width of a picture, as far as it is compared.
    pub(super) fn size(&self, place: usize) -> Result<[usize; 2]> {
        Ok(size_of(self.path(place))?.map(|side| side / self.multiple * self.multiple))
    }

    /// A picture.
    pub(super) fn image(&self, place: usize) -> Result<Image> {
        let image = read_image(self.path(place))?;
        let image = self.cut(image).with_context(|| self.path(place).display().to_string())?;
        let Some((vqgan, device)) = &self.stage_a else { return Ok(image) };
        let latents = vqgan.encode(image.to_tensor(device), Statistics::Running);
        let [_, _, height, width] = latents.dims();
        let decoded = match strip_rows([height, width]) {
            0 => vqgan.decode(latents),
            rows => Tensor::cat(vqgan.decode_strips(latents, rows).collect(), 2),
        };
        Ok(Image::from_data(&decoded.into_data()).swap_remove(0))
    }

    /// The middle of a picture, with sides that are multiples of `multiple`.
    fn cut(&self, image: Image) -> Result<Image> {
        let multiple = self.multiple;
        let [width, height] = [image.width, image.height].map(|side| side / multiple * multiple);
        if [width, height] == [image.width, image.height] {
            return Ok(image);
        }
        if width.min(height) == 0 {
            let (width, height) = (image.width, image.height);
            bail!("expected sides of at least {multiple} pixels, found {width} x {height} pixels");
        }
        let [left, top] = [(image.width - width) / 2, (image.height - height) / 2];
        let row = |y: usize| {
            let start = 3 * ((top + y) * image.width + left);
            &image.rgb[start..start + 3 * width]
        };
        let rgb = (0..height).flat_map(row).copied().collect();
        Ok(Image { width, height, rgb })
    }

    /// The places of pictures of one name, but for the ending, here and in another folder.
    pub(super) fn pairs(&self, other: &Self) -> Result<Vec<[usize; 2]>> {
        let (own, others) = (self.by_stem()?, other.by_stem()?);
        let pair = |(stem, &place): (&PathBuf, &usize)| Some([*own.get(stem)?, place]);
        Ok(others.iter().filter_map(pair).collect())
    }

    /// The places of the pictures by their names without an ending; fails if two have the same.
    fn by_stem(&self) -> Result<BTreeMap<PathBuf, usize>> {
        let mut stems = BTreeMap::new();
        for (place, name) in self.names.iter().enumerate() {
            // macOS, zip files and other systems write an accent in different forms.
            let name: String = name.nfc().collect();
            if let Some(other) = stems.insert(Path::new(&name).with_extension(""), place) {
                let [other, path] = [other, place].map(|place| self.path(place).display());
                bail!(
                    "{other} and {path} differ only in their endings, or in how accents are written"
                );
            }
        }
        Ok(stems)
    }

    /// The results of `work` for all pictures.
    fn map<T>(
        &self,
        what: &'static str,
        mut work: impl FnMut(usize, Image) -> Result<T>,
    ) -> Result<Vec<T>> {
        let bar = ProgressBar::new(self.len() as u64).with_message(what);
        let all = (0..self.len()).map(|place| {
            let made = work(place, self.image(place)?);
            bar.inc(1);
            made
        });
        let all = all.collect();
        bar.finish_and_clear();
        all
    }

    /// The features of all pictures.
    pub(super) fn features(&self, network: &Inception) -> Result<Rows> {
        if self.len() < 2 {
            let folder = self.folder.display();
            bail!("{folder}: expected two pictures or more for --fid, found one");
        }
        self.map("features", |_, image| {
            let row = network.features(&[image]).into_data();
            let row = row.try_to_vec::<f32>().map_err(|error| anyhow!("{error:?}"))?;
            debug_assert_eq!(row.len(), inception::FEATURES);
            Ok(row)
        })
    }

    /// The pictures scaled down to squares of [`NEAREST_SIDE`] pixels, values in `[0, 1]`.
    pub(super) fn pixels(&self) -> Result<Rows> {
        self.map("pixels", |_, Image { width, height, rgb }| {
            let image = RgbImage::from_raw(width as u32, height as u32, rgb);
            let image = image.context("a picture has three bytes a pixel")?;
            let side = NEAREST_SIDE as u32;
            let small = imageops::resize(&image, side, side, FilterType::Triangle);
            Ok(small.into_raw().into_iter().map(|byte| f32::from(byte) / 255.0).collect())
        })
    }

    /// The mean CLIP score of the pictures with a caption each.
    pub(super) fn clip_score(&self, clip: &ClipScore, captions: &[String]) -> Result<f64> {
        let scores =
            self.map("CLIP score", |place, image| Ok(clip.score(&image, &captions[place])?));
        Ok(scores?.into_iter().sum::<f64>() / self.len() as f64)
    }
}
