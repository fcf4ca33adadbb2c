//! The flight recorder: the last connects and writes of each cgroup, for the day on which it dies.
//!
//! Bounded three times: by connects and by writes of one cgroup, so that a writer cannot push out what it
//! connected to, and by bytes over all cgroups. What makes room is the oldest, and it is counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::Serialize;

use super::Stats;
use crate::event::{Body, Event, FileWrite, Task, TcpConnect, WallTime};

/// What a task did: an event without what the incident says anyway.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// When it ended.
    pub time: WallTime,
    /// The cgroup that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<u64>,
    /// Who did it.
    #[serde(flatten)]
    pub task: Task,
    /// What it was, by the fields of the event.
    #[serde(flatten)]
    pub deed: Deed,
}

/// What is recorded.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Deed {
    /// A connect.
    Connect(TcpConnect),
    /// A write.
    Write(FileWrite),
}

impl Deed {
    const fn track(&self) -> usize {
        match self {
            Self::Connect(_) => CONNECTS,
            Self::Write(_) => WRITES,
        }
    }
}

const CONNECTS: usize = 0;
const WRITES: usize = 1;

struct Kept {
    number: u64,
    moment: Moment,
}

impl Kept {
    /// With its entry in the order of all.
    fn bytes(&self) -> usize {
        let path = match &self.moment.deed {
            Deed::Write(write) => write.path.as_ref().map_or(0, |path| path.len()),
            Deed::Connect(_) => 0,
        };
        let comm = self.moment.task.comm.as_ref().map_or(0, |comm| comm.len());
        size_of::<Self>() + size_of::<Place>() + path + comm
    }
}

/// Where a moment lies; stale once its cgroup has given it up for a newer one.
#[derive(Clone, Copy)]
struct Place {
    number: u64,
    cgroup_key: u64,
    track: usize,
}

#[derive(Default)]
struct Tracks([VecDeque<Kept>; 2]);

/// The recorder. Owned by the task that has the events; never waits.
pub struct Recorder {
    cgroups: HashMap<u64, Tracks>,
    order: VecDeque<Place>,
    events_max: usize,
    bytes_max: usize,
    bytes: usize,
    events: usize,
    number: u64,
    stats: Arc<Stats>,
}

impl Recorder {
    /// A recorder of `events_max` connects and as many writes of each cgroup, and of `bytes_max` bytes in all;
    /// with either 0 it records nothing.
    #[must_use]
    pub fn new(events_max: usize, bytes_max: usize, stats: Arc<Stats>) -> Self {
        Self {
            cgroups: HashMap::new(),
            order: VecDeque::new(),
            events_max,
            bytes_max,
            bytes: 0,
            events: 0,
            number: 0,
            stats,
        }
    }

    /// Records a connect or a write of the cgroup with this key, 0 when that is not known; other events are no
    /// business of its. The key tells cgroups apart that have the same number in two hierarchies.
    pub fn record(&mut self, event: &Event, cgroup_key: u64) {
        if self.events_max == 0 || self.bytes_max == 0 {
            return;
        }
        let deed = match &event.body {
            Body::TcpConnect(connect) => Deed::Connect(connect.clone()),
            Body::FileWrite(write) => Deed::Write(write.clone()),
            _ => return,
        };
        let track = deed.track();
        let cgroup_id = event.identity.cgroup_id;
        let moment = Moment { time: event.time, cgroup_id, task: event.task.clone(), deed };
        self.number += 1;
        let kept = Kept { number: self.number, moment };
        // Those without a cgroup share one, as they share nothing else.
        let place = Place { number: self.number, cgroup_key, track };
        self.bytes += kept.bytes();
        self.events += 1;
        let tracks = self.cgroups.entry(place.cgroup_key).or_default();
        let own = &mut tracks.0[track];
        if own.len() == own.capacity() {
            // Most cgroups do little: doubling would hold more than is accounted for.
            own.reserve_exact(1 + own.len() / 4);
        }
        own.push_back(kept);
        if own.len() > self.events_max {
            self.give_up(place);
            self.stats.recorder_turned();
        }
        self.order.push_back(place);
        while self.bytes > self.bytes_max {
            self.evict_oldest();
        }
        self.compact();
        self.stats.set_recorder(self.events, self.bytes);
    }

    /// What a cgroup did up to `until`, the oldest first; with an unknown cgroup, whose key is 0, what the process
    /// `pid` did.
    #[must_use]
    pub fn moments(&self, cgroup_key: u64, pid: u32, until: WallTime) -> Vec<Moment> {
        let all = |tracks: &Tracks| -> Vec<Moment> {
            tracks.0.iter().flatten().map(|kept| kept.moment.clone()).collect()
        };
        let mut moments = match cgroup_key {
            0 => {
                let mut found: Vec<_> = self.cgroups.values().flat_map(all).collect();
                found.retain(|moment| moment.task.pid == Some(pid));
                found
            }
            key => self.cgroups.get(&key).map(all).unwrap_or_default(),
        };
        moments.retain(|moment| moment.time <= until);
        moments.sort_by_key(|moment| moment.time);
        moments
    }

    fn evict_oldest(&mut self) {
        while let Some(place) = self.order.pop_front() {
            if self.is_front(place) {
                self.give_up(place);
                self.stats.recorder_evicted();
                return;
            }
        }
    }

    fn is_front(&self, place: Place) -> bool {
        let track = self.cgroups.get(&place.cgroup_key).map(|tracks| &tracks.0[place.track]);
        track.and_then(VecDeque::front).is_some_and(|front| front.number == place.number)
    }

    /// Takes the oldest of a track out.
    fn give_up(&mut self, place: Place) {
        let Some(tracks) = self.cgroups.get_mut(&place.cgroup_key) else { return };
        if let Some(gone) = tracks.0[place.track].pop_front() {
            self.bytes -= gone.bytes();
            self.events -= 1;
        }
        if tracks.0.iter().all(VecDeque::is_empty) {
            self.cgroups.remove(&place.cgroup_key);
        }
    }

    /// Takes the stale places out when most are: each was paid for when it was made.
    fn compact(&mut self) {
        if self.order.len() <= 2 * self.events + 64 {
            return;
        }
        let cgroups = &self.cgroups;
        self.order.retain(|place| {
            let track = cgroups.get(&place.cgroup_key).map(|tracks| &tracks.0[place.track]);
            track.and_then(VecDeque::front).is_some_and(|front| front.number <= place.number)
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Dev, Identity, Reason};

    fn write(cgroup_id: u64, number: u64) -> Event {
        let body = Body::FileWrite(FileWrite {
            path: Some(format!("/data/{number}").into()),
            dev: Dev { major: 8, minor: 1 },
            inode: number,
            bytes: Some(1),
            latency_us: 1,
            outcome: "ok",
            errno: None,
            reason: Reason::FirstTouch,
        });
        let mut event = Event::of_node(WallTime(number), "n".into(), body);
        event.identity = Arc::new(Identity { cgroup_id: Some(cgroup_id), ..Identity::default() });
        event.task.pid = Some(u32::try_from(cgroup_id).unwrap());
        event
    }

    fn connect(cgroup_id: u64, number: u64) -> Event {
        let body = Body::TcpConnect(TcpConnect {
            family: "ipv4",
            v4_mapped: false,
            saddr: None,
            sport: None,
            daddr: std::net::Ipv4Addr::LOCALHOST.into(),
            dport: 80,
            latency_us: None,
            syn_retransmit_wait_us: None,
            round_trip_us: None,
            unanswered_us: None,
            outcome: crate::event::Outcome::Refused,
            errno: None,
            syn_retransmits: None,
            fast_open: None,
        });
        Event { kind: body.kind(), body, ..write(cgroup_id, number) }
    }

    fn times(recorder: &Recorder, cgroup_id: u64) -> Vec<u64> {
        recorder.moments(cgroup_id, 0, WallTime(u64::MAX)).iter().map(|moment| moment.time.0).collect()
    }

    #[test]
    fn writes_push_out_no_connects_and_only_the_oldest_go() {
        let stats = Arc::<Stats>::default();
        let mut recorder = Recorder::new(3, 1 << 20, Arc::clone(&stats));
        recorder.record(&connect(7, 1), 7);
        for number in 2..10 {
            recorder.record(&write(7, number), 7);
        }
        assert_eq!(times(&recorder, 7), [1, 7, 8, 9]);
        assert_eq!(stats.read().recorder_evicted, [("cgroup_full", 5), ("bytes_max", 0)]);
        assert_eq!(recorder.moments(7, 0, WallTime(8)).len(), 3, "nothing from after the kill");
        assert_eq!(recorder.moments(0, 7, WallTime(u64::MAX)).len(), 4, "without a cgroup, by process");
        assert!(recorder.moments(0, 8, WallTime(u64::MAX)).is_empty());
    }

    proptest! {
        #[test]
        fn bounds_hold_and_every_event_is_kept_or_counted(
            deeds in prop::collection::vec((1u64..20, any::<bool>()), 0..400),
            events_max in 1usize..6,
            bytes_max in 0usize..20_000,
        ) {
            let stats = Arc::<Stats>::default();
            let mut recorder = Recorder::new(events_max, bytes_max, Arc::clone(&stats));
            for (number, (cgroup, is_write)) in deeds.iter().enumerate() {
                let number = number as u64;
                let event = if *is_write { write(*cgroup, number) } else { connect(*cgroup, number) };
                recorder.record(&event, *cgroup);
                prop_assert!(recorder.bytes <= bytes_max);
                prop_assert!(recorder.order.len() <= 2 * recorder.events + 65);
            }
            let kept: Vec<&Kept> = recorder.cgroups.values().flat_map(|tracks| tracks.0.iter().flatten()).collect();
            prop_assert_eq!(kept.len(), recorder.events);
            prop_assert_eq!(kept.iter().map(|kept| kept.bytes()).sum::<usize>(), recorder.bytes);
            prop_assert!(recorder.cgroups.values().all(|tracks| tracks.0.iter().all(|t| t.len() <= events_max)));
            if bytes_max > 0 {
                let evicted: u64 = stats.read().recorder_evicted.iter().map(|(_, count)| count).sum();
                prop_assert_eq!(kept.len() as u64 + evicted, deeds.len() as u64);
            }
            // What one cgroup keeps of one kind is its newest, without a gap.
            for (cgroup, tracks) in &recorder.cgroups {
                for (track, kept) in tracks.0.iter().enumerate() {
                    let all: Vec<u64> = deeds.iter().enumerate()
                        .filter(|(_, (of, is_write))| of == cgroup && usize::from(*is_write) == track)
                        .map(|(number, _)| number as u64).collect();
                    let times: Vec<u64> = kept.iter().map(|kept| kept.moment.time.0).collect();
                    prop_assert!(all.ends_with(&times));
                }
            }
        }
    }
}
