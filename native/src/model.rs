//! The model that a command runs, and where.

use std::path::{Path, PathBuf};
use std::time::Instant;

#[cfg(feature = "gpu")]
use anyhow::bail;
use anyhow::{Context, Result};
use clap::Args;
#[cfg(feature = "gpu")]
use wuerstchen::kernels::{Products, Tiling, choose_products, has_halves};
use wuerstchen::{Device, LoadError, ModelFiles, Pipeline, Residency};

#[cfg(feature = "gpu")]
use crate::devices::Found;
use crate::devices::{self, Choice};
use crate::files;
use crate::lora::{self, LoraArg};
#[cfg(feature = "gpu")]
use crate::usage;

/// Arguments of commands that run a whole model.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// A model: a folder in the layout of diffusers or with the authors' files, a browser bundle, a one-file model or the
    /// folder of a training run
    /// [default: the built-in model]
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Which parts of the model stay on the device
    #[arg(long, value_enum, default_value = "auto")]
    residency: Residency,
    /// How a GPU divides matrix products into workgroups; `auto` measures the sizes on a product of the model
    #[cfg(feature = "gpu")]
    #[arg(long, value_enum, default_value = "auto")]
    tiling: TilingChoice,
    /// `f16` lets a GPU round the factors of matrix products to half precision, where they must be below 65504, if a
    /// measurement says that it is faster, or if --tiling names tiles; sums stay in f32
    #[cfg(feature = "gpu")]
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
}

/// What `--precision` may say.
#[cfg(feature = "gpu")]
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Precision {
    F32,
    F16,
}

/// What `--tiling` may say.
#[cfg(feature = "gpu")]
#[derive(Clone, Copy, clap::ValueEnum)]
enum TilingChoice {
    /// The faster one of small and large, by a measurement; direct on a software GPU
    Auto,
    /// No tiles: every output reads its rows and columns from memory
    Direct,
    /// Tiles of 32 by 32 outputs
    Small,
    /// Tiles of 64 by 64 outputs
    Large,
}

#[cfg(feature = "gpu")]
impl TilingChoice {
    /// Makes a pipeline's device compute products like this, with tiles of halves if `halves`.
    fn apply(self, halves: bool, pipeline: &Pipeline) -> Result<()> {
        let tiling = match self {
            Self::Auto => {
                let started = Instant::now();
                let clock = move || started.elapsed().as_secs_f64();
                futures_lite::future::block_on(pipeline.choose_products(halves, &clock))?;
                return Ok(());
            }
            Self::Direct => Tiling::Direct,
            Self::Small => Tiling::Small,
            Self::Large => Tiling::Large,
        };
        choose_products(pipeline.device(), Products { tiling: Some(tiling), halves });
        Ok(())
    }
}

/// A model that is ready.
pub(crate) struct Loaded {
    pub(crate) pipeline: Pipeline,
    /// The name of its device.
    pub(crate) device: String,
    /// Seconds that its weights took to the device.
    pub(crate) load_secs: f64,
}

/// Loads all of a model, or some of its parts.
type Load = fn(&ModelFiles, &Device, Residency) -> Result<Pipeline, LoadError>;

impl ModelArgs {
    /// The model's file or folder.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.model.as_deref()
    }

    /// Reads the model, changes it by LoRAs, takes another ControlNet and loads it.
    pub(crate) fn load(&self, loras: &[LoraArg], controlnet: Option<&Path>) -> Result<Loaded> {
        self.load_by(Pipeline::load, loras, controlnet)
    }

    /// Reads and loads a model that may lack Stage C.
    pub(crate) fn load_decoder(&self) -> Result<Loaded> {
        self.load_by(Pipeline::load_decoder, &[], None)
    }

    /// Whether products may have tiles of halves on this device.
    #[cfg(feature = "gpu")]
    fn halves(&self, found: &Found) -> Result<bool> {
        let halves = self.precision == Precision::F16;
        if halves && matches!(self.tiling, TilingChoice::Direct) {
            bail!("--precision f16 is for tiles, and --tiling direct has none");
        }
        if halves && !has_halves(&found.device) {
            bail!("--precision f16 needs a GPU whose shaders have f16, found {}", found.name);
        }
        Ok(halves)
    }

    fn load_by(&self, load: Load, loras: &[LoraArg], controlnet: Option<&Path>) -> Result<Loaded> {
        let mut files = files::read_model(self.model.as_deref())?;
        if let Some(path) = controlnet {
            files::replace_controlnet(&mut files, path)?;
        }
        lora::apply(&mut files, loras)?;
        let found = devices::choose(self.device)?;
        #[cfg(feature = "gpu")]
        let halves = self.halves(&found).map_err(|error| usage(&error))?;
        let started = Instant::now();
        let pipeline =
            load(&files, &found.device, self.residency).context("cannot load the model")?;
        #[cfg(feature = "gpu")]
        self.tiling.apply(halves, &pipeline)?;
        let load_secs = started.elapsed().as_secs_f64();
        Ok(Loaded { pipeline, device: found.name, load_secs })
    }
}
