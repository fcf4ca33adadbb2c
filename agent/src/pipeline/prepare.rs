//! What is done before the runtime has threads: loading, attaching, and giving up what that needed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio::sync::oneshot;

use super::book::Book;
use super::clock::{monotonic, slept_ns};
use super::cost::Cost;
use super::loaded::{LoadedCore, start_core};
use super::start::{StartError, start_policies};
use super::state_lock::lock_state_dir;
use crate::config::Config;
use crate::healing::policy::{PolicySet, Spec};
use crate::identity::{Cgroups, OomFunctions, Processes};
use crate::incidents::KernelLog;
use crate::inspection::target::Target;
use crate::kernel::cgroups::Hierarchies;
use crate::kernel::{Notes, Programs};
use crate::privilege::capabilities::{self, BPF, Capabilities, DAC_READ_SEARCH, NET_BIND_SERVICE};
use crate::privilege::links::Links;
use crate::privilege::{self, Plan};
use crate::server::LocalSocket;

/// What the C library's resolver and the reading of root certificates open. The files in `/etc` are replaced
/// by renaming, and a rule for a file does not hold for its successor, so the folder is named.
const FOR_NAMES: [&str; 7] = [
    "/etc",
    "/run/systemd/resolve",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/var/lib/ca-certificates",
];

/// An agent that observes already and has no tasks yet.
pub struct Prepared {
    pub(super) lock: Option<File>,
    /// For the next start.
    pub(super) notes: Option<Notes>,
    pub(super) loaded: LoadedCore,
    pub(super) book: Arc<Book>,
    pub(super) hierarchies: Hierarchies,
    /// Opened while it may be.
    pub(super) kernel_log: Option<KernelLog>,
    pub(super) policies: PolicySet,
    pub(super) links: Links,
    pub(super) oom_functions: Arc<OnceLock<OomFunctions>>,
    /// Told when these have been read, or cannot be.
    pub(super) symbols: oneshot::Receiver<()>,
    pub(super) socket: Option<LocalSocket>,
}

/// Loads and attaches, and then gives up what only that needed. Must be called while there is no other thread,
/// so that all later ones inherit it. `config_file` is what SIGHUP reads again.
///
/// # Errors
/// [`StartError`], before anything was loaded.
pub fn prepare(
    config: &Config,
    targets: &[Arc<Target>],
    config_file: Option<&Path>,
) -> Result<Prepared, StartError> {
    let lock = lock_state_dir(&config.state_dir)?;
    let oom_functions = Arc::new(OnceLock::new());
    let symbols = read_oom_functions(config, &oom_functions)?;
    let hierarchies = Hierarchies::find(&config.host.proc, &config.host.cgroup).unwrap_or_default();
    let mut loaded = LoadedCore::split(start_core(config, &hierarchies));
    loaded.unkept = lock.is_none().then(|| {
        let folder = config.state_dir.display();
        format!("the state folder {folder} cannot be used: no audit trail and no incidents are kept")
    });
    let own = &config.identity;
    let cgroups = Cgroups::new(&hierarchies, own.cgroups_bytes.0, own.keep_removed.0);
    crate::memory::give_back();
    let policies = start_policies(config);
    let socket = local_socket(config);
    let links = Links::start(&config.privileges).map_err(StartError::Thread)?;

    let processes =
        Processes::new(config.host.proc.clone(), links.clone(), own.processes_bytes.0, slept_ns());
    let kernel_log = KernelLog::open(&config.host.kernel_log);
    let plan = plan(config, (targets, config_file), &policies, &loaded);
    let confinement = privilege::confine(&config.privileges, &plan);
    tracing::info!("privileges: {confinement}");
    for lack in &confinement.lacks {
        tracing::warn!("privileges: {lack}");
    }
    let mut kept = std::mem::take(&mut loaded.kept);
    let notes = kept.notes.take();
    let book = Arc::new(Book::new(
        loaded.counters.take(),
        loaded.costs.take().map(|costs| Cost::new(costs, config.kernel.cost_budget)),
        kept,
        Arc::clone(&loaded.report),
        (cgroups, processes),
        &config.kernel,
        monotonic(),
    ));
    Ok(Prepared {
        lock,
        notes,
        loaded,
        book,
        hierarchies,
        kernel_log,
        policies,
        links,
        oom_functions,
        symbols,
        socket,
    })
}

fn local_socket(config: &Config) -> Option<LocalSocket> {
    if config.api.socket.as_os_str().is_empty() {
        return None;
    }
    match LocalSocket::bind(&config.api.socket, config.api.group.as_deref()) {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!("{error}");
            None
        }
    }
}

fn plan(
    config: &Config,
    (targets, config_file): (&[Arc<Target>], Option<&Path>),
    policies: &PolicySet,
    loaded: &LoadedCore,
) -> Plan {
    let mut keep = DAC_READ_SEARCH;
    if (1..1024).contains(&config.listen.port()) {
        keep = keep | NET_BIND_SERVICE;
    }
    // Before Linux 5.19 reading a map needs it where the system keeps BPF from ordinary users.
    if let Some((counters, _)) = &loaded.counters
        && !capabilities::works_without(|| counters.read().is_ok())
    {
        keep = keep | BPF;
    }
    debug_assert!(keep != Capabilities::NONE);
    Plan {
        keep,
        read: readable(config, (targets, config_file), policies),
        write: vec![config.state_dir.clone()],
        remove: config.api.socket.parent().map(Path::to_path_buf).into_iter().collect(),
        remove_all: loaded
            .programs
            .as_ref()
            .is_some_and(Programs::are_pinned)
            .then(|| config.kernel.pin_dir.clone()),
        ports: vec![config.listen.port()],
        programs: !config.healing.exec_allow.is_empty(),
    }
}

fn readable(
    config: &Config,
    (targets, config_file): (&[Arc<Target>], Option<&Path>),
    policies: &PolicySet,
) -> Vec<PathBuf> {
    let host = &config.host;
    // Its own entries are always read in the usual place.
    let mut paths: Vec<PathBuf> =
        vec!["/proc".into(), host.proc.clone(), host.cgroup.clone(), "/sys/devices/system/cpu".into()];
    match &host.tracefs {
        Some(tracefs) => paths.push(tracefs.clone()),
        None => paths.push("/sys/kernel/tracing".into()),
    }
    paths.extend(config_file.into_iter().flat_map(folders));
    paths.extend(config.healing.policies.iter().flat_map(|pattern| folders(Path::new(pattern))));
    paths.extend(policies.policies.iter().flat_map(|policy| folders(Path::new(&policy.file))));
    paths.extend(targets.iter().flat_map(|target| target.checker.files()).flat_map(|file| folders(file)));
    // A target's name is looked up anew at each check.
    let mut names = !targets.is_empty();
    for action in policies.policies.iter().flat_map(|policy| &policy.actions) {
        if let Spec::Webhook { url, token_file, .. } = &action.spec {
            names |= needs_names(url);
            paths.extend(token_file.as_deref().into_iter().flat_map(folders));
        }
    }
    if names {
        paths.extend(FOR_NAMES.map(PathBuf::from));
        paths
            .extend(["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().filter_map(std::env::var_os).map(PathBuf::from));
    }
    paths
}

/// The folder that a file is in, and the one that it leads to: files are replaced, by editors and by volumes of
/// a cluster, and a folder stays.
fn folders(file: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = |path: &Path| {
        let folder = path.parent()?;
        Some(if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_path_buf() })
    };
    let target = file.canonicalize().ok();
    [folder(file), target.as_deref().and_then(folder)].into_iter().flatten()
}

/// Whether a URL takes names to be resolved or certificates to be checked.
fn needs_names(url: &str) -> bool {
    let Ok(uri) = url.parse::<hyper::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    uri.scheme_str() == Some("https") || host.parse::<std::net::IpAddr>().is_err()
}

/// Reading some hundred thousand symbols takes longer than everything else at the start, so it runs beside. The
/// right to see addresses is needed to open the file, so the reader gives all rights up first.
fn read_oom_functions(
    config: &Config,
    functions: &Arc<OnceLock<OomFunctions>>,
) -> Result<oneshot::Receiver<()>, StartError> {
    let (done, read) = oneshot::channel();
    let noted = Notes::left_in(&config.kernel.pin_dir);
    if let Some(found) = noted.and_then(|text| serde_json::from_slice(&text).ok()) {
        let _ = functions.set(found);
        let _ = done.send(());
        return Ok(read);
    }
    let opened = OomFunctions::open(&config.host.proc);
    let path = config.host.proc.join("kallsyms");
    let (functions, drop_all) = (Arc::clone(functions), config.privileges.drop);
    let work = move || {
        if drop_all {
            // What comes of it shows when the agent itself gives them up.
            let _ = capabilities::keep(Capabilities::NONE);
        }
        match opened.and_then(OomFunctions::read) {
            Ok(found) => {
                let _ = functions.set(found);
            }
            Err(error) => tracing::warn!(
                "{} cannot be read ({error}): the scope of OOM kills stays unknown",
                path.display()
            ),
        }
        let _ = done.send(());
        // The last step of the start.
        crate::memory::give_back_after_start();
    };
    std::thread::Builder::new().name("galen-symbols".into()).spawn(work).map_err(StartError::Thread)?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_for_names_and_for_certificates() {
        assert!(needs_names("http://hooks.example/x") && needs_names("http://localhost:1/"));
        assert!(needs_names("https://10.0.0.1/"));
        assert!(!needs_names("http://10.0.0.1:9000/hook") && !needs_names("http://[::1]:9000/hook"));
    }

    #[test]
    fn a_file_that_is_a_link_has_both_folders() {
        let place = tempfile::tempdir().unwrap();
        let (there, here) = (place.path().join("there"), place.path().join("here"));
        std::fs::create_dir(&there).unwrap();
        std::fs::create_dir(&here).unwrap();
        std::fs::write(there.join("a"), "").unwrap();
        std::os::unix::fs::symlink(there.join("a"), here.join("a")).unwrap();
        let found: Vec<_> = folders(&here.join("a")).collect();
        assert_eq!(found, [here, there.canonicalize().unwrap()]);
        assert_eq!(folders(Path::new("galen-none.yaml")).collect::<Vec<_>>(), [PathBuf::from(".")]);
    }

    #[test]
    fn files_of_names_are_read_only_when_a_policy_or_a_target_needs_them() {
        let config = Config::default();
        let none = readable(&config, (&[], None), &PolicySet::default());
        assert!(!none.contains(&PathBuf::from("/etc")), "{none:?}");
        let value = serde_json::json!({ "name": "db", "tcp": { "address": "db:5432" } });
        let target = Arc::new(crate::inspection::target::read(&value, &config.inspection).unwrap());
        let named = readable(&config, (&[target], None), &PolicySet::default());
        assert!(named.contains(&PathBuf::from("/etc")), "{named:?}");
    }
}
