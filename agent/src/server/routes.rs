//! The endpoints.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State as Extract;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::guard::{self, Guard, error};
use super::readings::Readings;
use super::{Origin, State, destinations, events, incidents, inspection};
use crate::event::{FileTotals, Kind, ProbeFates, Totals};
use crate::sink::history::SUBSCRIBER_SLOW;
use crate::sink::metrics::{Exporter, Format, Input, OutputDrops, Process};
use crate::sink::stdout::OUTPUT_FULL;

/// A page from which on the memory that making it took is given back at once.
const LARGE_PAGE_BYTES: usize = 256 * 1024;

/// What the handlers share.
pub(super) struct App {
    pub(super) state: State,
    pub(super) stop: CancellationToken,
    readings: Readings,
    exporter: Mutex<Exporter>,
    started: Instant,
}

pub(super) fn router(app: &Arc<App>, origin: Origin) -> Router {
    let (node, counters) = (Arc::clone(&app.state.node), Arc::clone(&app.state.counters));
    let guard = Arc::new(Guard { node, origin, counters });
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/api/v1/status", get(status))
        .route("/api/v1/events", get(events::events))
        .route("/api/v1/incidents", get(incidents::list))
        .route("/api/v1/incidents/{id}", get(incidents::one))
        .fallback(guard::not_found)
        .method_not_allowed_fallback(guard::not_allowed)
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .with_state(Arc::clone(app))
}

async fn index() -> Html<String> {
    let items: String = guard::ENDPOINTS
        .iter()
        .skip(1)
        .map(|path| format!("<li><a href=\"{path}\">{path}</a></li>\n"))
        .collect();
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Galen</title>\n<h1>Galen {}</h1>\n<ul>\n{items}</ul>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    ))
}

async fn metrics(Extract(app): Extract<Arc<App>>, headers: HeaderMap) -> Response {
    let totals = match app.readings.get().await {
        Ok(totals) => totals,
        Err(unavailable) => return error(StatusCode::SERVICE_UNAVAILABLE, unavailable.to_string()),
    };
    let accept: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).collect();
    let format = Format::negotiate(&accept.join(","));
    // With thousands of series this takes milliseconds, too long for a thread that also drains rings.
    let rendered = tokio::task::spawn_blocking(move || {
        let page = app.render(&totals, format);
        drop(totals);
        if page.len() > LARGE_PAGE_BYTES {
            crate::memory::give_back();
        }
        page
    });
    match rendered.await {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(_) => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "rendering the metrics failed; see the agent's log")
        }
    }
}

impl App {
    pub(super) fn new(state: State, stop: CancellationToken) -> Self {
        Self {
            readings: Readings::new(Arc::clone(&state.totals)),
            exporter: Mutex::new(Exporter::new(state.series_max, state.destinations_shown)),
            started: Instant::now(),
            state,
            stop,
        }
    }

    fn render(&self, totals: &Totals, format: Format) -> Vec<u8> {
        let health = Arc::clone(&self.state.health.borrow());
        let printed = self.state.printer.as_ref().map_or([0; Kind::ALL.len()], |printer| printer.dropped());
        let outputs = [
            OutputDrops { output: "stdout", reason: OUTPUT_FULL, by_kind: printed },
            OutputDrops { output: "stream", reason: SUBSCRIBER_SLOW, by_kind: self.state.history.dropped() },
        ];
        let input = Input {
            totals,
            health: &health,
            counters: &self.state.counters,
            healing: &(self.state.healing)(),
            outputs: &outputs,
            process: &Process::read(),
            inspection: &self.state.inspection,
        };
        self.exporter.lock().unwrap_or_else(PoisonError::into_inner).render(&input, format)
    }
}

async fn readyz(Extract(app): Extract<Arc<App>>) -> Response {
    let readiness = app.state.readiness.borrow().clone();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

async fn status(Extract(app): Extract<Arc<App>>) -> Response {
    let totals = match app.readings.get().await {
        Ok(totals) => totals,
        Err(unavailable) => return error(StatusCode::SERVICE_UNAVAILABLE, unavailable.to_string()),
    };
    let health = Arc::clone(&app.state.health.borrow());
    let readiness = app.state.readiness.borrow().clone();
    Json(json!({
        "node": app.state.node,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.started.elapsed().as_secs(),
        "readiness": readiness,
        "health": *health,
        "probes": probes(&totals),
        "events": fates(&totals.fates),
        "inspection": inspection::shown(&app.state.inspection),
        "destinations": destinations::worst(&totals.destinations),
        "cost": totals.cost.as_ref().map(|cost| json!({
            "node_ratio": cost.node_ratio,
            "budget_ratio": cost.budget_ratio,
            "records_kept": Map::from_iter(cost.kept_ratios.map(|(lane, ratio)| (lane.to_owned(), json!(ratio)))),
        })),
        "healing": { "mode": *app.state.healing_mode.borrow() },
        "heaviest_files": totals.heaviest_files.iter().map(file).collect::<Vec<_>>(),
    }))
    .into_response()
}

fn probes(totals: &Totals) -> Vec<Value> {
    totals
        .probes
        .iter()
        .map(|info| {
            json!({
                "probe": info.probe.name(),
                "hook": info.hook,
                "variant": info.variant,
                "refused": info.refused,
            })
        })
        .collect()
}

/// The identity's fields and the file's own, as an event has them.
fn file(file: &FileTotals) -> Value {
    let mut fields = match serde_json::to_value(&*file.identity) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.extend(file.path.as_deref().map(|path| ("path".to_owned(), json!(path))));
    let counts = &file.counts;
    for (name, value) in [
        ("dev", json!(file.dev)),
        ("inode", json!(file.inode)),
        ("subject", json!(file.identity.subject())),
        ("writes", json!(counts.writes)),
        ("bytes", json!(counts.bytes)),
        ("errors", json!(counts.errors)),
        ("latency_sum_us", json!(counts.latency_sum_ns / 1000)),
    ] {
        fields.insert(name.to_owned(), value);
    }
    Value::Object(fields)
}

fn fates(fates: &[ProbeFates]) -> Map<String, Value> {
    let one = |fates: &ProbeFates| {
        let dropped: Map<String, Value> =
            fates.dropped.iter().map(|(reason, count)| ((*reason).to_owned(), json!(count))).collect();
        let fields = json!({
            "seen": fates.seen,
            "delivered": fates.delivered,
            "filtered": fates.filtered,
            "sampled": fates.sampled,
            "dropped": dropped,
            "in_flight": fates.in_flight,
        });
        (fates.probe.name().to_owned(), fields)
    };
    fates.iter().map(one).collect()
}
