//! Browser bundles in a folder, and what else lies there.

use std::path::Path;

use super::super::error::{OpenError, Result, cannot};
use super::super::files::{file_name, open, read};
use super::super::shards::files_of_weights;
use super::super::text::read_text;
use super::lone_parts;
use crate::family::Family;
use crate::manifest::{MANIFEST, Manifest, WebBundle};
use crate::model_files::ModelFiles;
use crate::part::Stage;

pub(super) fn read_manifest(folder: &Path) -> Result<WebBundle> {
    let read_all = || {
        let manifest = Manifest::parse(&read_text(&folder.join(MANIFEST))?)?;
        let contents = read(&folder.join(&manifest.contents.file))?;
        Ok::<_, OpenError>(manifest.with_contents(&contents)?)
    };
    read_all().map_err(cannot("read the model in", folder))
}

/// Opens a browser bundle, and checks the hashes of its shards.
pub(super) fn read_web_bundle(folder: &Path, bundle: &WebBundle) -> Result<ModelFiles> {
    let read_all = || {
        for (index, shard) in bundle.manifest().shards.iter().enumerate() {
            bundle.verify(index, &read(&folder.join(&shard.file))?)?;
        }
        bundle.open::<OpenError>(|file| open(&folder.join(file)))
    };
    read_all().map_err(cannot("read the model in", folder))
}

/// Tells which other folders and files of weights lie beside a browser bundle; `None` where there are none.
pub(super) fn others_beside(folder: &Path, manifest: &Manifest) -> Result<Option<String>> {
    let parts = folders_of_parts().into_iter().map(|part| folder.join(part));
    let parts = parts.filter(|part| part.is_dir());
    let files = files_of_weights(folder)?.into_iter().flatten();
    let others: Vec<_> = parts.chain(files).collect();
    let is_shard = |name: &String| manifest.shards.iter().any(|shard| shard.file == *name);
    let others = others.iter().map(|path| file_name(path)).filter(|name| !is_shard(name));
    let others = others.collect::<Vec<_>>().join(", ");
    let folder = folder.display();
    let note = format!("{folder}: reads the browser bundle of {MANIFEST}; left out: {others}");
    Ok((!others.is_empty()).then_some(note))
}

/// Folders that hold parts of a model where it is no browser bundle: those of pipelines, parts in a pipeline's own
/// folder, and parts that belong to no pipeline. Text encoders and tokenizers always lie beside one of these.
fn folders_of_parts() -> Vec<String> {
    let mut folders = Vec::new();
    for pipeline in Family::ALL.into_iter().flat_map(|family| family.pipelines) {
        folders.push(pipeline.name.to_owned());
        for (name, _) in pipeline.parts().filter(|(_, part)| part.stage() != Some(Stage::Text)) {
            folders.push(name.to_owned());
            folders.push(format!("{}{name}", pipeline.prefix));
        }
    }
    folders.extend(lone_parts().map(|part| part.folder().to_owned()));
    folders.sort();
    folders.dedup();
    folders
}
