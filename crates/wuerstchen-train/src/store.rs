//! Stores: where a training run keeps its files.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wuerstchen::checkpoint::ReadBytes;

/// The file with the metrics of a stage, in its folder.
pub const METRICS: &str = "metrics.jsonl";

/// Why a store cannot do something; the text names the file.
pub type StoreError = Box<dyn Error + Send + Sync>;

/// An error with its causes, as text.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Files by name, such as `a/state.safetensors`: states, grids of samples, metrics, the model and the config.
pub trait Store: Send + Sync {
    /// The file of that name, if there is one.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Opens that file for reading parts of it; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    fn open(&self, name: &str) -> Result<Option<Arc<dyn ReadBytes>>, StoreError> {
        Ok(self.read(name)?.map(|bytes| Arc::new(bytes) as Arc<dyn ReadBytes>))
    }

    /// Whether there is a file of that name.
    fn contains(&self, name: &str) -> bool;

    /// Writes a file, and replaces one of the same name. At any time the file is either whole or not there.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Adds bytes to the end of a file.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// What a person calls the file, such as its path.
    fn describe(&self, name: &str) -> String;

    /// Keeps the runs of other programs out until the store is dropped. A second call has no effect.
    ///
    /// # Errors
    ///
    /// Another program's run writes to this store.
    fn claim(&self) -> Result<(), StoreError>;
}

/// Files in main memory.
#[derive(Default)]
pub struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

impl Memory {
    /// The names of all files.
    pub fn names(&self) -> Vec<String> {
        self.files().keys().cloned().collect()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Memory {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.files().get(name).cloned())
    }

    fn contains(&self, name: &str) -> bool {
        self.files().contains_key(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.files().insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.files().entry(name.to_owned()).or_default().extend_from_slice(bytes);
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        name.to_owned()
    }

    fn claim(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(feature = "fs")]
pub use self::folder::{Folder, RUN_LOCK};

#[cfg(feature = "fs")]
mod folder {
    use std::fs::{File, OpenOptions, TryLockError, create_dir_all};
    use std::io::{ErrorKind, Write};
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::{ReadBytes, Store, StoreError};

    /// The file that a run locks. The file stays; its lock ends with the program, however the program ends.
    pub const RUN_LOCK: &str = "run.lock";

    /// Files in a folder, which is made when the first one is written.
    pub struct Folder {
        path: PathBuf,
        /// The locked file, once the folder is claimed.
        lock: Mutex<Option<File>>,
    }

    impl Folder {
        /// The store in the folder at a path.
        pub fn new(path: impl Into<PathBuf>) -> Self {
            Self { path: path.into(), lock: Mutex::new(None) }
        }

        /// The path of a file, in a folder that is there.
        fn path_in_folder(&self, name: &str) -> Result<PathBuf, StoreError> {
            let path = self.path.join(name);
            let folder = path.parent().unwrap_or(&self.path);
            let cannot = |error| format!("cannot create {}: {error}", folder.display());
            create_dir_all(folder).map_err(cannot)?;
            Ok(path)
        }
    }

    impl Store for Folder {
        fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
            let path = self.path.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(format!("cannot read {}: {error}", path.display()).into()),
            }
        }

        fn open(&self, name: &str) -> Result<Option<Arc<dyn ReadBytes>>, StoreError> {
            let path = self.path.join(name);
            Ok(path.exists().then(|| wuerstchen::fs::open(&path)).transpose()?)
        }

        fn contains(&self, name: &str) -> bool {
            self.path.join(name).exists()
        }

        fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
            Ok(wuerstchen::fs::write(&self.path_in_folder(name)?, bytes)?)
        }

        fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
            let path = self.path_in_folder(name)?;
            let append = || {
                let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
                file.write_all(bytes)
            };
            append().map_err(|error| format!("cannot write {}: {error}", path.display()).into())
        }

        fn describe(&self, name: &str) -> String {
            self.path.join(name).display().to_string()
        }

        fn claim(&self) -> Result<(), StoreError> {
            let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            if lock.is_some() {
                return Ok(());
            }
            let path = self.path_in_folder(RUN_LOCK)?;
            let cannot = |error| format!("cannot lock {}: {error}", path.display());
            let file = OpenOptions::new().create(true).append(true).open(&path).map_err(cannot)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    let folder = self.path.display();
                    return Err(format!(
                        "another program is training in {folder}: wait for its end, or name another \
                         folder"
                    )
                    .into());
                }
                // Some network file systems have no locks.
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
                locked => locked.map_err(|error| cannot(error.into()))?,
            }
            *lock = Some(file);
            Ok(())
        }
    }
}
