//! Which files of a folder hold the weights of a part: a folder may have them in several types, precisions and
//! numbers of weight shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::{Result, cannot, unfit};
use super::files::{file_name, has_extension, open, with_extension};
use super::text::read_text;
use crate::checkpoint::FileType;

/// The files of a part.
#[derive(Debug, PartialEq)]
pub(super) struct Shards {
    /// The files that together hold its weights; at least one.
    pub(super) files: Vec<PathBuf>,
    /// Files that hold the same weights again, and indices of files that are not there.
    pub(super) left_out: Vec<PathBuf>,
}

/// Ends of names of PyTorch's files.
pub(super) const PYTORCH: [&str; 4] = ["pt", "pth", "ckpt", "bin"];

/// Whether a file is one of PyTorch's: by its content, and by its name where that tells nothing.
pub(super) fn is_pytorch(path: &Path) -> Result<bool> {
    let file = open(path)?;
    let start = file.read(0..file.length().min(FileType::START_BYTES));
    let start = start.map_err(cannot("read", path))?;
    Ok(match FileType::of(&start) {
        Some(found) => found == FileType::Pytorch,
        None => PYTORCH.iter().any(|known| has_extension(path, known)),
    })
}

/// The files of weights in a folder by their types, safetensors first.
pub(super) fn files_of_weights(folder: &Path) -> Result<Vec<Vec<PathBuf>>> {
    ["safetensors"]
        .iter()
        .chain(&PYTORCH)
        .map(|extension| with_extension(folder, extension))
        .collect()
}

/// What diffusers and transformers call the weights of a part.
const KNOWN: [&str; 3] = ["diffusion_pytorch_model", "model", "pytorch_model"];

/// Variants of half precision, the better one first.
const HALVES: [&str; 2] = ["fp16", "bf16"];

/// The file that tells which tensors are in which shard.
#[derive(Deserialize)]
struct WeightMap {
    weight_map: BTreeMap<String, String>,
}

/// Files that belong together.
struct Set {
    files: Vec<PathBuf>,
    /// How far the set is from the most wanted one; the lowest rank is taken.
    rank: (usize, bool, bool),
    /// Shards that should be there.
    missing: BTreeSet<String>,
}

impl Shards {
    /// Chooses the files in a folder; `None` where it has no weights. It prefers safetensors to PyTorch's files,
    /// f32 to half precision, and files that an index names to others.
    pub(super) fn of(folder: &Path) -> Result<Option<Self>> {
        let all = files_of_weights(folder)?;
        let Some(first) = all.iter().find(|files| !files.is_empty()) else {
            return match indices_in(folder)?.first() {
                Some(index) => {
                    Err(unfit(index, "expected the shards that it names beside it, found none"))
                }
                None => Ok(None),
            };
        };
        let (files, indices) = choose(folder, first)?;
        let others = all.iter().flatten().filter(|path| !files.contains(path)).cloned();
        let left_out = others.chain(indices).collect();
        Ok(Some(Self { files, left_out }))
    }
}

/// The files to take, and the indices that name none of those that are there: the download of one variant
/// may bring the index of another one.
fn choose(folder: &Path, files: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut sets, lonely) = indexed(folder, files)?;
    let mut others: BTreeMap<(String, Option<usize>), Vec<PathBuf>> = BTreeMap::new();
    for path in files.iter().filter(|path| !sets.iter().any(|set| set.files.contains(path))) {
        others.entry(split_name(path)).or_default().push(path.clone());
    }
    for ((name, count), files) in others {
        let expected = count.unwrap_or(1);
        let missing = (files.len() != expected)
            .then(|| format!("the other {} of {name}", expected.abs_diff(files.len())));
        sets.push(Set { rank: rank(&name, false), files, missing: missing.into_iter().collect() });
    }
    let Some(best) = sets.iter().map(|set| set.rank).min() else { return Ok((Vec::new(), lonely)) };
    let taken: Vec<_> = sets.into_iter().filter(|set| set.rank == best).collect();
    if let Some(missing) = taken.iter().find_map(|set| set.missing.first()) {
        let reason = format!("expected all shards of the weights, found none of {missing}");
        return Err(unfit(folder, reason));
    }
    Ok((taken.into_iter().flat_map(|set| set.files).collect(), lonely))
}

/// The files in a folder that tell which tensors are in which shard.
fn indices_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = with_extension(folder, "json")?;
    Ok(files.into_iter().filter(|path| file_name(path).contains(".index.")).collect())
}

/// The sets of files that indices name, where they name files of the type of `files`; and the indices that
/// name none of `files`.
fn indexed(folder: &Path, files: &[PathBuf]) -> Result<(Vec<Set>, Vec<PathBuf>)> {
    let (mut sets, mut lonely) = (Vec::new(), Vec::new());
    for path in indices_in(folder)? {
        let map: WeightMap = serde_json::from_str(&read_text(&path)?)
            .map_err(|error| unfit(&path, format!("expected {{\"weight_map\": …}}: {error}")))?;
        let names = map.weight_map.values().map(|name| named_beside(&path, name));
        let names = names.collect::<Result<BTreeSet<String>>>()?;
        let Some(first) = names.first().filter(|name| {
            let extension = Path::new(name).extension().unwrap_or_default().to_string_lossy();
            files.iter().any(|file| has_extension(file, &extension))
        }) else {
            continue;
        };
        let (name, _) = split_name(Path::new(first));
        let mut missing = names.clone();
        let found = files.iter().filter(|file| missing.remove(&file_name(file)));
        let found: Vec<_> = found.cloned().collect();
        if found.is_empty() {
            lonely.push(path);
        } else {
            sets.push(Set { files: found, rank: rank(&name, true), missing });
        }
    }
    Ok((sets, lonely))
}

/// The name of a file beside an index, as the index has it: `./` in front means the same file.
fn named_beside(index: &Path, name: &str) -> Result<String> {
    let mut parts = Path::new(name).components().filter(|part| *part != Component::CurDir);
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Ok(name.to_string_lossy().into_owned()),
        _ => Err(unfit(index, format!("expected names of files beside it, found {name:?}"))),
    }
}

/// The name of a file of weights without `-00001-of-00003`, and the last number of that.
fn split_name(path: &Path) -> (String, Option<usize>) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let split = || {
        let (front, back) = stem.split_once("-of-")?;
        let (name, number) = front.rsplit_once('-')?;
        let digits = back.find(|c: char| !c.is_ascii_digit()).unwrap_or(back.len());
        number.parse::<usize>().ok()?;
        Some((format!("{name}{}", &back[digits..]), back[..digits].parse().ok()?))
    };
    split().map_or_else(|| (stem.to_string(), None), |(name, count)| (name, Some(count)))
}

/// Sets of the lowest rank are taken: of full precision, of a known name, with an index.
fn rank(name: &str, has_index: bool) -> (usize, bool, bool) {
    let (known, variant) = name.split_once('.').unwrap_or((name, ""));
    let variant = match variant {
        "" => 0,
        variant => match HALVES.iter().position(|half| variant.contains(half)) {
            Some(half) => 2 + half,
            // These lie beside the moving averages of the weights, which make the better pictures.
            None if variant.contains("non_ema") => 2 + HALVES.len(),
            // Other programs' values of 8 bits are not read.
            None if variant.contains("fp8") || variant.contains("int8") => 3 + HALVES.len(),
            None => 1,
        },
    };
    (variant, !KNOWN.contains(&known), !has_index)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is taken of a folder with these files, and how many are left out.
    fn taken(
        name: &str,
        files: &[(&str, &str)],
    ) -> std::result::Result<(Vec<String>, usize), String> {
        let folder = std::env::temp_dir().join(format!("wuerstchen-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            fs::write(folder.join(file), text).unwrap();
        }
        let found = Shards::of(&folder);
        fs::remove_dir_all(&folder).unwrap();
        let found = found.map_err(|error| error.to_string())?.expect("weights");
        let names = found.files.iter().map(|path| file_name(path)).collect();
        Ok((names, found.left_out.len()))
    }

    const WHOLE: &str = "diffusion_pytorch_model.safetensors";
    const HALF: &str = "diffusion_pytorch_model.fp16.safetensors";
    const FIRST: &str = "diffusion_pytorch_model-00001-of-00002.safetensors";
    const SECOND: &str = "diffusion_pytorch_model-00002-of-00002.safetensors";
    const STALE: &str = "diffusion_pytorch_model-00001-of-00003.safetensors";
    const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";

    #[test]
    fn one_set_of_several_is_taken() {
        let set = |files: &[&str]| {
            let files: Vec<_> = files.iter().map(|file| (*file, "")).collect();
            taken("sets", &files).unwrap()
        };
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(set(&[HALF, WHOLE]), (owned(&[WHOLE]), 1));
        assert_eq!(set(&[HALF]), (owned(&[HALF]), 0));
        assert_eq!(set(&[FIRST, SECOND, HALF]), (owned(&[FIRST, SECOND]), 1));
        assert_eq!(set(&["a.safetensors", "b.safetensors"]).0.len(), 2);
        let bin = "diffusion_pytorch_model.bin";
        assert_eq!(set(&[bin, HALF]), (owned(&[HALF]), 1));
        assert_eq!(set(&[bin]), (owned(&[bin]), 0));
        let plain = "diffusion_pytorch_model.non_ema.safetensors";
        assert_eq!(set(&[plain, WHOLE]), (owned(&[WHOLE]), 1));
        let averages = "diffusion_pytorch_model.ema.safetensors";
        assert_eq!(set(&[plain, averages]), (owned(&[averages]), 1));
        let eighth = "diffusion_pytorch_model.fp8_e4m3fn.safetensors";
        assert_eq!(set(&[eighth, HALF]), (owned(&[HALF]), 1));
    }

    #[test]
    fn the_index_of_files_that_are_not_there_is_left_out() {
        let index = format!(r#"{{"weight_map": {{"a": "{FIRST}", "b": "{SECOND}"}}}}"#);
        let found = taken("lonely", &[(HALF, ""), (INDEX, &index)]).unwrap();
        assert_eq!(found, (vec![HALF.into()], 1));
    }

    #[test]
    fn endings_may_be_in_capitals() {
        let (weights, config) = ("MODEL.SAFETENSORS", "config.json");
        assert_eq!(taken("capitals", &[(weights, ""), (config, "")]).unwrap().0, [weights]);
    }

    #[test]
    fn an_index_names_the_right_files() {
        let index = format!(r#"{{"weight_map": {{"a": "{FIRST}", "b": "{SECOND}"}}}}"#);
        let files = [(FIRST, ""), (SECOND, ""), (STALE, ""), (WHOLE, ""), (INDEX, &index)];
        assert_eq!(taken("index", &files).unwrap(), (vec![FIRST.into(), SECOND.into()], 2));
        let error = taken("lost", &[(FIRST, ""), (INDEX, &index)]).unwrap_err();
        assert!(error.ends_with(&format!("found none of {SECOND}")), "{error}");
        let dotted = format!(r#"{{"weight_map": {{"a": "./{WHOLE}"}}}}"#);
        let found = taken("dotted", &[(WHOLE, ""), (INDEX, &dotted)]).unwrap();
        assert_eq!(found, (vec![WHOLE.into()], 0));
        let below = r#"{"weight_map": {"a": "sub/a.safetensors"}}"#;
        let error = taken("below", &[(WHOLE, ""), (INDEX, below)]).unwrap_err();
        assert!(error.ends_with("files beside it, found \"sub/a.safetensors\""), "{error}");
        let error = taken("half", &[(STALE, "")]).unwrap_err();
        assert!(error.ends_with("found none of the other 2 of diffusion_pytorch_model"), "{error}");
    }
}
