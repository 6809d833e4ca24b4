//! What a run trains, and on what.

use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use wuerstchen_train::config::{Scenes, TrainConfig};
use wuerstchen_train::corpus::{Emoji, Samples, Shapes};
use wuerstchen_train::emoji::Art;
use wuerstchen_train::shapes::Lesson;

use crate::art::read_art;
use crate::folder::Folder;

/// A stage, or all of them.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum StageName {
    A,
    B,
    C,
    All,
}

/// Where pictures and captions come from.
pub(super) enum Source {
    /// The built-in scenes of shapes.
    Shapes,
    /// Scenes of emoji.
    Emoji(Arc<Art>),
    /// A folder of captioned pictures.
    Folder(Arc<Folder>),
}

impl Source {
    /// Opens the corpus of a config.
    pub(super) fn open(config: &TrainConfig) -> Result<Self> {
        let corpus = &config.corpus;
        Ok(match (&corpus.folder, corpus.scenes) {
            (Some(folder), _) => Self::Folder(Arc::new(Folder::open(folder, config.seed)?)),
            (None, Scenes::Emoji) => Self::Emoji(Arc::new(read_art(corpus.art.as_deref())?)),
            (None, Scenes::Shapes) => Self::Shapes,
        })
    }

    /// What a stage learns from.
    pub(super) fn samples(&self, stage: StageName, seed: u64, lesson: Lesson) -> Arc<dyn Samples> {
        match self {
            Self::Shapes => Arc::new(Shapes { seed, lesson }),
            Self::Emoji(art) => {
                Arc::new(Emoji { seed, art: art.clone(), for_stage_a: stage == StageName::A })
            }
            Self::Folder(folder) => folder.clone(),
        }
    }
}
