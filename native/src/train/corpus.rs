//! The corpus of a run, as its config says.

use std::sync::Arc;

use anyhow::Result;
use wuerstchen_train::Source;
use wuerstchen_train::config::{Scenes, TrainConfig};
use wuerstchen_train::emoji::Art;

use crate::art::read_art;
use crate::folder::Folder;

/// Where pictures and captions come from.
pub(super) enum Corpus {
    /// The built-in scenes of shapes.
    Shapes,
    /// Scenes of emoji.
    Emoji(Arc<Art>),
    /// A folder of captioned pictures.
    Folder(Arc<Folder>),
}

impl Corpus {
    /// Opens the corpus of a config.
    pub(super) fn open(config: &TrainConfig) -> Result<Self> {
        let corpus = &config.corpus;
        Ok(match (&corpus.folder, corpus.scenes) {
            (Some(folder), _) => Self::Folder(Arc::new(Folder::open(folder, config.seed)?)),
            (None, Scenes::Emoji) => Self::Emoji(Arc::new(read_art(corpus.art.as_deref())?)),
            (None, Scenes::Shapes) => Self::Shapes,
        })
    }

    /// What a run trains on.
    pub(super) fn source(&self) -> Source {
        match self {
            Self::Shapes => Source::Shapes,
            Self::Emoji(art) => Source::Emoji(art.clone()),
            Self::Folder(folder) => Source::Samples(folder.clone()),
        }
    }
}
