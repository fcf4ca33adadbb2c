use std::fs;

use serde_json::Value;

use super::*;
use crate::event::{OomKill, OomScope, Task};
use crate::kernel::cgroups::Hierarchies;

/// A host of plain files: a v2 hierarchy with a limit on `/pod`, and a procfs. Its time stands still: however slow
/// the machine, what follows closely does.
struct Host {
    now: Now,
    folder: tempfile::TempDir,
    worker: Worker,
    stats: Arc<Stats>,
}

fn host(files_max: usize) -> Host {
    let folder = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for cgroup in ["pod/a", "pod/b", "pod", "other"] {
        put(&format!("cgroup/{cgroup}/memory.events.local"), "oom 0\noom_kill 0\n");
        put(&format!("cgroup/{cgroup}/memory.max"), "max\n");
    }
    put("cgroup/pod/memory.max", "1048576\n");
    put("cgroup/pod/memory.peak", "1048576\n");
    put("cgroup/other/memory.max", "4096\n");
    put("cgroup/other/memory.peak", "4096\n");
    put("cgroup/pod/a/cgroup.procs", "11\n12\n");
    for (pid, rss) in [(11, 700), (12, 900), (13, 100)] {
        put(&format!("proc/{pid}/status"), &format!("Name:\tp{pid}\nUid:\t5\t5\t5\t5\nVmRSS:\t  {rss} kB\n"));
        put(&format!("proc/{pid}/stat"), &format!("{pid} (p) R 1"));
    }
    put("proc/meminfo", "MemTotal:  2048 kB\nMemAvailable:  1024 kB\n");
    put("proc/vmstat", "nr_free_pages 5\n");
    let config = Config {
        state_dir: folder.path().join("state"),
        host: crate::config::Host { proc: folder.path().join("proc"), ..crate::config::Host::default() },
        incidents: crate::config::Incidents { files_max, ..crate::config::Incidents::default() },
        ..Config::default()
    };
    let hierarchies = Hierarchies { v2: Some(folder.path().join("cgroup")), ..Hierarchies::default() };
    let stats = Arc::<Stats>::default();
    let name: NameCgroup = Arc::new(|_| Arc::default());
    let mut worker =
        Worker::new(&config, Sources { hierarchies, kernel_log: None, name }, Arc::clone(&stats));
    worker.read_baseline();
    Host { now: Now::read(), folder, worker, stats }
}

impl Host {
    /// A kill of `pid` in a cgroup, so many milliseconds before now.
    fn kill(&mut self, pid: u32, cgroup: &str, ago_ms: u64) {
        self.kill_of_scope(pid, cgroup, ago_ms, OomScope::Memcg);
    }

    fn kill_of_scope(&mut self, pid: u32, cgroup: &str, ago_ms: u64, scope: OomScope) {
        let kill = OomKill {
            victim_pid: pid,
            victim_comm: None,
            scope,
            confirmed: None,
            anon_rss_bytes: None,
            file_rss_bytes: None,
            shmem_rss_bytes: None,
            total_vm_bytes: None,
            pgtables_bytes: None,
            oom_score_adj: None,
            trigger_pid: Some(99),
            trigger_comm: None,
        };
        let time = WallTime(self.now.wall.0 - ago_ms * 1_000_000);
        let mut event = Event::of_node(time, "n".into(), Body::OomKill(kill));
        event.task = Task { pid: Some(pid), tid: Some(pid), ..Task::default() };
        event.identity = Arc::new(Identity { cgroup: Some(cgroup.into()), ..Identity::default() });
        let mark = Mark { event, cgroup_key: 0, fault: None };
        self.worker.take(Message::Mark(Box::new(mark)), self.now);
    }

    fn look(&mut self) {
        self.worker.look(self.now, false);
    }

    fn last_deeds_are_there(&mut self) {
        for open in &mut self.worker.open {
            open.lasts_due = 0;
        }
    }

    fn ends(&self, pid: u32) {
        fs::write(self.folder.path().join(format!("proc/{pid}/stat")), format!("{pid} (p) Z 1")).unwrap();
    }

    fn files(&self) -> Vec<Value> {
        let folder = store::folder_in(&self.folder.path().join("state"));
        let paths = store::paths(&folder).unwrap();
        paths.iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    }
}

#[test]
fn marks_of_one_limit_that_follow_closely_are_one_incident() {
    let mut host = host(9);
    host.kill(11, "/pod/a", 400);
    host.kill(13, "/pod/b", 300);
    host.kill(12, "/other", 300);
    assert_eq!(host.worker.open.len(), 2, "another limit is another incident");
    host.kill(12, "/pod/a", 100);
    assert_eq!(host.worker.open.len(), 2);
    let first = &host.worker.open[0].incident;
    assert_eq!((first.victims.len(), first.limit.kind), (3, "cgroup"));
    assert_eq!(first.limit.identity.cgroup.as_deref(), Some("/pod"));
    let killed: Vec<_> = first.processes.iter().map(|process| (process.pid, process.victim)).collect();
    assert_eq!(killed, [(12, true), (11, true)], "the largest first");
    assert_eq!(host.files().len(), 2, "both are on the disk at once");
    assert!(host.files().iter().all(|file| file["complete"] == false));
}

#[test]
fn marks_with_a_pause_between_are_two_incidents() {
    let mut host = host(9);
    host.kill(11, "/pod/a", 2000);
    host.kill(12, "/pod/a", 1000);
    assert_eq!(host.worker.open.len(), 2);
}

#[test]
fn an_incident_is_closed_once_all_victims_have_ended() {
    let mut host = host(9);
    host.kill(11, "/pod/a", 600);
    host.kill(12, "/pod/a", 550);
    host.last_deeds_are_there();
    host.ends(11);
    host.look();
    assert_eq!(host.worker.open.len(), 1, "one still runs");
    assert!(!host.worker.open[0].incident.confirmed);
    host.ends(12);
    host.look();
    assert!(host.worker.open.is_empty());
    let files = host.files();
    assert_eq!((files.len(), host.stats.read().written), (1, 1));
    assert!(files[0]["complete"] == true && files[0]["confirmed"] == true, "{:#}", files[0]);
    assert_eq!(files[0]["victims"][0]["confirmed_by"][0], "exit");
}

#[test]
fn the_cgroups_own_count_confirms_too_and_each_kill_only_once() {
    let mut host = host(9);
    let count = |host: &Host, kills: u32| {
        let path = host.folder.path().join("cgroup/pod/a/memory.events.local");
        fs::write(path, format!("oom 0\noom_kill {kills}\n")).unwrap();
    };
    count(&host, 1);
    host.kill(11, "/pod/a", 600);
    host.kill(12, "/pod/a", 590);
    host.look();
    let confirmed: Vec<bool> =
        host.worker.open[0].incident.victims.iter().map(|victim| victim.confirmed).collect();
    assert_eq!(confirmed, [true, false], "one was counted");
    count(&host, 2);
    host.look();
    assert!(host.worker.open[0].incident.confirmed);
}

#[test]
fn a_victim_that_does_not_end_is_told_so_after_the_deadline() {
    let mut host = host(9);
    host.kill(11, "/pod/a", 600);
    host.look();
    assert_eq!(host.worker.open.len(), 1, "there is time yet");
    host.now.mono += CONFIRM_WITHIN;
    host.look();
    assert!(host.worker.open.is_empty());
    assert_eq!(host.files()[0]["confirmed"], false);
    assert_eq!(host.files()[0]["complete"], true);
}

#[test]
fn the_end_of_the_agent_writes_what_is_known() {
    let mut host = host(9);
    host.kill_of_scope(13, "/pod/b", 0, OomScope::Global);
    let worker = std::mem::replace(&mut host.worker, self::host(9).worker);
    let (messages, taken) = std::sync::mpsc::sync_channel(1);
    drop(messages);
    worker.run(&taken);
    let files = host.files();
    assert_eq!(files[0]["limit"]["kind"], "node");
    assert_eq!(files[0]["limit"]["source"], "kernel_stack");
    assert_eq!(files[0]["memory"]["node"]["total_bytes"], 2048 << 10);
    assert_eq!(files[0]["processes"][0]["pid"], 12, "of the node, the largest first");
    assert_eq!(files[0]["complete"], true);
}

#[test]
fn victims_and_incidents_are_bounded_and_what_is_left_out_is_counted() {
    let mut host = host(9);
    for pid in 0..VICTIMS_MAX as u32 + 5 {
        host.kill(1000 + pid, "/pod/a", 100);
    }
    assert_eq!(host.worker.open.len(), 1);
    let incident = &host.worker.open[0].incident;
    assert_eq!((incident.victims.len(), incident.victims_left_out), (VICTIMS_MAX, 5));
    // Of unknown limits in different cgroups, none joins another.
    for n in 0..OPEN_MAX as u32 + 3 {
        host.kill_of_scope(5000 + n, &format!("/gone/{n}"), 100, OomScope::Unknown);
    }
    assert_eq!(host.worker.open.len(), OPEN_MAX);
    assert_eq!(host.stats.read().failed, [("disk", 0), ("queue_full", 4)]);
    assert!(host.files().len() <= 9);
}

#[test]
fn an_incident_that_made_room_does_not_come_back() {
    let mut host = host(1);
    host.kill(11, "/pod/a", 3000);
    host.kill(12, "/pod/a", 2000);
    host.last_deeds_are_there();
    host.ends(11);
    host.ends(12);
    host.look();
    let files = host.files();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0]["victims"][0]["event"]["pid"], 12, "the newest stays");
    let stats = host.stats.read();
    assert_eq!((stats.written, stats.evicted, stats.failed), (2, 1, [("disk", 0), ("queue_full", 0)]));
}

#[test]
fn what_led_up_to_a_kill_is_told_since_the_look_before_it_and_for_how_long_that_was() {
    let mut host = host(9);
    let hits = |host: &Host, hits: u64| {
        let path = host.folder.path().join("cgroup/pod/memory.events.local");
        fs::write(path, format!("oom {hits}\noom_kill 0\n")).unwrap();
    };
    let lead_up = |host: &Host| {
        let memory = &host.worker.open[0].incident.memory;
        memory.limit.as_ref().and_then(|of_limit| of_limit.lead_up).unwrap()
    };
    for before in host.worker.baseline.values_mut() {
        before.at -= Duration::from_secs(20);
    }
    hits(&host, 3);
    host.kill(11, "/pod/a", 600);
    let first = lead_up(&host);
    assert!(first.hits == 3 && first.window_ms >= 20_000, "{first:?}");
    hits(&host, 5);
    host.last_deeds_are_there();
    host.ends(11);
    host.look();
    hits(&host, 6);
    host.kill(12, "/pod/a", 0);
    let second = lead_up(&host);
    assert!(second.hits == 1 && second.window_ms < 20_000, "since the end of the first: {second:?}");
}
