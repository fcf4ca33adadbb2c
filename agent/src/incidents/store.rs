//! The folder of incidents: one JSON file each, bounded in number and bytes, the oldest out first.
//!
//! A file is written beside and renamed, so it is whole or not there. Names begin with the time, so their
//! order is that of the incidents. Files of other names are nobody's business here.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{SCHEMA_VERSION, Stats};
use crate::event::WallTime;
use crate::input;

/// An incident is far smaller; it bounds what is read of a file that is none.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The folder below a state folder.
#[must_use]
pub fn folder_in(state_dir: &Path) -> PathBuf {
    state_dir.join("incidents")
}

/// The id of an incident: its time and its first victim, sorted as the time is.
pub(super) fn id(time: WallTime, pid: u32) -> String {
    let time: String = time.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    format!("{time}-{pid}")
}

/// `20261124T065412.123456789Z-4711`.
fn is_id(text: &str) -> bool {
    let Some((time, pid)) = text.split_once("Z-") else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    time.len() == 25
        && time.as_bytes()[8] == b'T'
        && time.as_bytes()[15] == b'.'
        && digits(&time.replace(['T', '.'], ""))
        && digits(pid)
        && pid.len() <= 10
}

fn id_of(path: &Path) -> Option<&str> {
    let id = path.file_name()?.to_str()?.strip_suffix(".json")?;
    is_id(id).then_some(id)
}

/// Writes incidents. Owned by one thread.
pub(super) struct Store {
    folder: PathBuf,
    files: BTreeMap<String, u64>,
    files_max: usize,
    bytes_max: u64,
    stats: Arc<Stats>,
    failing: bool,
}

impl Store {
    /// Looks at what is there, and takes away what is beyond the bounds and what a crash left half written.
    pub(super) fn open(folder: PathBuf, files_max: usize, bytes_max: u64, stats: Arc<Stats>) -> Self {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Some(id) = id_of(&path) {
                files.insert(id.to_owned(), entry.metadata().map_or(0, |found| found.len()));
            } else if path.extension().is_some_and(|end| end == "tmp") {
                let _ = fs::remove_file(path);
            }
        }
        let mut store = Self { folder, files, files_max, bytes_max, stats, failing: false };
        store.make_room(None);
        store
    }

    /// Writes an incident, or writes it anew, and makes room for it. What fails is said once until one
    /// succeeds again; nothing of it is left.
    ///
    /// Returns whether it is on the disk.
    pub(super) fn write(&mut self, id: &str, json: &[u8]) -> bool {
        if self.files_max == 0 || json.len() as u64 > self.bytes_max {
            return false;
        }
        let before = self.files.insert(id.to_owned(), json.len() as u64);
        self.make_room(Some(id));
        match self.try_write(id, json) {
            Ok(()) => {
                self.failing = false;
                true
            }
            Err(error) => {
                if let Some(bytes) = before {
                    self.files.insert(id.to_owned(), bytes);
                } else {
                    self.files.remove(id);
                }
                self.show();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(
                        "{} cannot be written ({error}): this incident is not kept; free space there, or make it writable",
                        self.folder.display()
                    );
                }
                false
            }
        }
    }

    /// Whether an incident that was written is still there, and has not made room for others.
    pub(super) fn has(&self, id: &str) -> bool {
        self.files.contains_key(id)
    }

    fn try_write(&self, id: &str, json: &[u8]) -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let half = self.folder.join(format!("{id}.tmp"));
        let written = (|| {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&half)?;
            file.write_all(json)?;
            file.sync_data()?;
            fs::rename(&half, self.folder.join(format!("{id}.json")))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&half);
        }
        written
    }

    fn make_room(&mut self, keep: Option<&str>) {
        let mut bytes: u64 = self.files.values().sum();
        while self.files.len() > self.files_max || bytes > self.bytes_max {
            let oldest = self.files.keys().find(|id| Some(id.as_str()) != keep).cloned();
            let Some(oldest) = oldest else { break };
            match fs::remove_file(self.folder.join(format!("{oldest}.json"))) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    // It stays in the folder; what cannot be removed must not be tried for ever.
                    tracing::warn!("{}/{oldest}.json cannot be removed: {error}", self.folder.display());
                }
                _ => self.stats.evicted(),
            }
            bytes -= self.files.remove(&oldest).unwrap_or(0);
        }
        self.show();
    }

    fn show(&self) {
        self.stats.set_files(self.files.len(), self.files.values().sum());
    }
}

/// An incident as it was read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its id.
    pub id: String,
    /// Its first kill.
    pub time: WallTime,
    /// All of it.
    pub fields: Map<String, Value>,
}

/// Why a file is no incident.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file or the folder cannot be read.
    #[error("{path} cannot be read: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// It is something else, or broken.
    #[error("{path} is no incident: {why}; remove it, or take a file that `galen agent` wrote")]
    Broken {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Reads one file.
///
/// # Errors
/// It cannot be read, or is no incident of a version that is known here.
pub fn read(path: &Path) -> Result<Stored, ReadError> {
    let io = |source| ReadError::Io { path: path.to_path_buf(), source };
    let broken = |why: String| ReadError::Broken { path: path.to_path_buf(), why };
    match input::read_bytes(path, FILE_BYTES_MAX) {
        Ok(text) => parse(&text).map_err(broken),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::FileTooLarge) => {
            Err(broken("it is no file of at most 4 MiB".to_owned()))
        }
        Err(error) => Err(io(error)),
    }
}

/// Takes an incident's bytes apart.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse(text: &[u8]) -> Result<Stored, String> {
    let fields: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match fields.get("version").and_then(Value::as_u64) {
        Some(SCHEMA_VERSION) => {}
        Some(version) => {
            return Err(format!("it is of version {version}, and {SCHEMA_VERSION} is known here"));
        }
        None => return Err("it has no `version`".to_owned()),
    }
    let word = |name: &str| fields.get(name).and_then(Value::as_str);
    let id = word("id").filter(|id| is_id(id)).ok_or("it has no `id`")?.to_owned();
    let time = word("time").and_then(WallTime::parse).ok_or("it has no `time`")?;
    let victims = fields.get("victims").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if victims.is_empty() || !victims.iter().all(|victim| victim["event"].is_object()) {
        return Err("it has no `victims` with their `event`".to_owned());
    }
    Ok(Stored { id, time, fields })
}

/// All incidents of a folder, the newest first, and what could not be read. A folder that is not there holds
/// none.
///
/// # Errors
/// The folder is there and cannot be read.
pub fn list(folder: &Path) -> Result<(Vec<Stored>, Vec<ReadError>), ReadError> {
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for path in paths(folder)? {
        match read(&path) {
            Ok(incident) => found.push(incident),
            // Evicted between the two looks.
            Err(ReadError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(error) => broken.push(error),
        }
    }
    Ok((found, broken))
}

/// The files of a folder whose names are those of incidents, the newest first.
///
/// # Errors
/// The folder is there and cannot be read.
pub fn paths(folder: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ReadError::Io { path: folder.to_path_buf(), source }),
    };
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| id_of(path).is_some()).collect();
    paths.sort();
    paths.reverse();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn incident(n: u64) -> (String, Vec<u8>) {
        let time = WallTime(1_795_500_000_000_000_000 + n);
        let id = id(time, 7);
        let json = serde_json::json!({
            "version": 1, "id": id, "time": time, "victims": [{ "event": { "kind": "oom_kill" } }]
        });
        (id, serde_json::to_vec(&json).unwrap())
    }

    fn store(folder: &Path, files_max: usize, bytes_max: u64) -> (Store, Arc<Stats>) {
        let stats = Arc::<Stats>::default();
        (Store::open(folder.to_path_buf(), files_max, bytes_max, Arc::clone(&stats)), stats)
    }

    #[test]
    fn what_was_written_is_read_back_and_is_nobody_elses() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder_in(&place.path().join("state"));
        let (mut store, _) = store(&folder, 10, 1 << 20);
        let (id, json) = incident(1);
        assert!(store.write(&id, &json) && store.write(&id, &json), "twice is once");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = folder.join(format!("{id}.json"));
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
        let (found, broken) = list(&folder).unwrap();
        assert_eq!((found.len(), broken.len()), (1, 0));
        assert_eq!((found[0].id.as_str(), found[0].time.0), (id.as_str(), 1_795_500_000_000_000_001));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing half written is left");
    }

    #[test]
    fn a_broken_file_is_one_sentence_and_the_others_are_read() {
        let place = tempfile::tempdir().unwrap();
        let (mut store, _) = store(place.path(), 10, 1 << 20);
        let (good, json) = incident(1);
        store.write(&good, &json);
        let cases: [&[u8]; 6] = [
            b"",
            b"{\"version\":1",
            b"[]",
            b"{\"version\":2}",
            b"{\"version\":1,\"id\":\"../x\"}",
            &[0xff, 0xfe],
        ];
        for (n, text) in cases.iter().enumerate() {
            fs::write(place.path().join(format!("{}.json", incident(n as u64 + 10).0)), text).unwrap();
        }
        fs::write(place.path().join("notes.json"), "mine").unwrap();
        let (found, broken) = list(place.path()).unwrap();
        assert_eq!((found.len(), broken.len()), (1, cases.len()));
        let said = broken.iter().find(|error| error.to_string().contains("version 2")).unwrap().to_string();
        assert!(
            said.contains(".json is no incident: it is of version 2") && said.contains("remove it"),
            "{said}"
        );
        assert_eq!(list(&place.path().join("nowhere")).unwrap().0, []);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_counted_by_the_caller_and_passes() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("incidents");
        // Also root cannot make a folder where a file is.
        fs::write(&folder, "").unwrap();
        let (mut store, stats) = store(&folder, 10, 1 << 20);
        let (id, json) = incident(1);
        assert!(!store.write(&id, &json));
        assert_eq!(stats.read().files, (0, 0));
        fs::remove_file(&folder).unwrap();
        assert!(store.write(&id, &json));
        assert_eq!(stats.read().files, (1, json.len() as u64));
    }

    #[test]
    fn a_restart_counts_what_is_there_and_clears_what_is_half() {
        let place = tempfile::tempdir().unwrap();
        let (mut first, _) = store(place.path(), 10, 1 << 20);
        for n in 0..5 {
            let (id, json) = incident(n);
            first.write(&id, &json);
        }
        fs::write(place.path().join("x.tmp"), "half").unwrap();
        let (_, stats) = store(place.path(), 3, 1 << 20);
        assert_eq!((stats.read().files.0, stats.read().evicted), (3, 2));
        let left = paths(place.path()).unwrap();
        assert_eq!(left.len(), 3);
        assert!(left[2].to_str().unwrap().contains(&incident(2).0), "{left:?}");
        assert!(!place.path().join("x.tmp").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn bounds_hold_and_the_newest_stay(
            sizes in prop::collection::vec(1usize..3000, 1..40),
            files_max in 0usize..8,
            bytes_max in 0u64..8000,
        ) {
            let place = tempfile::tempdir().unwrap();
            let (mut store, stats) = store(place.path(), files_max, bytes_max);
            let mut kept = 0;
            for (n, size) in sizes.iter().enumerate() {
                let fits = files_max > 0 && *size as u64 <= bytes_max;
                let written = store.write(&incident(n as u64).0, &vec![b'x'; *size]);
                prop_assert_eq!(written, fits);
                kept += u64::from(written);
                let files = paths(place.path()).unwrap();
                let bytes: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
                prop_assert!(files.len() <= files_max && bytes <= bytes_max);
                let reading = stats.read();
                prop_assert_eq!(reading.files, (files.len() as u64, bytes));
                prop_assert_eq!(files.len() as u64 + reading.evicted, kept);
                if written {
                    prop_assert_eq!(id_of(&files[0]).unwrap(), incident(n as u64).0);
                }
            }
        }
    }
}
