//! The task that owns the rings.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::book::Book;
use super::clock::monotonic;
use super::enrich::Enricher;
use super::hierarchy::Hierarchy;
use super::losses::Losses;
use super::outlet::Outlet;
use crate::config::Config;
use crate::event::decode::{DecodeError, Raw, decode};
use crate::event::{Body, Event, Probe, WallTime};
use crate::kernel::{Diagnostics, OomRing, Rings};

/// Records taken from each ring before other work gets its turn.
const BATCH: usize = 256;
/// Time that is spent on what is left in the rings at shutdown.
const LAST_DRAIN: Duration = Duration::from_millis(500);

/// The task.
pub(super) struct Drain {
    /// The ends of the rings; `None` when nothing could be loaded.
    pub rings: Option<(Rings, OomRing)>,
    /// Cgroups as they are made and removed.
    pub hierarchy: Hierarchy,
    /// What the kernel side has to say of itself.
    pub diagnostics: Option<Diagnostics>,
    /// Told when a ring fills up.
    pub notify: Arc<Notify>,
    /// Counters and names.
    pub book: Arc<Book>,
    /// Gives names to records.
    pub enricher: Enricher,
    /// Takes the events.
    pub outlet: Outlet,
    /// What healing has to say.
    pub healing: mpsc::Receiver<Event>,
    /// New rules after a reload.
    pub reloads: mpsc::Receiver<Arc<Config>>,
    /// How often to drain when nobody asks for it.
    pub drain_interval: Duration,
    /// How often to read the counters.
    pub window: Duration,
}

impl Drain {
    /// Runs until `shutdown`, then takes what is left; gives the outlet back for what is still to be said.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> (Outlet, mpsc::Receiver<Event>) {
        let mut drain_timer = timer(self.drain_interval);
        let mut tick_timer = timer(self.window);
        let mut losses = Losses::default();
        let mut raws = Vec::with_capacity(BATCH);
        let mut oom_watched = true;
        self.hierarchy.scan(&self.book);
        loop {
            let notify = Arc::clone(&self.notify);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                ready = oom_ready(&mut self.rings), if oom_watched => {
                    if let Err(error) = ready {
                        tracing::error!("the OOM ring cannot be watched any more ({error}); it is read by the timer");
                        // An error that stays would be ready at once for ever, ahead of everything else.
                        oom_watched = false;
                    }
                    self.drain_oom(&mut raws);
                }
                Some(event) = self.healing.recv() => self.outlet.publish(event),
                Some(config) = self.reloads.recv() => self.outlet.set_rules(&config),
                _ = tick_timer.tick() => self.tick(&mut losses),
                _ = drain_timer.tick() => {
                    if !oom_watched {
                        self.drain_oom(&mut raws);
                    }
                    self.drain_batch(&mut raws);
                }
                () = notify.notified() => self.drain_batch(&mut raws),
            }
        }
        let deadline = Instant::now() + LAST_DRAIN;
        self.drain_oom(&mut raws);
        while self.drain_once(&mut raws) > 0 && Instant::now() < deadline {}
        self.tick(&mut losses);
        self.hierarchy.join().await;
        (self.outlet, self.healing)
    }

    fn drain_batch(&mut self, raws: &mut Vec<Raw>) {
        if self.drain_once(raws) >= BATCH {
            // There may be more: again, after what else is waiting.
            self.notify.notify_one();
        }
    }

    fn drain_once(&mut self, raws: &mut Vec<Raw>) -> usize {
        let Some((rings, _)) = &mut self.rings else { return 0 };
        let fates = &self.book.fates;
        let taken = rings.drain(BATCH, &mut |bytes: &[u8]| match decode(bytes) {
            Ok(raw) => raws.push(raw),
            Err(error) => {
                tracing::debug!("a record in an event ring: {error}");
                fates.unreadable(claimed_probe(bytes), error);
            }
        });
        self.hand_on(raws);
        taken
    }

    fn drain_oom(&mut self, raws: &mut Vec<Raw>) {
        let Some((_, ring)) = &mut self.rings else { return };
        let fates = &self.book.fates;
        ring.drain(&mut |bytes: &[u8]| match decode(bytes) {
            Ok(raw) if raw.probe() == Probe::OomKill => raws.push(raw),
            Ok(_) => fates.unreadable(Probe::OomKill, DecodeError::UnknownKind(0)),
            Err(error) => fates.unreadable(Probe::OomKill, error),
        });
        self.hand_on(raws);
    }

    fn hand_on(&mut self, raws: &mut Vec<Raw>) {
        // After the records: a cgroup was made before it did anything, so each of them finds its name.
        self.hierarchy.follow(&self.book);
        if raws.is_empty() {
            return;
        }
        self.enricher.set_clock();
        let now = monotonic();
        for raw in raws.drain(..) {
            let probe = raw.probe();
            let (event, cgroup) = self.enricher.event(raw, &self.book);
            if let Body::OomKill(kill) = &event.body {
                self.book.count_oom_kill(cgroup, kill.scope);
            }
            self.outlet.kernel_event(event, now);
            self.book.fates.delivered(probe);
        }
    }

    fn tick(&mut self, losses: &mut Losses) {
        if let Some(diagnostics) = &mut self.diagnostics {
            diagnostics.read();
        }
        self.hierarchy.tick(&self.book);
        match self.book.tick(monotonic(), WallTime::now()) {
            Ok((tick, fates)) => {
                for lost in losses.news(&fates) {
                    self.outlet.say(tick.time, Body::Lost(lost));
                }
                self.outlet.tick(&tick);
            }
            Err(error) => tracing::error!("the counters cannot be read: {error}"),
        }
    }
}

fn timer(period: Duration) -> Interval {
    let mut timer = interval_at(Instant::now() + period, period);
    // After a stop of the process one tick tells all; a burst of them would look like windows in a row.
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

async fn oom_ready(rings: &mut Option<(Rings, OomRing)>) -> std::io::Result<()> {
    match rings {
        Some((_, ring)) => ring.ready().await,
        None => std::future::pending().await,
    }
}

/// The probe that an unreadable record says it is of; of the two that share the rings, writes when in doubt.
fn claimed_probe(bytes: &[u8]) -> Probe {
    match bytes.first_chunk::<4>().map(|kind| u32::from_ne_bytes(*kind)) {
        Some(kind) if kind == galen_common::RecordKind::TcpConnect as u32 => Probe::TcpConnect,
        _ => Probe::FileWrite,
    }
}
