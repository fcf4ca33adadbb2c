//! The thread that looks into an OOM while there is something to see, and writes it down.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::cgroup::{CgroupMemory, Counts, Tree};
use super::kernel_log::{KernelLog, Report};
use super::limit::{self, Level, Place, Source};
use super::model::{Allocation, Deed, Incident, Limit, Memory, NodeMemory, SCHEMA_VERSION, Victim};
use super::pressure::{self, PERIOD, Samples};
use super::processes::{self, Watched};
use super::recorder::{self, Moment};
use super::store::{self, Store};
use super::{Failure, Mark, Message, NameCgroup, Sources, Stats};
use crate::config::Config;
use crate::event::{Body, Event, Identity, OomScope, WallTime};

/// Marks at one limit that follow each other within this are one incident: the kernel kills a group in one
/// go, and prints some lines for each, which takes a while on a serial console.
const JOIN_WITHIN_NS: u64 = 500_000_000;
/// No incident takes marks for longer: what kills all the time is many incidents.
const JOIN_MAX_NS: u64 = 5_000_000_000;
/// Victims that have ended within this are confirmed.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How often victims are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Victims that one incident names.
const VICTIMS_MAX: usize = 64;
/// Connects, and writes, that one incident names.
const DEEDS_MAX: usize = 64;
/// Incidents that are looked into at once.
const OPEN_MAX: usize = 32;
/// How often the counters of all cgroups are read, to tell later which of them moved.
const BASELINE_EVERY: Duration = Duration::from_secs(30);
/// Cgroups whose counters are remembered.
const BASELINE_MAX: usize = 512;

/// A moment by the clock of events, and by the one that nobody sets.
#[derive(Clone, Copy)]
struct Now {
    wall: WallTime,
    mono: Instant,
}

impl Now {
    fn read() -> Self {
        Self { wall: WallTime::now(), mono: Instant::now() }
    }
}

pub(super) struct Worker {
    proc: PathBuf,
    tree: Option<Tree>,
    name: NameCgroup,
    log: Option<KernelLog>,
    samples: Samples,
    baseline: HashMap<String, Before>,
    /// Whether the baseline has every cgroup that there was: then one that it lacks began at 0.
    baseline_whole: bool,
    /// When it was read.
    baseline_at: Instant,
    store: Store,
    stats: Arc<Stats>,
    open: Vec<Open>,
    page_bytes: u64,
}

/// A cgroup's counters when they were last looked at.
#[derive(Clone, Copy)]
struct Before {
    counts: Counts,
    at: Instant,
}

/// An incident that is still looked into.
struct Open {
    incident: Incident,
    watched: Vec<Watch>,
    since: Instant,
    last_mark: WallTime,
    lasts_due: usize,
    connects: Vec<Moment>,
    writes: Vec<Moment>,
    /// Whether it was on the disk once.
    written: bool,
}

/// What confirms one victim.
struct Watch {
    process: Watched,
    since: Instant,
    /// Its memory cgroup, and the kills that were counted there before.
    cgroup: Option<(String, u64)>,
}

/// What is known of a mark's place before an incident is made of it.
struct Scene {
    report: Option<Report>,
    victim: Option<String>,
    trigger: Option<String>,
    place: Place,
    source: Source,
}

impl Worker {
    pub(super) fn new(config: &Config, sources: Sources, stats: Arc<Stats>) -> Self {
        let own = &config.incidents;
        let folder = store::folder_in(&config.state_dir);
        let Sources { hierarchies, kernel_log, name } = sources;
        Self {
            proc: config.host.proc.clone(),
            tree: Tree::new(&hierarchies),
            name,
            log: kernel_log,
            samples: Samples::new(&config.host.proc),
            baseline: HashMap::new(),
            baseline_whole: false,
            baseline_at: Instant::now(),
            store: Store::open(folder, own.files_max, own.bytes_max.0, Arc::clone(&stats)),
            stats,
            open: Vec::new(),
            page_bytes: processes::page_bytes(),
        }
    }

    /// Runs until the other end is dropped.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        self.read_baseline();
        let (mut sample_due, mut baseline_due) = (Instant::now(), Instant::now() + BASELINE_EVERY);
        loop {
            let now = Instant::now();
            if now >= sample_due {
                self.samples.take(WallTime::now());
                if let Some(log) = &mut self.log {
                    log.read();
                }
                sample_due = now + PERIOD;
            }
            if now >= baseline_due && self.open.is_empty() {
                self.read_baseline();
                baseline_due = now + BASELINE_EVERY;
            }
            let wait = if self.open.is_empty() { sample_due - now } else { LOOK_EVERY };
            match messages.recv_timeout(wait) {
                Ok(message) => {
                    self.take(message, Now::read());
                    while let Ok(message) = messages.try_recv() {
                        self.take(message, Now::read());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look(Now::read(), false);
        }
        self.look(Now::read(), true);
    }

    fn read_baseline(&mut self) {
        let Some(tree) = &self.tree else { return };
        let (found, whole) = tree.walk(BASELINE_MAX);
        let at = Instant::now();
        self.baseline = found.into_iter().map(|(path, counts)| (path, Before { counts, at })).collect();
        self.baseline_whole = whole;
        self.baseline_at = at;
    }

    fn take(&mut self, message: Message, now: Now) {
        match message {
            Message::Mark(mark) => self.mark(*mark, now),
            Message::Last { pid, time, moments } => {
                let of = |open: &&mut Open| {
                    open.incident
                        .victims
                        .iter()
                        .any(|v| v.event.task.pid.unwrap_or(0) == pid && v.event.time == time)
                };
                if let Some(open) = self.open.iter_mut().find(of) {
                    open.last(moments);
                }
            }
        }
    }

    fn mark(&mut self, mark: Mark, now: Now) {
        // First what is gone first.
        let process = Watched::new(&self.proc, mark.event.task.pid.unwrap_or(0));
        let scene = self.scene(&mark, &process);
        let watch = Watch { process, since: now.mono, cgroup: self.expect_kill(scene.victim.as_deref()) };
        let at = self.open.iter().position(|open| open.takes(&mark.event, &scene));
        if let Some(at) = at {
            self.open[at].add(mark, watch, &scene);
            return;
        }
        if self.open.len() >= OPEN_MAX {
            self.stats.failed(Failure::QueueFull);
            return;
        }
        let incident = self.incident(&mark.event, &scene);
        let mut open = Open {
            last_mark: mark.event.time,
            incident,
            watched: Vec::new(),
            since: now.mono,
            lasts_due: 0,
            connects: Vec::new(),
            writes: Vec::new(),
            written: false,
        };
        open.add(mark, watch, &scene);
        // At once, since a node without memory may not live to see the end of it.
        open.written = self.store.write(&open.incident.id, &json(&open.incident));
        self.open.push(open);
    }

    fn scene(&mut self, mark: &Mark, process: &Watched) -> Scene {
        let report = self.log.as_mut().and_then(|log| {
            log.read();
            log.take(mark.event.task.tid.or(mark.event.task.pid)?).or_else(|| log.take(mark.event.task.pid?))
        });
        let told = report.as_ref().and_then(|report| report.task_memcg.clone());
        let tree = self.tree.as_ref();
        let has = |path: &String| tree.is_some_and(|tree| tree.has(path));
        let own = mark.event.identity.cgroup.as_deref().map(str::to_owned);
        // Of a process that ends, procfs says that it sits in the root.
        let procfs = || tree.and_then(|tree| process.cgroup(tree)).filter(|path| path != "/");
        let victim = told.or_else(|| own.clone().filter(has)).or_else(procfs).or(own);
        let trigger = self.trigger(&mark.event, victim.as_deref());
        let levels = victim.as_deref().map(|path| self.levels(path)).unwrap_or_default();
        let charged = trigger.as_deref().filter(|path| has(&(*path).to_owned()));
        let (place, source) = limit::find(scope_of(&mark.event), report.as_ref(), &levels, charged);
        Scene { report, victim, trigger, place, source }
    }

    /// The cgroup of the task that was allocating, while it lives.
    fn trigger(&self, event: &Event, victim: Option<&str>) -> Option<String> {
        let Body::OomKill(kill) = &event.body else { return None };
        let pid = kill.trigger_pid?;
        if pid == kill.victim_pid {
            return victim.map(str::to_owned);
        }
        let path = Watched::new(&self.proc, pid).cgroup(self.tree.as_ref()?);
        // Of a process that ends, procfs says that it sits in the root.
        path.filter(|path| path != "/")
    }

    fn levels(&self, victim: &str) -> Vec<Level> {
        let Some(tree) = &self.tree else { return Vec::new() };
        let level = |path: String| {
            let both = tree.counts(&path).zip(self.before(&path));
            let moved = both.map(|(now, before)| now.hits > before.counts.hits);
            Level {
                limit_bytes: tree.limit_bytes(&path),
                most_bytes: tree.peak_bytes(&path).max(tree.usage_bytes(&path)),
                moved,
                path,
            }
        };
        limit::ancestors(victim).into_iter().map(level).collect()
    }

    /// Where a cgroup's counters stood before; zero for one that is younger than the last look at all.
    fn before(&self, path: &str) -> Option<Before> {
        let id = self.tree.as_ref()?.id(path)?;
        let young = Before { counts: Counts { id, ..Counts::default() }, at: self.baseline_at };
        match self.baseline.get(path) {
            Some(before) if before.counts.id == id => Some(*before),
            Some(_) => Some(young),
            None => self.baseline_whole.then_some(young),
        }
    }

    /// The victim's cgroup and the kills counted there before this one. The next one's count begins behind it.
    fn expect_kill(&mut self, victim: Option<&str>) -> Option<(String, u64)> {
        let path = victim?.to_owned();
        let Before { counts, at } = self.before(&path)?;
        let expected = Counts { oom_kills: counts.oom_kills.saturating_add(1), ..counts };
        self.remember(path.clone(), Before { counts: expected, at });
        Some((path, counts.oom_kills))
    }

    fn remember(&mut self, path: String, before: Before) {
        if self.baseline.len() < BASELINE_MAX || self.baseline.contains_key(&path) {
            self.baseline.insert(path, before);
        }
    }

    fn incident(&self, event: &Event, scene: &Scene) -> Incident {
        let report = scene.report.as_ref();
        let path = match &scene.place {
            Place::Cgroup(path) => Some(path.as_str()),
            Place::Node | Place::Unknown => None,
        };
        let mut of_limit = path.and_then(|path| self.memory(path));
        if let (Some(memory), Some(report)) = (&mut of_limit, report) {
            memory.at_the_kill(report);
        }
        let other = scene.victim.as_deref().filter(|victim| Some(*victim) != path);
        let memory = Memory {
            victim: other.and_then(|path| self.memory(path)),
            node: node_memory(&self.proc),
            limit: of_limit,
        };
        let listed = report.map(|report| processes::of_report(report, self.page_bytes)).unwrap_or_default();
        let within = match scene.place {
            Place::Node => None,
            Place::Cgroup(_) => path,
            Place::Unknown => scene.victim.as_deref(),
        };
        let (processes, processes_from) = if listed.is_empty() {
            (processes::largest(&self.proc, self.tree.as_ref(), within), "procfs")
        } else {
            (listed, "kernel_log")
        };
        Incident {
            version: SCHEMA_VERSION,
            id: store::id(event.time, event.task.pid.unwrap_or(0)),
            time: event.time,
            kind: "oom_kill",
            node: Arc::clone(&event.node),
            scope: scope_at(&scene.place, scope_of(event)),
            confirmed: false,
            complete: false,
            limit: self.limit(scene, memory.limit.as_ref()),
            allocation: report
                .filter(|report| report.gfp.is_some() || report.order.is_some())
                .map(|report| Allocation { gfp: report.gfp.clone(), order: report.order }),
            oom_group: self.kills_group(scene.victim.as_deref(), path),
            victims: Vec::new(),
            victims_left_out: 0,
            memory,
            processes,
            processes_from,
            before: self.samples.all(),
            last_connects: Vec::new(),
            last_writes: Vec::new(),
        }
    }

    fn memory(&self, path: &str) -> Option<CgroupMemory> {
        let tree = self.tree.as_ref()?;
        let mut memory = tree.memory(path)?;
        memory.lead_up = tree.counts(path).zip(self.before(path)).map(|(now, before)| {
            let window_ms = u64::try_from(before.at.elapsed().as_millis()).unwrap_or(u64::MAX);
            now.since(&before.counts, window_ms)
        });
        Some(memory)
    }

    fn limit(&self, scene: &Scene, memory: Option<&CgroupMemory>) -> Limit {
        let constraint = scene.report.as_ref().map(|report| report.constraint.clone());
        let (kind, identity) = match &scene.place {
            Place::Node => ("node", Arc::default()),
            Place::Unknown => ("unknown", Arc::default()),
            Place::Cgroup(path) => {
                let tree = self.tree.as_ref();
                let id = tree.and_then(|tree| tree.id(path));
                let key = tree.zip(id).map(|(tree, id)| tree.key(id));
                let named = key.map(|key| (self.name)(key)).filter(|identity| identity.cgroup.is_some());
                let identity = named.unwrap_or_else(|| {
                    let plain = crate::identity::identify(id.unwrap_or(0), path);
                    Arc::new(Identity { cgroup_id: id, ..plain })
                });
                (limit::kind(&identity), identity)
            }
        };
        Limit {
            kind,
            source: scene.source,
            identity,
            limit_bytes: memory.and_then(|memory| memory.limit_bytes),
            usage_bytes: memory.and_then(|memory| memory.usage_bytes),
            constraint,
        }
    }

    fn kills_group(&self, victim: Option<&str>, limit: Option<&str>) -> Option<bool> {
        let tree = self.tree.as_ref()?;
        let up_to = limit.unwrap_or("/");
        let on_the_way = limit::ancestors(victim?).into_iter().filter(|path| limit::is_within(path, up_to));
        let set: Vec<bool> = on_the_way.filter_map(|path| tree.kills_group(&path)).collect();
        (!set.is_empty()).then(|| set.contains(&true))
    }

    /// Looks at all victims, and writes down what is known of those whose end was seen or waited for too long.
    fn look(&mut self, now: Now, is_end: bool) {
        for mut open in std::mem::take(&mut self.open) {
            self.confirm(&mut open, now);
            let is_late = now.mono.duration_since(open.since) >= CONFIRM_WITHIN;
            let may_join = now.wall.0.saturating_sub(open.last_mark.0) < JOIN_WITHIN_NS;
            let is_whole = open.incident.confirmed && open.lasts_due == 0 && !may_join;
            if is_whole || is_late || is_end {
                self.close(open);
            } else {
                self.open.push(open);
            }
        }
    }

    fn confirm(&self, open: &mut Open, now: Now) {
        for (watch, victim) in open.watched.iter().zip(&mut open.incident.victims) {
            if victim.ended_after_ms.is_none() && watch.process.has_ended() {
                let after = now.mono.duration_since(watch.since).as_millis();
                let after = u64::try_from(after).unwrap_or(u64::MAX);
                victim.ended_after_ms = Some(after);
                victim.confirmed_by.push("exit");
            }
            if !victim.confirmed_by.contains(&"kill_count")
                && let (Some((path, before)), Some(tree)) = (&watch.cgroup, &self.tree)
                && tree.counts(path).is_some_and(|counts| counts.oom_kills > *before)
            {
                victim.confirmed_by.push("kill_count");
            }
            victim.confirmed = !victim.confirmed_by.is_empty();
        }
        open.incident.confirmed = open.incident.victims.iter().all(|victim| victim.confirmed);
    }

    fn close(&mut self, mut open: Open) {
        open.finish();
        // Before anybody sees that it is complete: the next incident is held against what this one left.
        self.look_again(&open);
        // One that made room for newer ones in the meantime must not come back and push them out.
        let is_evicted = open.written && !self.store.has(&open.incident.id);
        if is_evicted || self.store.write(&open.incident.id, &json(&open.incident)) {
            self.stats.written();
        } else {
            self.stats.failed(Failure::Disk);
        }
    }

    /// Reads the counters of all cgroups that an incident was about.
    fn look_again(&mut self, open: &Open) {
        let Some(tree) = &self.tree else { return };
        let paths: BTreeSet<String> = open
            .watched
            .iter()
            .filter_map(|watch| watch.cgroup.as_ref())
            .flat_map(|(path, _)| limit::ancestors(path))
            .collect();
        let at = Instant::now();
        let read: Vec<_> =
            paths.into_iter().filter_map(|path| tree.counts(&path).map(|counts| (path, counts))).collect();
        for (path, counts) in read {
            self.remember(path, Before { counts, at });
        }
    }
}

impl Open {
    /// Whether a mark belongs to this incident: it follows closely and is of the same limit.
    fn takes(&self, event: &Event, scene: &Scene) -> bool {
        let gap = event.time.0.saturating_sub(self.last_mark.0);
        if gap > JOIN_WITHIN_NS || event.time.0.saturating_sub(self.incident.time.0) > JOIN_MAX_NS {
            return false;
        }
        let limit = self.incident.limit.identity.cgroup.as_deref();
        match (&scene.place, limit, self.incident.limit.kind) {
            (Place::Cgroup(path), Some(limit), _) if scene.source == Source::KernelLog => path == limit,
            (Place::Node, ..) if scene.source == Source::KernelLog => limit.is_none(),
            // The kernel reports the first of a group; the others are known by where they sat.
            (Place::Node, None, "node") => true,
            (Place::Cgroup(_) | Place::Unknown, Some(limit), _) => {
                scene.victim.as_deref().is_some_and(|victim| limit::is_within(victim, limit))
            }
            (_, None, "unknown") => {
                let first = self.incident.victims.first().map(|victim| &victim.event.identity.cgroup);
                first == Some(&event.identity.cgroup)
            }
            _ => false,
        }
    }

    fn add(&mut self, mark: Mark, watch: Watch, scene: &Scene) {
        self.last_mark = self.last_mark.max(mark.event.time);
        if self.incident.victims.len() >= VICTIMS_MAX {
            self.incident.victims_left_out += 1;
            return;
        }
        self.lasts_due += 1;
        self.watched.push(watch);
        self.incident.victims.push(Victim {
            confirmed: false,
            confirmed_by: Vec::new(),
            ended_after_ms: None,
            trigger_cgroup: scene.trigger.clone(),
            event: mark.event,
            fault: mark.fault,
        });
        self.mark_processes();
    }

    fn mark_processes(&mut self) {
        let victims: BTreeSet<u32> = self.incident.victims.iter().filter_map(|v| v.event.task.pid).collect();
        for process in &mut self.incident.processes {
            process.victim = victims.contains(&process.pid);
        }
    }

    fn last(&mut self, moments: Vec<Moment>) {
        self.lasts_due = self.lasts_due.saturating_sub(1);
        for moment in moments {
            let list = match moment.deed {
                recorder::Deed::Connect(_) => &mut self.connects,
                recorder::Deed::Write(_) => &mut self.writes,
            };
            list.push(moment);
        }
    }

    /// Puts what the victims' cgroups did in order. Several victims of a cgroup brought the same.
    fn finish(&mut self) {
        let victims: BTreeSet<u32> = self.incident.victims.iter().filter_map(|v| v.event.task.pid).collect();
        let in_order = |moments: &mut Vec<Moment>| -> Vec<Deed> {
            let mut seen = BTreeSet::new();
            moments.retain(|moment| seen.insert((moment.time, moment.task.tid, text(moment))));
            moments.sort_by_key(|moment| moment.time);
            let from = moments.len().saturating_sub(DEEDS_MAX);
            let deed = |moment: Moment| Deed {
                victim: moment.task.pid.is_some_and(|pid| victims.contains(&pid)),
                moment,
            };
            moments.drain(..).skip(from).map(deed).collect()
        };
        self.incident.last_connects = in_order(&mut self.connects);
        self.incident.last_writes = in_order(&mut self.writes);
        self.incident.complete = true;
    }
}

fn text(moment: &Moment) -> String {
    serde_json::to_string(&moment.deed).unwrap_or_default()
}

fn json(incident: &Incident) -> Vec<u8> {
    // The model has nothing that JSON cannot hold.
    let mut json = serde_json::to_vec_pretty(incident).unwrap_or_default();
    json.push(b'\n');
    json
}

fn scope_of(event: &Event) -> OomScope {
    match &event.body {
        Body::OomKill(kill) => kill.scope,
        _ => OomScope::Unknown,
    }
}

fn scope_at(place: &Place, scope: OomScope) -> OomScope {
    match place {
        Place::Cgroup(_) => OomScope::Memcg,
        Place::Node => OomScope::Global,
        Place::Unknown => scope,
    }
}

fn node_memory(proc: &Path) -> NodeMemory {
    let meminfo = crate::input::read_text(&proc.join("meminfo")).unwrap_or_default();
    NodeMemory { pressure: pressure::read(&proc.join("pressure/memory")), ..NodeMemory::parse(&meminfo) }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
