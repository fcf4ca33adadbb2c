//! The task that owns the rings.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::book::{Book, Window};
use super::clock::monotonic;
use super::enrich::Enricher;
use super::hierarchy::Hierarchy;
use super::losses::Losses;
use super::outlet::Outlet;
use crate::config::Config;
use crate::event::decode::{DecodeError, Raw, decode};
use crate::event::{Body, Event, Probe, ProbeFates, WallTime};
use crate::incidents::{Incidents, Mark};
use crate::inspection::Change;
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
    /// Keeps what is known of each OOM.
    pub incidents: Incidents,
    /// What healing has to say.
    pub healing: mpsc::Receiver<Event>,
    /// Changes of targets' health.
    pub inspected: mpsc::Receiver<Change>,
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
        let (windows, mut windows_read) = mpsc::channel(1);
        let reader =
            tokio::spawn(read_windows(Arc::clone(&self.book), self.window, windows, shutdown.clone()));
        let mut losses = Losses::default();
        match self.book.fates() {
            Ok(fates) => losses = Losses::resume(self.said(&fates), monotonic()),
            Err(error) => self.outlet.cannot_read(&error, WallTime::now()),
        }
        let mut raws = Vec::with_capacity(BATCH);
        let mut oom_watched = true;
        // A record that stays in the ring wakes nobody a second time.
        let mut oom_more = false;
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
                    oom_more = self.drain_oom(&mut raws) >= BATCH;
                }
                Some(event) = self.healing.recv() => self.outlet.publish(event),
                Some(change) = self.inspected.recv() => self.outlet.inspected(&change),
                Some(config) = self.reloads.recv() => self.outlet.set_rules(&config),
                Some(window) = windows_read.recv() => self.window(window, &mut losses, false),
                _ = drain_timer.tick() => {
                    if !oom_watched {
                        oom_more = self.drain_oom(&mut raws) >= BATCH;
                    }
                    self.drain_batch(&mut raws);
                }
                () = notify.notified() => self.drain_batch(&mut raws),
                () = std::future::ready(()), if oom_more => oom_more = self.drain_oom(&mut raws) >= BATCH,
            }
        }
        let deadline = Instant::now() + LAST_DRAIN;
        while self.drain_oom(&mut raws) > 0 && Instant::now() < deadline {}
        while self.drain_once(&mut raws) > 0 && Instant::now() < deadline {}
        self.incidents.after_batch(true);
        while let Ok(change) = self.inspected.try_recv() {
            self.outlet.inspected(&change);
        }
        // The reader has its token too: what it still reads comes before the last window.
        while let Some(window) = windows_read.recv().await {
            self.window(window, &mut losses, false);
        }
        if let Err(error) = reader.await {
            tracing::error!("the reader of the counters has ended: {error}");
        }
        let book = Arc::clone(&self.book);
        self.window(book.tick(monotonic(), WallTime::now()), &mut losses, true);
        self.hierarchy.join().await;
        (self.outlet, self.healing)
    }

    fn drain_batch(&mut self, raws: &mut Vec<Raw>) {
        let book = Arc::clone(&self.book);
        book.draining.measure(|| self.drain_some(raws));
    }

    fn drain_some(&mut self, raws: &mut Vec<Raw>) {
        let is_empty = self.drain_once(raws) < BATCH;
        if !is_empty {
            // There may be more: again, after what else is waiting.
            self.notify.notify_one();
        }
        self.incidents.after_batch(is_empty);
    }

    fn drain_once(&mut self, raws: &mut Vec<Raw>) -> usize {
        let Some((rings, _)) = &mut self.rings else { return 0 };
        let fates = &self.book.fates;
        let taken = rings.drain(BATCH, &mut |bytes: &[u8]| match decode(bytes) {
            Ok(raw) => {
                fates.taken(raw.probe());
                raws.push(raw);
            }
            Err(error) => {
                tracing::debug!("a record in an event ring: {error}");
                fates.unreadable(claimed_probe(bytes), error);
            }
        });
        self.hand_on(raws);
        taken
    }

    fn drain_oom(&mut self, raws: &mut Vec<Raw>) -> usize {
        let Some((_, ring)) = &mut self.rings else { return 0 };
        let fates = &self.book.fates;
        let taken = ring.drain(BATCH, &mut |bytes: &[u8]| match decode(bytes) {
            Ok(raw) if raw.probe() == Probe::OomKill => {
                fates.taken(Probe::OomKill);
                raws.push(raw);
            }
            Ok(_) => fates.unreadable(Probe::OomKill, DecodeError::UnknownKind(0)),
            Err(error) => fates.unreadable(Probe::OomKill, error),
        });
        self.hand_on(raws);
        taken
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
            let (probe, time_mono_ns) = (raw.probe(), raw.time_mono_ns);
            let (mut event, cgroup_key) = self.enricher.event(raw, &self.book);
            let raised = self.outlet.decide(&event);
            self.enricher.look_at_victim(&mut event);
            Enricher::note(&event.task, cgroup_key, time_mono_ns, &self.book);
            if let Body::OomKill(kill) = &event.body {
                self.book.count_oom_kill(cgroup_key, kill.scope);
                let fault = raised.as_ref().map(|raised| raised.fault.clone());
                self.incidents.mark(Mark { event: event.clone(), cgroup_key, fault });
            } else {
                self.incidents.record(&event, cgroup_key);
            }
            self.outlet.kernel_event(event, raised, now);
            self.book.fates.delivered(probe);
        }
        if self.incidents.waits_for_rings() {
            // What the victim did last lies in the other rings.
            self.notify.notify_one();
        }
    }

    /// What earlier processes said of losses, as (place, reason, so far).
    fn said<'f>(
        &'f self,
        fates: &'f [ProbeFates],
    ) -> impl Iterator<Item = (&'static str, &'static str, u64)> + 'f {
        fates.iter().flat_map(|fates| {
            let reasons = fates.dropped.iter().enumerate();
            reasons.map(|(place, (reason, _))| {
                (fates.probe.name(), *reason, self.book.fates.said(fates.probe, place))
            })
        })
    }

    fn window(&mut self, window: Window, losses: &mut Losses, end: bool) {
        if let Some(diagnostics) = &mut self.diagnostics {
            diagnostics.read();
        }
        self.hierarchy.tick(&self.book);
        match window {
            Ok((tick, fates)) => {
                let totals = fates.iter().flat_map(|fates| {
                    fates.dropped.iter().map(|(reason, count)| (fates.probe.name(), *reason, *count))
                });
                for lost in losses.news(totals.chain(self.outlet.lost()), tick.time_mono, end) {
                    let of = fates.iter().find(|fates| fates.probe.name() == lost.probe);
                    let place = of.and_then(|fates| {
                        Some((
                            fates.probe,
                            fates.dropped.iter().position(|(reason, _)| *reason == lost.reason)?,
                        ))
                    });
                    if let Some((probe, reason)) = place {
                        self.book.fates.say(probe, reason, lost.count);
                    }
                    self.outlet.say(tick.time, Body::Lost(lost));
                }
                self.outlet.tick(&tick);
            }
            Err(error) => self.outlet.cannot_read(&error, WallTime::now()),
        }
    }
}

/// Reads the counters once a window, off the task that owns the rings: with a thousand cgroups a reading
/// takes tens of milliseconds, and an OOM kill must not wait for it.
async fn read_windows(
    book: Arc<Book>,
    window: Duration,
    windows: mpsc::Sender<Window>,
    shutdown: CancellationToken,
) {
    let mut timer = timer(window);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let book = Arc::clone(&book);
        let read = tokio::task::spawn_blocking(move || book.tick(monotonic(), WallTime::now())).await;
        match read {
            Ok(read) => {
                if windows.send(read).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::error!("a reading of the counters failed: {error}"),
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
