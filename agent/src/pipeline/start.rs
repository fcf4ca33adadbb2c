//! Starting the agent and ending it in order.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::book::{Book, lock};
use super::drain::Drain;
use super::enrich::Enricher;
use super::hierarchy::Hierarchy;
use super::inspecting::Inspecting;
use super::loaded::{LoadedCore, blind_to, readiness_of};
use super::outlet::{Outlet, Parts};
use super::prepare::Prepared;
use crate::config::{Config, Mode, Output};
use crate::event::{Event, FaultSignal, WallTime};
use crate::healing::audit::Audit;
use crate::healing::policy::PolicySet;
use crate::healing::{Ends, Healer, HealerClient};
use crate::identity::OomFunctions;
use crate::identity::cri::{self, Cri};
use crate::incidents::{self, Incidents};
use crate::input;
use crate::inspection::Change;
use crate::inspection::target::Target;
use crate::kernel::{Notes, Programs};
use crate::server::{Api, LocalSocket, Readiness, Server, State};
use crate::sink::history::History;
use crate::sink::metrics::Counters;
use crate::sink::stdout::Stdout;

/// How often a listener that is taken is tried again.
const LISTEN_RETRY: Duration = Duration::from_secs(5);
/// What the parts get to end in; together they stay below the 5 s that the agent promises.
const TASKS_DEADLINE: Duration = Duration::from_millis(3200);
const STDOUT_DEADLINE: Duration = Duration::from_millis(1000);
const INCIDENTS_DEADLINE: Duration = Duration::from_millis(500);

/// Why the agent does not start at all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Two agents on one state folder would heal twice.
    #[error(
        "another galen agent (pid {pid}) uses {}: stop it, or give this one a `state_dir` of its own",
        folder.display()
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who holds it, as it wrote down.
        pid: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}; the system is out of processes or memory")]
    Thread(std::io::Error),
}

/// Reads the configuration and its targets anew.
type Reload = Arc<dyn Fn() -> Option<(Config, Vec<Arc<Target>>)> + Send + Sync>;

/// What the command line adds to the configuration.
pub struct Options {
    /// The effective configuration.
    pub config: Config,
    /// The targets that it names.
    pub targets: Vec<Arc<Target>>,
    /// Gives the configuration anew, or says why it cannot and gives `None`.
    pub reload: Reload,
    /// Told to read the configuration again.
    pub reload_requests: mpsc::Receiver<()>,
    /// Ends the agent.
    pub shutdown: CancellationToken,
    /// Told besides to leave nothing pinned.
    pub unpin: CancellationToken,
}

/// Runs a prepared agent until it is told to end.
///
/// # Errors
/// [`StartError::Thread`].
pub async fn run(options: Options, mut prepared: Prepared) -> Result<(), StartError> {
    let Options { config, targets, reload, reload_requests, shutdown, unpin } = options;
    let _lock = prepared.lock.take();
    let outputs = open_outputs(&config)?;
    // Programs stay attached as long as this lives, and those that are pinned longer.
    let mut programs = prepared.loaded.programs.take();
    let (incidents, incidents_ended) = start_incidents(&config, &mut prepared, &outputs.counters)?;
    let (inspecting, inspected) = Inspecting::new();
    inspecting.set(targets, &config.inspection).await;
    let threads = Threads { incidents, incidents_ended, inspecting, inspected };
    let reloads = (reload, reload_requests);
    let running = spawn_parts(&config, outputs, threads, prepared, reloads, &shutdown);
    shutdown.cancelled().await;
    tracing::info!("ending");
    end_in_order(running).await;
    if let Some(programs) = programs.as_mut().filter(|programs| programs.are_pinned()) {
        leave_pins(programs, unpin.is_cancelled());
    }
    Ok(())
}

fn leave_pins(programs: &mut Programs, unpin: bool) {
    if unpin {
        programs.unpin();
        tracing::info!("nothing stays pinned, as the agent was ended by an interrupt");
    } else {
        tracing::info!("the kernel programs stay and count on; `galen agent --unpin` removes them");
    }
}

/// Where everything goes that leaves the agent.
struct Outputs {
    node: Arc<str>,
    history: Arc<History>,
    counters: Arc<Counters>,
    stdout: Option<Stdout>,
    audit: Audit,
}

fn open_outputs(config: &Config) -> Result<Outputs, StartError> {
    let node = node_name(config);
    let history = Arc::new(History::new(Arc::clone(&node)));
    let counters = Arc::new(Counters::default());
    let stdout = match config.output {
        Output::None => None,
        output => Some(Stdout::start(output, Arc::clone(&node)).map_err(StartError::Thread)?),
    };
    let audit = Audit::start(&config.state_dir).map_err(StartError::Thread)?;
    Ok(Outputs { node, history, counters, stdout, audit })
}

fn start_incidents(
    config: &Config,
    prepared: &mut Prepared,
    counters: &Counters,
) -> Result<(Incidents, oneshot::Receiver<()>), StartError> {
    let book = Arc::clone(&prepared.book);
    let name: incidents::NameCgroup = Arc::new(move |key| lock(&book.cgroups).identity(key));
    let sources = incidents::Sources {
        hierarchies: prepared.hierarchies.clone(),
        kernel_log: prepared.kernel_log.take(),
        name,
    };
    Incidents::start(config, sources, Arc::clone(&counters.incidents)).map_err(StartError::Thread)
}

/// What has to be ended.
struct Running {
    tasks: TaskTracker,
    drain_end: CancellationToken,
    drained: JoinHandle<(Outlet, mpsc::Receiver<Event>)>,
    stdout: Option<Stdout>,
    incidents_ended: oneshot::Receiver<()>,
}

/// What runs on threads of its own.
struct Threads {
    incidents: Incidents,
    incidents_ended: oneshot::Receiver<()>,
    inspecting: Arc<Inspecting>,
    inspected: mpsc::Receiver<Change>,
}

fn spawn_parts(
    config: &Config,
    outputs: Outputs,
    threads: Threads,
    mut prepared: Prepared,
    (reload, reload_requests): (Reload, mpsc::Receiver<()>),
    shutdown: &CancellationToken,
) -> Running {
    let Outputs { node, history, counters, stdout, audit } = outputs;
    let Threads { incidents, incidents_ended, inspecting, inspected } = threads;
    let notes = prepared.notes.take();
    let Prepared { loaded, book, hierarchies, policies, links, oom_functions, symbols, socket, .. } =
        prepared;
    let printer = stdout.as_ref().map(Stdout::printer);
    let ready = readiness(&loaded);
    let (readiness, readiness_shown) = watch::channel(Readiness {
        ready: false,
        reasons: vec!["the kernel programs are not attached yet".to_owned()],
    });
    let (health, health_shown) = watch::channel(Arc::default());
    let tasks = TaskTracker::new();
    let (signals, signals_taken) = mpsc::channel::<FaultSignal>(256);
    let (healing_said, healing) = mpsc::channel(1024);
    let (rules, reloads) = mpsc::channel(1);
    let parts = Parts {
        node: Arc::clone(&node),
        printer: printer.clone(),
        history: Arc::clone(&history),
        counters: Arc::clone(&counters),
        health,
        signals,
    };
    let notify = Arc::new(Notify::new());
    if let Some(changes) = &loaded.cgroup_changes
        && let Err(error) = changes.watch(&notify, &tasks, shutdown)
    {
        tracing::warn!("changes to cgroups cannot be watched ({error}); they are read by the timer alone");
    }
    let blind = blind_to(&loaded, &config.kernel);
    let functions = Arc::clone(&oom_functions);
    let drain = Drain {
        notify,
        hierarchy: Hierarchy::new(hierarchies, loaded.cgroup_changes),
        book: Arc::clone(&book),
        enricher: Enricher::new(Arc::clone(&node), &config.host.proc, links, &book, functions),
        outlet: Outlet::new(parts, config, blind, WallTime::now()),
        incidents,
        healing,
        inspected,
        reloads,
        drain_interval: config.kernel.drain_interval.0,
        window: config.kernel.window.0,
        rings: loaded.rings,
        diagnostics: loaded.diagnostics,
    };
    if let Some((rings, _)) = &drain.rings
        && let Err(error) = rings.watch(&drain.notify, &tasks, shutdown)
    {
        tracing::warn!("the event rings cannot be watched ({error}); they are read by the timer alone");
    }
    if config.identity.cri.enabled {
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(follow_runtime(config, Arc::clone(&book))));
    }
    let drain_end = CancellationToken::new();
    let drained = tokio::spawn(drain.run(drain_end.clone()));

    let ends = Ends { signals: signals_taken, events: healing_said, audit };
    let healer = Healer::spawn(policies, &config.healing, ends, Arc::clone(&node), shutdown.clone());
    let (healing_mode, healing_mode_shown) = watch::channel(config.healing.mode);
    let state = State {
        node,
        healing_mode: healing_mode_shown,
        healing: {
            let client = healer.client();
            Arc::new(move || client.stats())
        },
        series_max: config.metrics.series_max,
        destinations_shown: usize::try_from(config.kernel.tcp_connect.destinations_shown).unwrap_or(0),
        totals: Arc::new(move || book.totals().map_err(Into::into)),
        health: health_shown,
        readiness: readiness_shown,
        history,
        printer,
        counters,
        incidents: incidents::store::folder_in(&config.state_dir),
        inspection: inspecting.board(),
    };
    let api = Api::new(state, shutdown.clone());
    if let Some(socket) = socket {
        tasks.spawn(serve_locally(socket, api.clone()));
    }
    tasks.spawn(listen(config.listen, api, shutdown.clone()));
    tasks.spawn(become_ready(readiness, ready, symbols, oom_functions, notes));
    tasks.spawn(Arc::clone(&inspecting).end_with(shutdown.clone()));
    let started = config.clone();
    let reloading = Reloading { reload, rules, healer: healer.client(), healing_mode, inspecting, started };
    tasks.spawn(healer.join());
    tasks.spawn(follow_reloads(reloading, reload_requests, shutdown.clone()));
    Running { tasks, drain_end, drained, stdout, incidents_ended }
}

/// What is said once the agent is ready.
fn readiness(loaded: &LoadedCore) -> Readiness {
    let mut ready = readiness_of(&loaded.report, loaded.failure.as_deref());
    ready.reasons.extend(loaded.unkept.clone());
    ready
}

/// Waits for the addresses of kernel functions, and notes them for the next start: until then the scope of an
/// OOM kill is unknown. What went wrong with it is said there.
async fn become_ready(
    readiness: watch::Sender<Readiness>,
    ready: Readiness,
    symbols: oneshot::Receiver<()>,
    oom_functions: Arc<OnceLock<OomFunctions>>,
    notes: Option<Notes>,
) {
    if symbols.await.is_ok()
        && let (Some(mut notes), Some(functions)) = (notes, oom_functions.get())
        && let Ok(text) = serde_json::to_vec(functions)
    {
        notes.leave(&text);
    }
    readiness.send_replace(ready);
}

/// Ends what runs, each part by a deadline, and says what is still to be said.
async fn end_in_order(running: Running) {
    let Running { tasks, drain_end, drained, stdout, incidents_ended } = running;
    drain_end.cancel();
    tasks.close();
    // Side by side and by one deadline, as all of it must fit into the 5 s.
    let deadline = tokio::time::Instant::now() + TASKS_DEADLINE;
    let (ended, drained) = tokio::join!(
        tokio::time::timeout_at(deadline, tasks.wait()),
        tokio::time::timeout_at(deadline, drained)
    );
    if ended.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    match drained {
        Ok(Ok((mut outlet, mut healing))) => {
            while let Ok(event) = healing.try_recv() {
                outlet.publish(event);
            }
        }
        _ => tracing::warn!("the rings could not be emptied in time"),
    }
    if tokio::time::timeout(INCIDENTS_DEADLINE, incidents_ended).await.is_err() {
        tracing::warn!("the last incidents could not be written in time");
    }
    if let Some(stdout) = stdout
        && !stdout.shutdown(STDOUT_DEADLINE).await
    {
        tracing::warn!("standard output takes nothing; the last lines are not printed");
    }
}

/// Asks the container runtime for names.
fn follow_runtime(config: &Config, book: Arc<Book>) -> impl Future<Output = ()> + use<> {
    let cri = Cri {
        sockets: cri::candidates(config.identity.cri.socket.as_deref()),
        deadline: config.identity.cri.timeout.0,
        counts: Arc::clone(&book.cri),
        wanted: lock(&book.cgroups).wanted(),
    };
    cri.follow(move |names| lock(&book.cgroups).set_names(names))
}

async fn serve_locally(socket: LocalSocket, api: Api) {
    let path = socket.path().to_path_buf();
    tracing::info!("answering on {}", path.display());
    if let Err(error) = socket.serve(api).await {
        tracing::error!("{} cannot be served: {error}", path.display());
    }
}

async fn listen(addr: std::net::SocketAddr, api: Api, shutdown: CancellationToken) {
    let mut said = false;
    loop {
        match Server::bind(addr).await {
            Ok(bound) => {
                tracing::info!("listening on {}", bound.local_addr());
                return bound.serve(api).await;
            }
            Err(error) if !said => {
                said = true;
                tracing::error!("{error}; trying again every {} s", LISTEN_RETRY.as_secs());
            }
            Err(_) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LISTEN_RETRY) => {}
        }
    }
}

/// The policies that the agent starts with: what is wrong is said, and the good ones run.
pub(super) fn start_policies(config: &Config) -> PolicySet {
    let (policies, findings) = PolicySet::load_good(&config.healing);
    for finding in findings {
        if finding.is_error() {
            tracing::error!("{finding}");
        } else {
            tracing::warn!("{finding}");
        }
    }
    if !policies.policies.is_empty() {
        let mode = config.healing.mode;
        tracing::info!("healing mode {}, policies in force: {}", mode.name(), policies.policies.len());
    }
    policies
}

/// Whom a new configuration concerns.
struct Reloading {
    reload: Reload,
    rules: mpsc::Sender<Arc<Config>>,
    healer: HealerClient,
    healing_mode: watch::Sender<Mode>,
    inspecting: Arc<Inspecting>,
    /// The configuration that the agent started with.
    started: Config,
}

async fn follow_reloads(reloading: Reloading, mut requests: mpsc::Receiver<()>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            request = requests.recv() => if request.is_none() { return },
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = reloading.once() => {}
        }
    }
}

impl Reloading {
    async fn once(&self) {
        let reload = Arc::clone(&self.reload);
        // Ten thousand targets take longer to read than an event may wait.
        let read = tokio::task::spawn_blocking(move || reload()).await;
        let Some((config, targets)) = read.ok().flatten() else {
            tracing::error!("the configuration is not taken; the one before goes on");
            return;
        };
        if self.started.privileges.seccomp
            && self.started.healing.exec_allow.is_empty()
            && !config.healing.exec_allow.is_empty()
        {
            tracing::error!(
                "`healing.exec_allow` was empty at the start, so the sandbox lets no program be run: restart the \
                 agent"
            );
        }
        if self.started.privileges.landlock
            && self.started.inspection.targets.is_empty()
            && !targets.is_empty()
        {
            tracing::warn!(
                "there were no `inspection.targets` at the start, so the sandbox keeps name servers and root \
                 certificates from being read: restart the agent, unless all targets are addresses without TLS"
            );
        }
        let policies = reload_policies(&config);
        let restart = needs_restart(&self.started, &config);
        if !restart.is_empty() {
            tracing::warn!("needs a restart: {}", restart.join(", "));
        }
        self.healing_mode.send_replace(config.healing.mode);
        self.inspecting.set(targets, &config.inspection).await;
        let healed = self.healer.reload(policies, config.healing.clone()).await;
        if self.rules.send(Arc::new(config)).await.is_ok() && healed {
            tracing::info!("the configuration was read again");
        }
    }
}

/// The keys that differ from those that the agent `started` with and that take effect at a start only.
fn needs_restart(started: &Config, now: &Config) -> Vec<String> {
    let (Ok(Value::Object(mut started)), Ok(Value::Object(mut now))) =
        (serde_json::to_value(started), serde_json::to_value(now))
    else {
        return Vec::new();
    };
    for taken in ["health", "faults", "healing", "inspection"] {
        started.remove(taken);
        now.remove(taken);
    }
    let mut keys = Vec::new();
    differing(&started, &now, "", &mut keys);
    keys
}

fn differing(one: &Map<String, Value>, other: &Map<String, Value>, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in one {
        match (value, other.get(name)) {
            (Value::Object(value), Some(Value::Object(other))) => {
                differing(value, other, &format!("{prefix}{name}."), keys);
            }
            (value, other) if other != Some(value) => keys.push(format!("{prefix}{name}")),
            _ => {}
        }
    }
}

/// The policies after a reload, or `None` when anything is wrong with any of them.
fn reload_policies(config: &Config) -> Option<PolicySet> {
    match PolicySet::load(&config.healing) {
        Ok((policies, warnings)) => {
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            Some(policies)
        }
        Err(errors) => {
            for error in errors {
                tracing::error!("{error}");
            }
            tracing::error!("the policies are not taken; those before go on");
            None
        }
    }
}

/// The node's name: configured, or the host's.
fn node_name(config: &Config) -> Arc<str> {
    let host = || {
        let name = input::read_text(&config.host.proc.join("sys/kernel/hostname")).unwrap_or_default();
        if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
    };
    config.node.clone().unwrap_or_else(host).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_need_a_restart_are_named_and_those_that_do_not_are_not() {
        let started = Config::default();
        let mut now = started.clone();
        assert!(needs_restart(&started, &now).is_empty());
        now.health.worse_after += 1;
        now.faults.breaches += 1;
        now.healing.mode = Mode::Auto;
        assert!(needs_restart(&started, &now).is_empty());
        now.node = Some("other".into());
        now.kernel.file_write.first_touch = !now.kernel.file_write.first_touch;
        let mut keys = needs_restart(&started, &now);
        keys.sort();
        assert_eq!(keys, ["kernel.file_write.first_touch", "node"]);
    }
}
