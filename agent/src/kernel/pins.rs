//! The folder of pins: what keeps programs attached and counters alive while no agent runs.
//!
//! `FOLDER/NUMBER/` is one set: all maps, programs and links of one load, and a manifest that says what they
//! are. A set is complete when it has its manifest, which is written last; a newer one replaces an older one
//! only then. One agent uses the folder at a time, by a lock on it that the kernel lets go of when the agent
//! ends, however it ends.
//!
//! Invariant: nothing that is found there is trusted, and none of it is a reason not to start. The folder has to
//! be ours alone, the manifest readable and of this layout, and each pin the very object that it names.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use galen_common::LAYOUT_VERSION;
use serde::{Deserialize, Serialize};

use super::pinned;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// The manifest's pin.
const MANIFEST: &str = "manifest";
/// Bytes that a manifest may have.
const MANIFEST_BYTES: usize = 32 * 1024;

/// How often the lock is tried: a doctor that looks who holds it, or an agent whose end the kernel is not done
/// with, has it for an instant.
const TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// Where pins are, and whose.
#[derive(Clone, Copy, Debug)]
pub struct Pinning<'a> {
    /// The folder, in a BPF filesystem.
    pub folder: &'a Path,
    /// The state folder of the agent: another agent's counters are not continued.
    pub owner: &'a Path,
}

/// What a set consists of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`LAYOUT_VERSION`].
    pub layout: u32,
    /// The state folder.
    pub owner: PathBuf,
    /// Stands for everything that decides what the maps hold.
    pub maps_key: u64,
    /// Stands for everything else that decides what the programs do.
    pub programs_key: u64,
    /// Each pin's kernel number.
    pub ids: BTreeMap<String, u32>,
    /// CPUs that the maps and programs are made for; 0 in a set of an earlier version, which does not say.
    #[serde(default)]
    pub cpus: u32,
    /// Rings for CPUs.
    pub rings: u32,
    /// Copies of each cgroup's counters.
    pub shards: u64,
    /// Hook, variant and what was refused of each probe, in order.
    pub probes: Vec<(String, String, Vec<String>)>,
    /// Variant and what was refused of the changes of cgroups.
    pub changes: (String, Vec<String>),
    /// Attachments that cannot be pinned on this kernel, and are made anew: program, category, hook.
    pub unpinned: Vec<(String, String, String)>,
}

impl Manifest {
    /// By the bytes of its pin: JSON up to the first NUL. Pure.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// CPUs to make maps and programs for, where a set with this manifest is there and so many are online: the set
    /// goes on as it is, since a CPU more or less takes nothing away from what it counts.
    #[must_use]
    pub const fn cpus_or(&self, online: u32) -> u32 {
        if self.cpus == 0 { online } else { self.cpus }
    }

    /// Whether each probe that is switched on has one.
    #[must_use]
    pub fn has_every_hook(&self) -> bool {
        self.probes.iter().all(|(_, variant, refused)| {
            variant != "none" || refused.iter().any(|reason| reason.starts_with("switched off"))
        })
    }
}

/// The folder, held.
pub(super) struct Place {
    folder: PathBuf,
    lock: File,
}

/// A complete set.
pub(super) struct Found {
    pub set: PinSet,
    pub manifest: Manifest,
    /// What is pinned, by the pins' names.
    pub objects: BTreeMap<String, OwnedFd>,
}

/// The paths of one set.
#[derive(Clone, Debug)]
pub(super) struct PinSet {
    folder: PathBuf,
}

impl Place {
    /// Takes the folder for this agent, makes it if need be.
    ///
    /// # Errors
    /// A sentence: why nothing is pinned, and the way out.
    pub(super) fn take(folder: &Path) -> Result<Self, String> {
        let at = folder.display();
        let parent = folder.parent().unwrap_or(folder);
        is_bpf_filesystem(parent)?;
        match fs::symlink_metadata(folder) {
            Ok(found) if is_ours(&found) => {}
            Ok(found) => {
                remove_foreign(folder, &found).map_err(|why| {
                    format!("{at} is not ours alone ({why}): remove it, or give `kernel.pin_dir` another one")
                })?;
                tracing::warn!("{at} was not ours alone, and is removed");
                make(folder)?;
            }
            Err(_) => make(folder)?,
        }
        let lock = File::open(folder).map_err(|error| format!("{at} cannot be opened: {error}"))?;
        let mut tries = 1;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { folder: folder.to_path_buf(), lock }),
                Err(TryLockError::WouldBlock) if tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(BETWEEN_TRIES);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(format!(
                        "another agent uses {at}: give this one a `kernel.pin_dir` of its own, or \"\" for none"
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(format!("{at} cannot be locked: {error}")),
            }
        }
    }

    /// Whether the folder that is held is still the one at its path, and not removed or another agent's.
    pub(super) fn is_there(&self) -> bool {
        let (held, there) = (self.lock.metadata(), fs::symlink_metadata(&self.folder));
        held.is_ok_and(|held| there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())))
    }

    /// The newest complete set; `None` when there is nothing at all.
    ///
    /// # Errors
    /// A sentence: why nothing of what is there can be used.
    pub(super) fn find(&self) -> Result<Option<Found>, String> {
        let mut reason = None;
        for number in numbers(&self.folder).into_iter().rev() {
            match PinSet::of(&self.folder, number).open() {
                Ok(found) => return Ok(Some(found)),
                Err(why) => reason = reason.or(Some(why)),
            }
        }
        reason.map_or(Ok(None), Err)
    }

    /// Makes the folder of a new set.
    pub(super) fn begin(&self) -> Result<PinSet, String> {
        let number = numbers(&self.folder).last().map_or(1, |last| last + 1);
        let set = PinSet::of(&self.folder, number);
        make(&set.folder)?;
        Ok(set)
    }

    /// Removes every other set, which detaches its programs, and says what else is there.
    pub(super) fn keep_only(&self, kept: &PinSet) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path == kept.folder {
                continue;
            }
            if number_of(&path).is_none() {
                tracing::warn!("{} is not ours, and is left alone", path.display());
            } else if let Err(error) = remove(&path) {
                tracing::error!("{} cannot be removed ({error}): its programs stay attached", path.display());
            }
        }
    }
}

impl PinSet {
    fn of(folder: &Path, number: u64) -> Self {
        Self { folder: folder.join(number.to_string()) }
    }

    /// The newest one, complete or not, when the folder is ours alone.
    pub(super) fn newest(folder: &Path) -> Option<Self> {
        let is_ours = fs::symlink_metadata(folder).is_ok_and(|found| is_ours(&found));
        let number = numbers(folder).pop().filter(|_| is_ours)?;
        Some(Self::of(folder, number))
    }

    /// Its number; a set that replaces another has a larger one.
    pub(super) fn number(&self) -> u64 {
        number_of(&self.folder).unwrap_or(0)
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(format!("map_{name}"))
    }

    /// Where a CPU's ring is pinned.
    pub(super) fn ring(&self, index: u32) -> PathBuf {
        self.folder.join(format!("ring_{index}"))
    }

    /// Where a program is pinned.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(format!("program_{name}"))
    }

    /// Where a program's attachment to a hook is pinned.
    pub(super) fn link(&self, program: &str, hook: &str) -> PathBuf {
        self.folder.join(format!("link_{program}__{hook}"))
    }

    /// Opens a complete set, each pin of which is what the manifest says.
    fn open(self) -> Result<Found, String> {
        let at = self.folder.display().to_string();
        let manifest =
            self.manifest().map_err(|why| format!("{at} has no manifest that can be read: {why}"))?;
        if manifest.layout != LAYOUT_VERSION {
            return Err(format!("{at} is of layout version {}, not {LAYOUT_VERSION}", manifest.layout));
        }
        let mut objects = BTreeMap::new();
        for (name, id) in &manifest.ids {
            if name.contains('/') {
                return Err(format!("{at}: `{name}` is no name of a pin"));
            }
            let object =
                pinned::open(&self.folder.join(name)).map_err(|error| format!("{at}/{name}: {error}"))?;
            if pinned::id(object.as_fd()) != Some(*id) {
                return Err(format!("{at}/{name} is another object than the one that was pinned there"));
            }
            objects.insert(name.clone(), object);
        }
        Ok(Found { set: self, manifest, objects })
    }

    fn manifest(&self) -> Result<Manifest, String> {
        let data =
            MapData::from_pin(self.folder.join(MANIFEST)).map_err(|error| super::load::chain(&error))?;
        let map = Map::from_map_data(data).map_err(|error| error.to_string())?;
        let map: Array<_, [u8; MANIFEST_BYTES]> =
            map.try_into().map_err(|error: aya::maps::MapError| error.to_string())?;
        let bytes = map.get(&0, 0).map_err(|error| error.to_string())?;
        Manifest::parse(&bytes)
    }

    /// Pins what an older set holds of maps and rings here too.
    pub(super) fn inherit(&self, older: &Found) -> Result<(), String> {
        for (name, object) in &older.objects {
            if name.starts_with("map_") || name.starts_with("ring_") {
                pinned::pin(object.as_fd(), &self.folder.join(name))
                    .map_err(|error| format!("{name} cannot be pinned again: {error}"))?;
            }
        }
        Ok(())
    }

    /// Makes the set complete.
    pub(super) fn complete(&self, mut manifest: Manifest) -> Result<(), String> {
        manifest.layout = LAYOUT_VERSION;
        for entry in fs::read_dir(&self.folder).map_err(|error| error.to_string())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let object = pinned::open(&entry.path()).map_err(|error| format!("{name}: {error}"))?;
            let id = pinned::id(object.as_fd()).ok_or_else(|| format!("{name} has no number"))?;
            manifest.ids.insert(name, id);
        }
        let text = serde_json::to_vec(&manifest).map_err(|error| error.to_string())?;
        let mut bytes = [0; MANIFEST_BYTES];
        let place = bytes.get_mut(..text.len()).filter(|_| text.len() < MANIFEST_BYTES);
        place
            .ok_or_else(|| format!("a manifest of {} bytes is too long", text.len()))?
            .copy_from_slice(&text);
        let size = u32::try_from(MANIFEST_BYTES).unwrap_or(u32::MAX);
        let definition = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, size, 1, 0);
        let failed = |error: aya::maps::MapError| super::load::chain(&error);
        let data = MapData::create(definition, MANIFEST, None).map_err(failed)?;
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        let mut map: Array<_, [u8; MANIFEST_BYTES]> = Map::Array(data).try_into().map_err(failed)?;
        map.set(0, bytes, 0).map_err(failed)?;
        pinned::pin(fd.as_fd(), &self.folder.join(MANIFEST)).map_err(|error| error.to_string())
    }

    /// Removes the set. What a process holds of it stays attached until that ends.
    pub(super) fn remove(&self) {
        if let Err(error) = remove(&self.folder) {
            tracing::error!(
                "{} cannot be removed ({error}): `galen agent --unpin` does",
                self.folder.display()
            );
        }
    }

    /// Removes the set, and the folder when nothing else is in it.
    pub(super) fn remove_with_folder(&self) {
        self.remove();
        if let Some(folder) = self.folder.parent() {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn is_bpf_filesystem(folder: &Path) -> Result<(), String> {
    let at = folder.display();
    let kind = rustix::fs::statfs(folder)
        .map_err(|error| format!("{at} cannot be looked at ({error}): mount -t bpf bpf /sys/fs/bpf"))?;
    #[allow(clippy::unnecessary_cast, reason = "its type is another on other architectures")]
    let magic = kind.f_type as i64;
    if magic == BPF_FS_MAGIC {
        return Ok(());
    }
    Err(format!("{at} is no BPF filesystem: mount -t bpf bpf /sys/fs/bpf"))
}

/// Everybody may make folders in a BPF filesystem, and whoever owns this one could change what is in it.
fn is_ours(folder: &fs::Metadata) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    folder.is_dir() && [0, uid].contains(&folder.uid()) && folder.mode() & 0o022 == 0
}

/// Removes what is in the folder's place, when it is a link or holds nothing but sets of pins.
fn remove_foreign(folder: &Path, found: &fs::Metadata) -> Result<(), String> {
    if !found.is_dir() {
        return fs::remove_file(folder).map_err(|error| error.to_string());
    }
    match remove_sets(folder) {
        Ok(Removed { left: 0, .. }) => Ok(()),
        Ok(removed) => Err(format!("{} other things are in it", removed.left)),
        Err((path, error)) => Err(format!("{}: {error}", path.display())),
    }
}

fn make(folder: &Path) -> Result<(), String> {
    DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .map_err(|error| format!("{} cannot be made: {error}", folder.display()))
}

fn remove(path: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

fn numbers(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut numbers: Vec<u64> = entries.filter_map(|entry| number_of(&entry.path())).collect();
    numbers.sort_unstable();
    numbers
}

/// Whether an agent holds the folder.
#[allow(clippy::needless_pass_by_value, reason = "it is closed at once, so that no agent finds it locked")]
fn is_locked(folder: File) -> bool {
    matches!(folder.try_lock(), Err(TryLockError::WouldBlock))
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Attachments of programs.
    pub links: usize,
    /// Programs.
    pub programs: usize,
    /// Maps and anything else.
    pub others: usize,
    /// What is not ours, and still there.
    pub left: usize,
    /// Whether an agent runs that goes on with them until it ends.
    pub in_use: bool,
}

/// Removes the sets of pins in a folder of a BPF filesystem, and the folder when nothing else is in it; `None` when
/// there is no folder. What is no set of pins is left alone.
///
/// # Errors
/// The path that cannot be removed, and why.
pub fn unpin(folder: &Path) -> Result<Option<Removed>, (PathBuf, std::io::Error)> {
    if let Err(error) = fs::symlink_metadata(folder) {
        let is_absent = error.kind() == std::io::ErrorKind::NotFound;
        return if is_absent { Ok(None) } else { Err((folder.to_path_buf(), error)) };
    }
    // The folder's parent too: the root of a BPF filesystem is everybody's.
    for place in [folder, folder.parent().unwrap_or(folder)] {
        is_bpf_filesystem(place).map_err(|why| (folder.to_path_buf(), std::io::Error::other(why)))?;
    }
    remove_sets(folder).map(Some)
}

fn remove_sets(folder: &Path) -> Result<Removed, (PathBuf, std::io::Error)> {
    let failed = |error| (folder.to_path_buf(), error);
    let in_use = File::open(folder).is_ok_and(is_locked);
    let mut removed = Removed { in_use, ..Removed::default() };
    for entry in fs::read_dir(folder).map_err(failed)?.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && number_of(&entry.path()).is_some() {
            remove_set(&entry.path(), &mut removed)?;
        } else {
            removed.left += 1;
        }
    }
    if removed.left == 0 {
        fs::remove_dir(folder).map_err(failed)?;
    }
    Ok(removed)
}

/// Removes what a set consists of, and its folder when nothing else is in it.
fn remove_set(set: &Path, removed: &mut Removed) -> Result<(), (PathBuf, std::io::Error)> {
    let failed = |error| (set.to_path_buf(), error);
    let left_before = removed.left;
    for entry in fs::read_dir(set).map_err(failed)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let count = match name.split('_').next() {
            Some("link") => &mut removed.links,
            Some("program") => &mut removed.programs,
            Some("map" | "ring" | MANIFEST) => &mut removed.others,
            _ => {
                removed.left += 1;
                continue;
            }
        };
        fs::remove_file(&path).map_err(|error| (path, error))?;
        *count += 1;
    }
    if removed.left == left_before { fs::remove_dir(set).map_err(failed) } else { Ok(()) }
}

/// What is pinned there, in a sentence, and who uses it. Changes nothing.
///
/// # Errors
/// A sentence: why nothing could be pinned there.
pub fn look(folder: &Path) -> Result<String, String> {
    let at = folder.display();
    is_bpf_filesystem(folder.parent().unwrap_or(folder))?;
    let lock = match File::open(folder) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(format!("none yet at {at}")),
        Err(error) => return Err(format!("{at} cannot be read: {error}")),
    };
    let in_use = is_locked(lock);
    let Some(newest) = PinSet::newest(folder) else { return Ok(format!("none at {at}")) };
    let user = if in_use { "a running agent" } else { "no agent at the moment" };
    Ok(match newest.open() {
        Ok(found) => {
            let links = found.objects.keys().filter(|name| name.starts_with("link_")).count();
            format!(
                "{links} attachments and their counters at {at}, in use by {user}; `galen agent --unpin` removes them"
            )
        }
        Err(why) => format!("replaced at the next start: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpinning_leaves_nothing_behind_and_says_what_there_was() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("galen");
        assert_eq!(unpin(&folder).unwrap(), None, "nothing there is no error");
        let (_, why) = unpin(place.path()).unwrap_err();
        assert!(why.to_string().contains("no BPF filesystem"), "{why}");
        let set = PinSet::of(&folder, 7);
        fs::create_dir_all(&set.folder).unwrap();
        for path in [set.map("A"), set.ring(0), set.program("p"), set.link("p", "h"), set.link("p", "i")] {
            fs::write(path, "").unwrap();
        }
        let removed = remove_sets(&folder).unwrap();
        assert_eq!(removed, Removed { links: 2, programs: 1, others: 2, ..Removed::default() });
        assert!(!folder.exists());
    }

    #[test]
    fn what_is_no_set_of_pins_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("galen");
        let (set, other) = (PinSet::of(&folder, 7), folder.join("other"));
        fs::create_dir_all(&set.folder).unwrap();
        fs::create_dir_all(&other).unwrap();
        let precious = [set.folder.join("precious"), other.join("map_A"), folder.join("9")];
        for path in precious.iter().chain(&[set.map("A")]) {
            fs::write(path, "").unwrap();
        }
        let removed = remove_sets(&folder).unwrap();
        assert_eq!(removed, Removed { others: 1, left: 3, ..Removed::default() });
        assert!(precious.iter().all(|path| path.exists()) && !set.map("A").exists());
    }

    #[test]
    fn a_folder_in_use_is_known_to_be() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("galen");
        fs::create_dir(&folder).unwrap();
        let lock = File::open(&folder).unwrap();
        lock.try_lock().unwrap();
        assert!(remove_sets(&folder).unwrap().in_use);
    }

    #[test]
    fn a_folder_that_is_in_no_bpf_filesystem_is_said_with_the_way_out() {
        let place = tempfile::tempdir().unwrap();
        let reason = Place::take(&place.path().join("galen")).err().unwrap();
        assert!(reason.contains("mount -t bpf"), "{reason}");
    }

    #[test]
    fn a_manifest_of_before_does_not_say_how_many_cpus_it_is_for() {
        let manifest = Manifest { cpus: 3, ..Manifest::default() };
        let mut text = serde_json::to_value(&manifest).unwrap();
        assert_eq!(Manifest::parse(text.to_string().as_bytes()).unwrap().cpus_or(8), 3);
        text.as_object_mut().unwrap().remove("cpus");
        assert_eq!(Manifest::parse(text.to_string().as_bytes()).unwrap().cpus_or(8), 8);
    }

    #[test]
    fn sets_are_counted_up_and_what_is_no_number_is_none() {
        let place = tempfile::tempdir().unwrap();
        for name in ["2", "10", "x", "-1"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        assert_eq!(numbers(place.path()), [2, 10]);
    }
}
