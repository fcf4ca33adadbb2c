//! `/api/v1/incidents`: the incidents that are kept, and one by its id.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::guard::error;
use super::routes::App;
use crate::incidents::store::{self, ReadError, Stored};

/// What a list says of each.
const LISTED: [&str; 7] = ["id", "time", "kind", "node", "scope", "confirmed", "limit"];

pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    let folder = app.state.incidents.clone();
    match reading(move || store::list(&folder)).await {
        Some(Ok((found, broken))) => {
            let broken: Vec<_> = broken.iter().map(ToString::to_string).collect();
            let found: Vec<_> = found.iter().map(summary).collect();
            Json(json!({ "incidents": found, "broken": broken })).into_response()
        }
        Some(Err(error)) => unavailable(&error),
        None => failed(),
    }
}

pub(super) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let folder = app.state.incidents.clone();
    let wanted = id.clone();
    // Only a file that is listed is read, so an id is never a path.
    let read = move || {
        let name = PathBuf::from(format!("{wanted}.json"));
        let path = store::paths(&folder)?.into_iter().find(|path| path.file_name() == Some(name.as_os_str()));
        path.map(|path| store::read(&path)).transpose()
    };
    match reading(read).await {
        Some(Ok(Some(found))) => Json(found.fields).into_response(),
        Some(Ok(None)) => {
            error(StatusCode::NOT_FOUND, format!("there is no incident `{id}`; see /api/v1/incidents"))
        }
        Some(Err(error)) => unavailable(&error),
        None => failed(),
    }
}

/// Files are read where a slow disk holds up nothing else.
async fn reading<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(read).await.ok()
}

fn unavailable(cause: &ReadError) -> Response {
    error(StatusCode::SERVICE_UNAVAILABLE, cause.to_string())
}

fn failed() -> Response {
    error(StatusCode::INTERNAL_SERVER_ERROR, "reading the incidents failed; see the agent's log")
}

fn summary(incident: &Stored) -> Value {
    let mut fields: serde_json::Map<String, Value> = LISTED
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), incident.fields.get(name)?.clone())))
        .collect();
    let victims = incident.fields.get("victims").and_then(Value::as_array);
    let event = |victim: &Value, name: &str| victim["event"].get(name).cloned();
    let victims: Vec<Value> = victims
        .into_iter()
        .flatten()
        .map(|victim| json!({ "pid": event(victim, "pid"), "comm": event(victim, "comm"), "cgroup": event(victim, "cgroup") }))
        .collect();
    fields.insert("victims".to_owned(), victims.into());
    Value::Object(fields)
}
