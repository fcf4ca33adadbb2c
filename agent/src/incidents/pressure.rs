//! Pressure on the node's memory before an incident: a small ring of samples of `/proc/pressure/memory`
//! (Documentation/accounting/psi.rst) and `/proc/vmstat`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::event::WallTime;
use crate::input;

/// How often a sample is taken.
pub(super) const PERIOD: Duration = Duration::from_secs(2);
/// Samples that are kept: two minutes.
const SAMPLES_MAX: usize = 60;

/// A PSI file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Share of the last ten seconds in which some task waited for memory.
    pub some_avg10_percent: f64,
    /// Share in which all of them did.
    pub full_avg10_percent: f64,
    /// Time in which some task waited, since it began to be counted.
    pub some_total_us: u64,
    /// Time in which all of them did.
    pub full_total_us: u64,
}

/// The node's memory at one time. Counters are what they moved by since the sample before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// When it was taken.
    pub time: WallTime,
    /// Time that the counters are over.
    pub window_ms: u64,
    /// As in [`Pressure`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some_avg10_percent: Option<f64>,
    /// As in [`Pressure`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_avg10_percent: Option<f64>,
    /// Time in which some task waited for memory, in the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some_stalled_us: Option<u64>,
    /// Time in which all tasks waited, in the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_stalled_us: Option<u64>,
    /// Free pages, in pages as all below.
    pub free_pages: u64,
    /// Scanned by tasks that wanted memory themselves, cgroups' limits included.
    pub scanned_direct_pages: u64,
    /// Scanned in the background.
    pub scanned_kswapd_pages: u64,
    /// Reclaimed, by whomever.
    pub reclaimed_pages: u64,
    /// Read again soon after they were reclaimed.
    pub refaulted_pages: u64,
    /// Read from the disk for a fault.
    pub major_faults: u64,
    /// Times that a task had to reclaim before it got memory.
    pub allocation_stalls: u64,
    /// Swapped in.
    pub swapped_in_pages: u64,
    /// Swapped out.
    pub swapped_out_pages: u64,
    /// OOM kills on the node.
    pub oom_kills: u64,
}

/// Counters of `/proc/vmstat`; some are split by zone or kind, so names are matched by their beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vmstat([u64; 9]);

const COUNTERS: [&[&str]; 9] = [
    &["pgscan_direct"],
    &["pgscan_kswapd"],
    &["pgsteal_direct", "pgsteal_kswapd", "pgsteal_khugepaged", "pgsteal_proactive"],
    &["workingset_refault"],
    &["pgmajfault"],
    &["allocstall"],
    &["pswpin"],
    &["pswpout"],
    &["oom_kill"],
];

/// The ring.
pub(super) struct Samples {
    proc: PathBuf,
    kept: VecDeque<Sample>,
    before: Option<(WallTime, Vmstat, Option<Pressure>)>,
}

impl Samples {
    /// Samples from this procfs.
    pub(super) fn new(proc: &Path) -> Self {
        Self { proc: proc.to_path_buf(), kept: VecDeque::new(), before: None }
    }

    /// Takes a sample; the first is only what the second is held against.
    pub(super) fn take(&mut self, time: WallTime) {
        let Ok(text) = input::read_text(&self.proc.join("vmstat")) else { return };
        let (free_pages, now) = Vmstat::parse(&text);
        let pressure = read(&self.proc.join("pressure/memory"));
        let before = self.before.replace((time, now, pressure));
        let Some((since, Vmstat(before), pressed)) = before else { return };
        let moved: Vec<u64> =
            now.0.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect();
        let stalled = |total: fn(&Pressure) -> u64| {
            Some(total(pressure.as_ref()?).saturating_sub(total(pressed.as_ref()?)))
        };
        let sample = Sample {
            time,
            window_ms: time.0.saturating_sub(since.0) / 1_000_000,
            some_avg10_percent: pressure.map(|pressure| pressure.some_avg10_percent),
            full_avg10_percent: pressure.map(|pressure| pressure.full_avg10_percent),
            some_stalled_us: stalled(|pressure| pressure.some_total_us),
            full_stalled_us: stalled(|pressure| pressure.full_total_us),
            free_pages,
            scanned_direct_pages: moved[0],
            scanned_kswapd_pages: moved[1],
            reclaimed_pages: moved[2],
            refaulted_pages: moved[3],
            major_faults: moved[4],
            allocation_stalls: moved[5],
            swapped_in_pages: moved[6],
            swapped_out_pages: moved[7],
            oom_kills: moved[8],
        };
        if self.kept.len() == SAMPLES_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(sample);
    }

    /// The samples, the oldest first.
    pub(super) fn all(&self) -> Vec<Sample> {
        self.kept.iter().cloned().collect()
    }
}

impl Vmstat {
    /// Free pages, and the counters, by the text of `/proc/vmstat`. Pure.
    #[must_use]
    pub fn parse(text: &str) -> (u64, Self) {
        let (mut free_pages, mut counters) = (0, Self::default());
        for line in text.lines() {
            let Some((name, value)) = line.split_once(' ') else { continue };
            let Ok(value) = value.trim().parse::<u64>() else { continue };
            if name == "nr_free_pages" {
                free_pages = value;
            }
            // The sum of the throttled ones is no scan.
            if name == "pgscan_direct_throttle" {
                continue;
            }
            let at = COUNTERS.iter().position(|names| names.iter().any(|of| name.starts_with(of)));
            if let Some(at) = at {
                counters.0[at] = counters.0[at].saturating_add(value);
            }
        }
        (free_pages, counters)
    }
}

/// Reads a PSI file; `None` where the kernel has none, or it is switched off.
pub(super) fn read(path: &Path) -> Option<Pressure> {
    Pressure::parse(&input::read_text(path).ok()?)
}

impl Pressure {
    /// `some avg10=0.00 avg60=0.04 avg300=0.06 total=2516853` and the same for `full`. Pure.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let line = |kind: &str| -> Option<(f64, u64)> {
            let fields = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
            let of = |name: &str| fields.split(' ').find_map(|field| field.strip_prefix(name));
            // `inf` and `NaN` are numbers to Rust, and none to JSON.
            let avg10: f64 = of("avg10=")?.parse().ok().filter(|percent: &f64| percent.is_finite())?;
            Some((avg10, of("total=")?.trim().parse().ok()?))
        };
        let (some_avg10_percent, some_total_us) = line("some")?;
        let (full_avg10_percent, full_total_us) = line("full").unwrap_or_default();
        Some(Self { some_avg10_percent, full_avg10_percent, some_total_us, full_total_us })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn samples_hold_what_moved_and_their_number_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pressure")).unwrap();
        let mut samples = Samples::new(folder.path());
        for n in 0..100_u64 {
            let vmstat = format!(
                "nr_free_pages {}\npgscan_direct {}\npgscan_direct_throttle 9{n}\npgsteal_kswapd {n}\npgsteal_direct {n}\noom_kill {n}\n",
                1000 - n,
                n * 10
            );
            fs::write(folder.path().join("vmstat"), vmstat).unwrap();
            let psi = format!(
                "some avg10=2.50 avg60=0 avg300=0 total={}\nfull avg10=0.50 avg60=0 avg300=0 total={n}\n",
                n * 5
            );
            fs::write(folder.path().join("pressure/memory"), psi).unwrap();
            samples.take(WallTime(n * 2_000_000_000));
        }
        let all = samples.all();
        assert_eq!(all.len(), SAMPLES_MAX);
        let last = all.last().unwrap();
        assert_eq!((last.window_ms, last.free_pages, last.oom_kills), (2000, 901, 1));
        assert_eq!((last.scanned_direct_pages, last.reclaimed_pages), (10, 2));
        assert_eq!((last.some_avg10_percent, last.some_stalled_us), (Some(2.5), Some(5)));
    }

    #[test]
    fn a_kernel_without_pressure_leaves_the_fields_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("vmstat"), "nr_free_pages 5\n").unwrap();
        let mut samples = Samples::new(folder.path());
        samples.take(WallTime(1));
        samples.take(WallTime(2));
        let json = serde_json::to_value(&samples.all()[0]).unwrap();
        assert!(json.get("some_avg10_percent").is_none() && json["free_pages"] == 5, "{json}");
        assert_eq!(Pressure::parse("nonsense"), None);
        assert_eq!(Pressure::parse("some avg10=inf total=1\n"), None);
    }
}
