//! One event on its way out, serialised at most once.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::event::{Event, Kind};

/// An event that several consumers share. Its JSON is made when the first of them asks, and not at all
/// when none does: with `emit: all` a node makes far more events than anyone reads.
#[derive(Debug)]
pub struct Record {
    event: Arc<Event>,
    json: OnceLock<Bytes>,
}

impl Record {
    /// Wraps `event` for sharing.
    #[must_use]
    pub fn new(event: Arc<Event>) -> Arc<Self> {
        Arc::new(Self { event, json: OnceLock::new() })
    }

    /// The event.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The event as one line of JSON, without the line's end.
    #[must_use]
    pub fn json(&self) -> Bytes {
        // The model has nothing that JSON cannot hold; should that change, the line is empty, not the agent down.
        self.json.get_or_init(|| serde_json::to_vec(&*self.event).unwrap_or_default().into()).clone()
    }

    /// About how many bytes its JSON has; known without making it.
    #[must_use]
    pub(super) fn weight_bytes(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len() + 16);
        let identity = &self.event.identity;
        let named = [&identity.cgroup, &identity.container_id, &identity.container, &identity.pod];
        let rest = [&identity.namespace, &identity.pod_uid, &identity.unit, &self.event.task.comm];
        let body = match &self.event.body {
            crate::event::Body::FileWrite(write) => write.path.as_ref().map_or(0, |path| path.len() + 16),
            crate::event::Body::Health(health) => health.reasons.iter().map(String::len).sum(),
            crate::event::Body::Healing(healing) => healing.reason.as_ref().map_or(0, String::len),
            _ => 0,
        };
        320 + named.into_iter().chain(rest).map(text).sum::<usize>() + body
    }
}

/// Some of the kinds of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindSet(u8);

impl KindSet {
    /// All kinds.
    pub const ALL: Self = Self(u8::MAX);

    /// The kinds in `list`, such as `oom_kill,fault`.
    ///
    /// # Errors
    /// A sentence that names the kind that is none, and all there are.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut set = Self(0);
        for name in list.split(',').map(str::trim) {
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else {
                let all: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                return Err(format!("`{name}` is not a kind of event, expected any of {}", all.join(", ")));
            };
            set.0 |= 1 << kind as u8;
        }
        Ok(set)
    }

    /// Whether `kind` is one of them.
    #[must_use]
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Body, Lost, WallTime};

    #[test]
    fn json_is_made_once_and_shared() {
        let body = Body::Lost(Lost { probe: "file_write", reason: "ring_full", count: 3 });
        let record = Record::new(Arc::new(Event::of_node(WallTime(0), "n".into(), body)));
        let line = record.json();
        assert!(std::ptr::eq(line.as_ptr(), record.json().as_ptr()));
        let expected = r#"{"time":"1970-01-01T00:00:00.000000000Z","kind":"lost","node":"n","probe":"file_write","reason":"ring_full","count":3}"#;
        assert_eq!(line, expected);
    }

    #[test]
    fn a_kind_that_is_none_is_named() {
        let set = KindSet::parse("oom_kill, lost").unwrap();
        assert!(set.contains(Kind::OomKill) && set.contains(Kind::Lost) && !set.contains(Kind::Fault));
        assert!(KindSet::parse("oom_kil").unwrap_err().starts_with("`oom_kil` is not a kind of event"));
        assert!(KindSet::parse("").is_err());
    }
}
