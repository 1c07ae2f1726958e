//! `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::agent::Agent;
use crate::exposition::CONTENT_TYPE;

/// Serves `/metrics` of the agent.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new().route("/metrics", get(move || answer(Arc::clone(&agent))))
}

async fn answer(agent: Arc<Agent>) -> Response {
    match tokio::task::spawn_blocking(move || agent.metrics()).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}
