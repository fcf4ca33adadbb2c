//! What happens with an event once it has its names: it is printed, kept, judged, and may raise a fault.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::config;
use crate::event::{Body, Event, Fault, FaultSignal, Health, HealthState, Tick, WallTime};
use crate::faults::{self, Detector};
use crate::health::failing::Failing;
use crate::health::{Monitor, SubjectHealth, rules};
use crate::inspection::Change;
use crate::kernel::KernelError;
use crate::sink::Record;
use crate::sink::history::History;
use crate::sink::metrics::Counters;
use crate::sink::stdout::Printer;

/// The consumers, and the judgement between them.
pub(super) struct Outlet {
    node: Arc<str>,
    printer: Option<Printer>,
    history: Arc<History>,
    counters: Arc<Counters>,
    monitor: Monitor,
    detector: Detector,
    failing: Failing,
    health: watch::Sender<Arc<Vec<SubjectHealth>>>,
    signals: mpsc::Sender<FaultSignal>,
    /// Signals that healing did not take, by [`UNHEALED`].
    unhealed: [u64; UNHEALED.len()],
}

/// A fault that healing was told of, and nobody else yet.
pub(super) struct Raised {
    /// The fault.
    pub fault: Fault,
    /// The event that says it.
    said: Event,
}

/// Why healing did not take a signal.
const UNHEALED: [&str; 2] = ["queue_full", "ended"];

/// What an outlet is made of.
pub(super) struct Parts {
    /// The node's name.
    pub node: Arc<str>,
    /// Prints; `None` when nothing is printed.
    pub printer: Option<Printer>,
    /// Keeps and hands on.
    pub history: Arc<History>,
    /// Counts.
    pub counters: Arc<Counters>,
    /// Where every subject's health is shown.
    pub health: watch::Sender<Arc<Vec<SubjectHealth>>>,
    /// Where fault signals go.
    pub signals: mpsc::Sender<FaultSignal>,
}

impl Outlet {
    /// An outlet that has judged nothing yet but what the agent is `blind` to.
    #[must_use]
    pub(super) fn new(
        parts: Parts,
        config: &config::Config,
        blind: Option<(HealthState, String)>,
        time: WallTime,
    ) -> Self {
        let mut outlet = Self {
            node: parts.node,
            printer: parts.printer,
            history: parts.history,
            counters: parts.counters,
            monitor: Monitor::new(&config.health, &config.faults, config.kernel.window.0),
            detector: Detector::new(&config.faults),
            failing: Failing::default(),
            health: parts.health,
            signals: parts.signals,
            unhealed: [0; UNHEALED.len()],
        };
        let change = outlet.monitor.start(blind, time);
        outlet.health_changed(change, time);
        outlet
    }

    /// Judges by other rules from now on. What is known of the subjects stays.
    pub(super) fn set_rules(&mut self, config: &config::Config) {
        self.monitor.set_rules(&config.health, &config.faults);
        self.detector.set_rules(&config.faults);
    }

    /// Hands the fault that an event is to healing, before anything else is done with the event.
    pub(super) fn decide(&mut self, event: &Event) -> Option<Raised> {
        let signal = self.detector.on_event(event, trace_id)?;
        Some(self.raise(signal))
    }

    /// An event of the kernel: everyone gets it, and the fault that [`Self::decide`] made of it.
    pub(super) fn kernel_event(&mut self, event: Event, raised: Option<Raised>, now_mono: Duration) {
        self.failing.on_event(&event);
        let changes = self.monitor.on_event(&event, now_mono);
        let time = event.time;
        self.publish(event);
        self.health_changed(changes, time);
        if let Some(raised) = raised {
            self.publish(raised.said);
        }
    }

    /// A target's health changed.
    pub(super) fn inspected(&mut self, change: &Change) {
        let raised = change.fault(&self.node, trace_id).map(|signal| self.raise(signal));
        self.say(change.time, Body::Health(change.health()));
        if let Some(raised) = raised {
            self.publish(raised.said);
        }
    }

    /// A reading of the counters.
    pub(super) fn tick(&mut self, tick: &Tick) {
        let mut windows = rules::by_subject(tick);
        for window in windows.values_mut().filter(|window| window.connects_failed() > 0) {
            window.worst_destination = self.failing.worst(&window.subject);
        }
        self.failing.end_window();
        let changes = self.monitor.on_tick(tick, &windows);
        let signals = self.detector.on_tick(tick, &windows, &self.node, &mut trace_id);
        self.health_changed(changes, tick.time);
        for signal in signals {
            let Raised { said, .. } = self.raise(signal);
            self.publish(said);
        }
        self.counters.set_health_evicted(self.monitor.evicted());
        self.counters.set_faults_untracked(self.detector.untracked());
    }

    /// The counters could not be read: said where that is new.
    pub(super) fn cannot_read(&mut self, error: &KernelError, time: WallTime) {
        let reason = format!("the counters cannot be read: {error}");
        let change = self.monitor.cannot_read(reason.clone(), time);
        if change.is_some() {
            tracing::error!("{reason}");
        }
        self.health_changed(change, time);
    }

    /// What the outlet could not hand on, as (consumer, reason, so far).
    pub(super) fn lost(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + use<> {
        UNHEALED.into_iter().zip(self.unhealed).map(|(reason, count)| ("healing", reason, count))
    }

    /// Something the agent itself has to say.
    pub(super) fn say(&mut self, time: WallTime, body: Body) {
        self.publish(Event::of_node(time, Arc::clone(&self.node), body));
    }

    /// Prints, keeps and counts an event.
    pub(super) fn publish(&mut self, event: Event) {
        self.counters.count(&event);
        let record = Record::new(Arc::new(event));
        if let Some(printer) = &self.printer {
            printer.print(&record);
        }
        self.history.push(&record);
    }

    /// Hands a signal to healing.
    fn raise(&mut self, signal: FaultSignal) -> Raised {
        let raised =
            Raised { fault: signal.fault.clone(), said: faults::to_event(&signal, Arc::clone(&self.node)) };
        // Healing is never waited for: a full queue means that more faults come than it may act on anyway.
        match self.signals.try_send(signal) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.unhealed[0] += 1,
            Err(mpsc::error::TrySendError::Closed(_)) => self.unhealed[1] += 1,
        }
        raised
    }

    fn health_changed(&mut self, changes: impl IntoIterator<Item = Health>, time: WallTime) {
        if !self.monitor.take_changed() {
            return;
        }
        let snapshot = self.monitor.snapshot();
        for change in changes {
            let subject = snapshot.iter().find(|known| known.subject == change.subject);
            let identity = subject.map(|known| Arc::clone(&known.identity)).unwrap_or_default();
            let mut event = Event::of_node(time, Arc::clone(&self.node), Body::Health(change));
            event.identity = identity;
            self.publish(event);
        }
        self.health.send_replace(Arc::new(snapshot));
    }
}

/// 32 hexadecimal digits at random, not all zero (W3C Trace Context, trace-id).
fn trace_id() -> Arc<str> {
    use std::fmt::Write;
    let mut bytes = [0_u8; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // A kernel without entropy is none that this can run on; the time still tells signals apart.
        bytes[..8].copy_from_slice(&WallTime::now().0.to_be_bytes());
    }
    bytes[15] |= 1;
    let mut text = String::with_capacity(32);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}
