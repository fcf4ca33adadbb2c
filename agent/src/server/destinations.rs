//! Which destinations fail or are slow, for `/api/v1/status`.

use std::cmp::Reverse;

use serde_json::{Map, Value, json};

use crate::event::{ConnectPhase, DestinationCounters, DestinationTotals, DestinationsTotals, Outcome};

/// Destinations that are listed.
const LISTED: usize = 20;

/// What destinations did of late, those first that failed most, then the slowest.
pub(super) fn worst(totals: &DestinationsTotals) -> Vec<Value> {
    let mut moved: Vec<_> = totals.destinations.iter().filter(|found| found.recent.total() > 0).collect();
    moved.sort_by_key(|found| {
        (Reverse(found.recent.failed()), Reverse(mean_us(&found.recent)), found.destination)
    });
    moved.into_iter().take(LISTED).map(one).collect()
}

/// Of all connects, failed ones as well.
fn mean_us(counters: &DestinationCounters) -> u64 {
    let spent_ns: u64 = counters.phases_ns.iter().sum();
    spent_ns.checked_div(counters.total()).unwrap_or(0) / 1000
}

fn one(found: &DestinationTotals) -> Value {
    let counters = &found.recent;
    let outcomes: Map<String, Value> = Outcome::ALL
        .into_iter()
        .zip(counters.connects)
        .filter(|(_, count)| *count > 0)
        .map(|(outcome, count)| (outcome.name().to_owned(), count.into()))
        .collect();
    let phases: Map<String, Value> = ConnectPhase::ALL
        .into_iter()
        .zip(counters.phases_ns)
        .map(|(phase, time_ns)| (format!("{}_us", phase.name()), (time_ns / 1000).into()))
        .collect();
    json!({
        "destination": found.destination.to_string(),
        "connects": counters.total(),
        "failed": counters.failed(),
        "outcomes": outcomes,
        "syn_retransmits": counters.syn_retransmits,
        "phases": phases,
        "mean_us": mean_us(counters),
        "p99_at_most_us": counters.at_most_ns(0.99).map(|ns| ns.div_ceil(1000)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Destination;

    fn found(port: u16, connects: [u64; 7], round_trip_ns: u64) -> DestinationTotals {
        let recent = DestinationCounters {
            connects,
            phases_ns: [0, round_trip_ns, 0],
            ..DestinationCounters::default()
        };
        let destination = Destination(([10, 0, 0, 1], port).into());
        DestinationTotals { destination, generation: 1, counters: recent, recent }
    }

    #[test]
    fn the_failing_come_first_and_then_the_slow() {
        let destinations = vec![
            found(1, [4, 0, 0, 0, 0, 0, 0], 4_000_000),
            found(2, [2, 0, 0, 0, 0, 9, 0], 99_000_000),
            found(3, [9, 1, 2, 0, 0, 0, 0], 9_000),
            found(4, [0; 7], 0),
        ];
        let listed = worst(&DestinationsTotals { destinations, ..DestinationsTotals::default() });
        let names: Vec<_> = listed.iter().filter_map(|found| found["destination"].as_str()).collect();
        assert_eq!(
            names,
            ["10.0.0.1:3", "10.0.0.1:2", "10.0.0.1:1"],
            "what the caller gave up is no failure"
        );
        assert_eq!(listed[0]["outcomes"], json!({"established": 9, "refused": 1, "timed_out": 2}));
        assert_eq!((&listed[0]["failed"], &listed[1]["mean_us"]), (&json!(3), &json!(9000)));
        assert_eq!(listed[0]["p99_at_most_us"], Value::Null);
    }
}
