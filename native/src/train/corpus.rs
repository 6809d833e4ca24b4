//! The corpus of a run, as its config says.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use wuerstchen_train::config::{Scenes, TrainConfig, TuneConfig};
use wuerstchen_train::emoji::Art;
use wuerstchen_train::store::Store;
use wuerstchen_train::tune::digest;
use wuerstchen_train::{Pictures, RunError, Source};

use crate::art::read_art;
use crate::folder::Folder;
use crate::shards::Shards;

/// A file in a run's folder with a hash of the pictures and the captions: of a folder's files, or of the names, places and
/// sizes of pictures in shards.
pub(super) const DIGEST: &str = "pictures.sha256";

/// Where pictures and captions come from.
pub(super) enum Corpus {
    /// The built-in scenes of shapes.
    Shapes,
    /// Scenes of emoji.
    Emoji(Arc<Art>),
    /// A folder of captioned pictures.
    Folder(Arc<Folder>),
    /// Captioned pictures in shards.
    Shards(Arc<Shards>),
}

impl Corpus {
    /// Opens the corpus of a config.
    pub(super) fn open(config: &TrainConfig) -> Result<Self> {
        let corpus = &config.corpus;
        if let Some(shards) = &corpus.shards {
            return Ok(Self::Shards(Arc::new(Shards::open(shards, config.seed)?)));
        }
        Ok(match (&corpus.folder, corpus.scenes) {
            (Some(folder), _) => Self::Folder(Arc::new(Folder::open(folder, config.seed)?)),
            (None, Scenes::Emoji) => Self::Emoji(Arc::new(read_art(corpus.art.as_deref())?)),
            (None, Scenes::Shapes) => Self::Shapes,
        })
    }

    /// Opens the pictures that a model is fine-tuned on.
    pub(super) fn open_tuned(config: &TuneConfig) -> Result<Self> {
        let corpus = &config.corpus;
        if let Some(shards) = &corpus.shards {
            return Ok(Self::Shards(Arc::new(Shards::open(shards, config.seed)?)));
        }
        let folder = corpus.folder.as_deref().context("expected corpus.folder or corpus.shards")?;
        Ok(Self::Folder(Arc::new(Folder::open(folder, config.seed)?)))
    }

    /// The samples of the corpus.
    pub(super) fn source(&self) -> Source {
        match self {
            Self::Shapes => Source::Shapes,
            Self::Emoji(art) => Source::Emoji(art.clone()),
            Self::Folder(folder) => Source::Samples(folder.clone()),
            Self::Shards(shards) => Source::Samples(shards.clone()),
        }
    }

    /// A user's own pictures, of any size.
    ///
    /// # Panics
    ///
    /// Panics if the scenes are drawn.
    pub(super) fn own_pictures(&self) -> Arc<dyn Pictures> {
        match self {
            Self::Folder(folder) => folder.clone(),
            Self::Shards(shards) => shards.clone(),
            Self::Shapes | Self::Emoji(_) => panic!("fine-tuning takes pictures alone"),
        }
    }

    /// All captions of a user's own pictures; `None` where the scenes are drawn.
    pub(super) fn captions(&self) -> Option<Box<dyn Iterator<Item = &str> + Send + '_>> {
        match self {
            Self::Shapes | Self::Emoji(_) => None,
            Self::Folder(folder) => Some(Box::new(folder.all_captions())),
            Self::Shards(shards) => Some(Box::new(shards.all_captions())),
        }
    }

    /// How many pictures there are; `None` where the scenes are drawn.
    pub(super) fn pictures(&self) -> Option<usize> {
        match self {
            Self::Shapes | Self::Emoji(_) => None,
            Self::Folder(folder) => Some(folder.len()),
            Self::Shards(shards) => Some(shards.len()),
        }
    }

    /// The hash of the pictures and the captions; `None` where the scenes are drawn. Reads all files of a folder.
    pub(super) fn digest(&self) -> Option<String> {
        match self {
            Self::Shapes | Self::Emoji(_) => None,
            Self::Folder(folder) => Some(digest(folder.described())),
            Self::Shards(shards) => Some(digest(shards.described())),
        }
    }

    /// How many pictures of shards were read that had to be enlarged. Those of folders are told before a run begins.
    pub(super) fn enlarged(&self) -> usize {
        match self {
            Self::Shards(shards) => shards.enlarged(),
            _ => 0,
        }
    }

    /// How many pictures of shards were read that have several frames or pages. Those of folders are told before a run
    /// begins.
    pub(super) fn with_frames(&self) -> usize {
        match self {
            Self::Shards(shards) => shards.with_frames(),
            _ => 0,
        }
    }

    /// Lists the pictures that cannot be read and are left out in a file, as they are found.
    pub(super) fn list_in(&self, path: &Path) -> Result<()> {
        match self {
            Self::Shards(shards) => shards.list_in(path),
            _ => Ok(()),
        }
    }

    /// How many pictures are listed, `None` where none was left out.
    pub(super) fn listed(&self) -> Option<usize> {
        match self {
            Self::Shards(shards) => shards.listed(),
            _ => None,
        }
    }
}

/// Reports that a run goes on with other pictures or captions than those with which it began, if so. A run that begins
/// keeps their hash, `own`, in its store.
pub(super) fn tell_if_changed(own: &str, store: &dyn Store, resumes: bool) -> Result<(), RunError> {
    store.claim()?;
    let begun = if resumes { store.read(DIGEST)? } else { None };
    let Some(begun) = begun else { return Ok(store.write(DIGEST, own.as_bytes())?) };
    if begun != own.as_bytes() {
        tell!(
            "the run began with other pictures, captions or filters: it goes on with those that are there now, and is \
             not what it would have been"
        );
    }
    Ok(())
}
