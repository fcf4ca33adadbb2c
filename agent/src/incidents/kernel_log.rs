//! What the kernel itself says of an OOM kill in its log: the one place that names the cgroup whose limit was
//! hit, its memory and its tasks at that very moment (mm/oom_kill.c, `dump_header`; Documentation/ABI/testing/dev-kmsg).
//!
//! The kernel limits these reports (ten in five seconds), so there may be none. Only lines of the kernel's
//! own facility count: others are written by programs.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reports that are remembered until their kill's record comes.
const REPORTS_MAX: usize = 32;
/// Records taken in one go: more than a whole log has, so it only ends what would never end.
const RECORDS_MAX: usize = 65_536;
/// Tasks that are kept of a report: the largest.
const TASKS_MAX: usize = 64;

/// What the kernel said of one OOM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `CONSTRAINT_MEMCG`, `CONSTRAINT_NONE`, `CONSTRAINT_CPUSET`, `CONSTRAINT_MEMORY_POLICY`.
    pub(super) constraint: String,
    /// The cgroup whose limit was hit; `None` when the node had no memory left.
    pub(super) oom_memcg: Option<String>,
    /// The victim's cgroup.
    pub(super) task_memcg: Option<String>,
    /// The victim.
    pub pid: u32,
    /// What was asked for, such as `GFP_KERNEL`.
    pub(super) gfp: Option<String>,
    /// Two to the power of this many pages were asked for.
    pub(super) order: Option<u32>,
    /// Counters of the cgroup whose limit was hit.
    pub counters: Vec<Counter>,
    /// Its memory.stat.
    pub stat: Vec<(String, u64)>,
    /// The largest of its tasks, or of the node's.
    pub tasks: Vec<Listed>,
}

/// A line such as `memory: usage 24576kB, limit 24576kB, failcnt 5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// `memory`, `memory+swap`, `swap` or `kmem`.
    pub(super) name: String,
    pub(super) usage_bytes: u64,
    pub(super) limit_bytes: u64,
    pub(super) failcnt: u64,
}

/// A task of the kernel's table; sizes in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) comm: String,
    /// Resident memory.
    pub rss_pages: u64,
    pub(super) anon_pages: Option<u64>,
    pub(super) file_pages: Option<u64>,
    pub(super) shmem_pages: Option<u64>,
    pub(super) swap_pages: Option<u64>,
    pub(super) oom_score_adj: Option<i32>,
}

/// The kernel's log, from when it was opened.
pub struct KernelLog {
    file: File,
    reports: Reports,
}

impl KernelLog {
    /// Opens it at its end; it takes CAP_SYSLOG where the system keeps it from ordinary users. Where it cannot
    /// be opened, that is said.
    #[must_use]
    pub fn open(path: &Path) -> Option<Self> {
        Self::try_open(path)
            .inspect_err(|error| {
                tracing::info!(
                    "{} cannot be read ({error}): whose limit an OOM hit is told by the cgroups' counters",
                    path.display()
                );
            })
            .ok()
    }

    fn try_open(path: &Path) -> std::io::Result<Self> {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, reports: Reports::default() })
    }

    /// Takes what was written since; never waits.
    pub(super) fn read(&mut self) {
        let mut buffer = [0; 8192];
        for _ in 0..RECORDS_MAX {
            match self.file.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => self.reports.record(&String::from_utf8_lossy(&buffer[..length])),
                // Records were overwritten before they were read: the next read goes on behind them. A report
                // with a hole would be a wrong one.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => self.reports.open = None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Takes the newest report of this victim out.
    pub(super) fn take(&mut self, pid: u32) -> Option<Report> {
        self.reports.take(pid)
    }
}

/// Lines → reports, of which the newest wait for their kill's record. Pure.
#[derive(Default)]
pub struct Reports {
    open: Option<Open>,
    reports: VecDeque<Report>,
}

#[derive(Default)]
struct Open {
    report: Report,
    part: Part,
    columns: Vec<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    Stat,
    Tasks,
}

impl Reports {
    /// Takes one record, `PRIORITY,NUMBER,TIME,FLAGS…;TEXT`.
    pub fn record(&mut self, record: &str) {
        let Some((prefix, text)) = record.split_once(';') else { return };
        let priority = prefix.split(',').next().and_then(|text| text.parse::<u32>().ok());
        if priority.is_none_or(|priority| priority >> 3 != 0) {
            return;
        }
        // What follows the first line is the record's dictionary. Line ends within a message are escaped.
        let message = text.lines().next().unwrap_or_default();
        for line in message.split("\\x0a") {
            self.line(line);
        }
    }

    /// Those that wait, the oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = &Report> {
        self.reports.iter()
    }

    /// Takes the newest report of this victim out.
    pub fn take(&mut self, pid: u32) -> Option<Report> {
        let at = self.reports.iter().rposition(|report| report.pid == pid)?;
        self.reports.remove(at)
    }

    fn line(&mut self, line: &str) {
        if let Some((_, rest)) = line.split_once(" invoked oom-killer: ") {
            self.open = Some(opened(rest));
            return;
        }
        if let Some(rest) = line.strip_prefix("oom-kill:constraint=") {
            let mut report = self.open.take().unwrap_or_default().report;
            if summary(rest, &mut report).is_some() {
                keep_largest(&mut report.tasks);
                if self.reports.len() == REPORTS_MAX {
                    self.reports.pop_front();
                }
                self.reports.push_back(report);
            }
            return;
        }
        if let Some(open) = &mut self.open {
            open.line(line);
        }
    }
}

impl Open {
    fn line(&mut self, line: &str) {
        if line.starts_with("Tasks state (memory values in pages)") {
            self.part = Part::Tasks;
        } else if line.starts_with("Memory cgroup stats for ") {
            self.part = Part::Stat;
        } else if let Some(counter) = counter(line) {
            if self.report.counters.len() < 8 {
                self.report.counters.push(counter);
            }
        } else if self.part == Part::Stat {
            if let Some((name, value)) = line.trim().split_once(' ')
                && let Ok(value) = value.parse()
                && self.report.stat.len() < 256
            {
                self.report.stat.push((name.to_owned(), value));
            }
        } else if self.part == Part::Tasks {
            self.task(line);
        }
    }

    /// The heading names the columns, which differ from kernel to kernel; the name is the last.
    fn task(&mut self, line: &str) {
        let Some((pid, rest)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) else { return };
        if pid.trim() == "pid" {
            self.columns = rest.split_whitespace().map(str::to_owned).collect();
            return;
        }
        let Ok(pid) = pid.trim().parse() else { return };
        let mut listed = Listed { pid, ..Listed::default() };
        let mut rest = rest;
        for column in &self.columns {
            rest = rest.trim_start();
            if column == "name" {
                listed.comm = rest.trim_end().to_owned();
                break;
            }
            let (word, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
            rest = after;
            let number = word.parse::<i64>().ok();
            let pages = number.and_then(|number| u64::try_from(number).ok());
            match column.as_str() {
                "uid" => listed.uid = word.parse().unwrap_or(0),
                "rss" => listed.rss_pages = pages.unwrap_or(0),
                "rss_anon" => listed.anon_pages = pages,
                "rss_file" => listed.file_pages = pages,
                "rss_shmem" => listed.shmem_pages = pages,
                "swapents" => listed.swap_pages = pages,
                "oom_score_adj" => listed.oom_score_adj = number.and_then(|n| i32::try_from(n).ok()),
                _ => {}
            }
        }
        self.report.tasks.push(listed);
        if self.report.tasks.len() >= 4 * TASKS_MAX {
            keep_largest(&mut self.report.tasks);
        }
    }
}

fn keep_largest(tasks: &mut Vec<Listed>) {
    tasks.sort_by_key(|task| std::cmp::Reverse(task.rss_pages));
    tasks.truncate(TASKS_MAX);
}

/// `gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0`.
fn opened(rest: &str) -> Open {
    let gfp = rest.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(gfp, _)| gfp.to_owned());
    let order = rest.split(", ").find_map(|part| part.strip_prefix("order=")).and_then(|n| n.parse().ok());
    Open { report: Report { gfp, order, ..Report::default() }, ..Open::default() }
}

fn counter(line: &str) -> Option<Counter> {
    let (name, rest) = line.split_once(": usage ")?;
    let (usage, rest) = rest.split_once("kB, limit ")?;
    let (limit, failcnt) = rest.split_once("kB, failcnt ")?;
    let bytes = |kib: &str| kib.parse::<u64>().ok().map(|kib| kib.saturating_mul(1024));
    Some(Counter {
        name: name.to_owned(),
        usage_bytes: bytes(usage)?,
        limit_bytes: bytes(limit)?,
        failcnt: failcnt.trim().parse().ok()?,
    })
}

/// `CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=x,pid=1,uid=0`.
/// Node lists and names may hold commas, so the fields are found by their names, from the end where a name
/// stands before them.
fn summary(rest: &str, report: &mut Report) -> Option<()> {
    let (constraint, fields) = rest.split_once(',')?;
    report.constraint = constraint.to_owned();
    let (before, uid) = fields.rsplit_once(",uid=")?;
    uid.trim().parse::<u32>().ok()?;
    let (before, pid) = before.rsplit_once(",pid=")?;
    report.pid = pid.parse().ok()?;
    let (scopes, tasks) = before.split_once(",task_memcg=")?;
    report.task_memcg = tasks.rsplit_once(",task=").map(|(path, _)| path.to_owned());
    report.oom_memcg = scopes.split_once(",oom_memcg=").map(|(_, path)| path.to_owned());
    (report.oom_memcg.is_some() || scopes.ends_with(",global_oom")).then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOG: &str = "4,78452,12298875731,-;python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
4,78457,12298875777,-; dump_header+0x43/0x1c0
6,78480,12298875858,-;memory: usage 32768kB, limit 32768kB, failcnt 7
6,78481,12298875865,-;memory+swap: usage 32768kB, limit 9007199254740988kB, failcnt 0
6,78483,12298875868,-;Memory cgroup stats for /pod:
6,78484,12298875890,-;anon 33366016\\x0afile 4096
6,78526,12298875940,-;Tasks state (memory values in pages):
6,78527,12298875941,-;[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
6,78528,12298875944,-;[  22526]     0 22526    10815       76       16       60         0   135168        0         -1000 sh
6,78528,12298875944,-;[  22527]    33 22527    10815     9776     8116     1660         0   135168        2             5 my, app
6,78529,12298875948,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=0,2-3,cpuset=/,mems_allowed=0,oom_memcg=/pod,task_memcg=/pod/c,task=my, app,pid=22527,uid=33
3,78530,12298875966,-;Memory cgroup out of memory: Killed process 22527 (my, app) total-vm:43260kB";

    fn parse(log: &str) -> Reports {
        let mut parser = Reports::default();
        log.lines().for_each(|line| parser.record(line));
        parser
    }

    #[test]
    fn a_report_names_limit_victim_memory_and_tasks() {
        let mut parser = parse(LOG);
        let report = parser.take(22527).unwrap();
        assert_eq!(report.constraint, "CONSTRAINT_MEMCG");
        assert_eq!(
            (report.oom_memcg.as_deref(), report.task_memcg.as_deref()),
            (Some("/pod"), Some("/pod/c"))
        );
        assert_eq!((report.gfp.as_deref(), report.order), (Some("GFP_KERNEL"), Some(0)));
        assert_eq!(report.counters[0].limit_bytes, 32 << 20);
        assert_eq!((report.counters.len(), report.counters[0].failcnt), (2, 7));
        assert_eq!(report.stat, [("anon".to_owned(), 33_366_016), ("file".to_owned(), 4096)]);
        let first = &report.tasks[0];
        assert_eq!(
            (first.pid, first.uid, first.comm.as_str(), first.rss_pages),
            (22527, 33, "my, app", 9776)
        );
        assert_eq!((first.anon_pages, first.swap_pages, first.oom_score_adj), (Some(8116), Some(2), Some(5)));
        assert_eq!(report.tasks[1].oom_score_adj, Some(-1000));
        assert!(parser.take(22527).is_none(), "one report, one kill");
    }

    #[test]
    fn the_nodes_own_oom_and_other_kernels_columns_are_read() {
        let log = "4,1,1,-;[  pid  ] stray\n6,1,1,-;a invoked oom-killer: gfp_mask=0x140cca(X|Y), order=3, z
6,1,1,-;Tasks state (memory values in pages):
6,1,1,-;[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
6,1,1,-;[     12]     0    12      100       50     1000        0             0 a
6,1,1,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/x,task=a,pid=12,uid=0";
        let report = parse(log).take(12).unwrap();
        assert_eq!((report.oom_memcg, report.constraint.as_str()), (None, "CONSTRAINT_NONE"));
        assert_eq!((report.tasks[0].rss_pages, report.tasks[0].anon_pages), (50, None));
    }

    #[test]
    fn what_programs_write_into_the_log_is_no_report() {
        // Facility 1, user-level messages.
        let forged = LOG.lines().map(|line| format!("1{line}\n")).collect::<String>();
        assert!(parse(&forged).take(22527).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_memory_stays_bounded(lines in prop::collection::vec(".{0,80}", 0..60), cut in 0usize..400) {
            let mut parser = Reports::default();
            for line in &lines {
                parser.record(line);
                parser.record(&format!("6,1,1,-;{line}"));
            }
            let log: String = LOG.chars().take(LOG.len().min(cut * 4)).collect();
            log.lines().for_each(|line| parser.record(line));
            for _ in 0..100 {
                LOG.lines().for_each(|line| parser.record(line));
            }
            prop_assert!(parser.reports.len() <= REPORTS_MAX);
            prop_assert!(parser.take(22527).is_some());
        }
    }
}
