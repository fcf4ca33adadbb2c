//! `oom_kill`: on the edge, for every victim.

use std::sync::Arc;

use crate::event::{Body, Event, Fault, FaultSignal, Signal};

/// The signal that `event` raises, if it is an OOM kill. Its context is the event as it is printed, and
/// `subject`.
pub(super) fn signal(event: &Event, trace_id: impl FnOnce() -> Arc<str>) -> Option<FaultSignal> {
    if !matches!(event.body, Body::OomKill(_)) {
        return None;
    }
    let subject: Arc<str> = event.identity.subject().into();
    let mut context = super::fields(event);
    context.insert("subject".to_owned(), subject.as_ref().into());
    Some(FaultSignal {
        fault: Fault {
            signal: Signal::OomKill,
            subject,
            value: 1.0,
            threshold: 1.0,
            breaches: 1,
            trace_id: trace_id(),
            destination: None,
        },
        identity: Arc::clone(&event.identity),
        task: event.task.clone(),
        context,
        time: event.time,
    })
}
