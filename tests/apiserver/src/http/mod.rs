//! The API over HTTP: from a request to a verb of [`Cluster`] and back.

mod discovery;
mod faults;
mod format;
mod openapi;
mod path;
mod rights;
mod table;
mod watch;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::watch as signal;

pub(crate) use self::faults::Control;
use self::format::Format;
use self::path::{Collection, Path};
pub(crate) use self::rights::Rights;
use crate::cluster::{Cluster, DeleteOptions, Deleted, Target};
use crate::object::{Object, text};
use crate::patch::PatchKind;
use crate::selector::Selector;
use crate::status::ApiError;

/// What every request handler knows.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) control: signal::Sender<Control>,
    pub(crate) rights: Arc<Rights>,
}

type Parameters = HashMap<String, String>;

/// The service for one listener.
pub(crate) fn router(api: Api) -> Router {
    Router::new().fallback(serve).with_state(api)
}

async fn serve(State(api): State<Api>, Query(query): Query<Parameters>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refusal(&ApiError::bad_request(format!("reading the body: {error}"))),
    };
    tracing::debug!(method = %parts.method, uri = %parts.uri, "request");
    match parts.uri.path().strip_prefix("/-/") {
        Some("rights") => return api.rights.order(&parts.method, &query, &body),
        Some(fault) => return faults::order(&api, &parts.method, fault, &query),
        None => {}
    }
    let Control { outage, undefined, .. } = *api.control.borrow();
    if outage {
        return refusal(&ApiError::outage());
    }
    let (method, headers) = (&parts.method, &parts.headers);
    let asked = Asked { api: &api, custom: !undefined, method, headers, query: &query, body };
    let path = path::parse(parts.uri.path()).filter(|path| !undefined || !path.is_custom());
    let may =
        path.as_ref().map_or(Ok(()), |path| api.rights.check(headers, method, asked.flag("watch"), path));
    if let Err(error) = may {
        return refusal(&error);
    }
    let answer = match path {
        Some(Path::Fixed(path)) => asked.fixed(&path),
        Some(Path::Collection(collection)) => asked.collection(&collection),
        Some(Path::Object(target)) => asked.object(&target),
        None => Err(ApiError::no_such_path()),
    };
    answer.unwrap_or_else(|error| refusal(&error))
}

/// One request, read completely.
struct Asked<'a> {
    api: &'a Api,
    /// Whether the CustomResourceDefinitions are installed.
    custom: bool,
    method: &'a Method,
    headers: &'a HeaderMap,
    query: &'a Parameters,
    body: Bytes,
}

impl Asked<'_> {
    fn fixed(&self, path: &str) -> Result<Response, ApiError> {
        if self.method != Method::GET {
            return Err(ApiError::method_not_allowed());
        }
        if let "/healthz" | "/livez" | "/readyz" = path {
            return Ok(raw(200, "text/plain", Bytes::from_static(b"ok")));
        }
        if path == "/openapi/v2" {
            let (media_type, document) = openapi::v2(self.header(header::ACCEPT));
            return Ok(raw(200, media_type, document));
        }
        let document = discovery::document(path, self.custom).or_else(|| openapi::v3(path, self.custom));
        Ok(answer(200, &document.ok_or_else(ApiError::no_such_path)?))
    }

    fn collection(&self, collection: &Collection) -> Result<Response, ApiError> {
        let Collection { resource, namespace } = collection;
        let format = Format::negotiate(self.header(header::ACCEPT), self.parameter("includeObject"));
        let cluster = &self.api.cluster;
        match *self.method {
            Method::GET if self.flag("watch") => {
                let request = watch::WatchRequest {
                    resource,
                    namespace: namespace.clone(),
                    selector: self.selector()?,
                    format,
                    resource_version: self.revision()?,
                    bookmarks: self.flag("allowWatchBookmarks"),
                    initial_events: self.query.get("sendInitialEvents").map(|v| v == "true"),
                    version_match: self.parameter("resourceVersionMatch").to_owned(),
                    timeout_seconds: self.parameter("timeoutSeconds").parse().ok(),
                };
                watch::respond(self.api, request)
            }
            Method::GET => {
                if !self.parameter("continue").is_empty() {
                    return Err(ApiError::expired_continue());
                }
                let selector = self.selector()?;
                let (revision, objects) = cluster.list(resource, namespace.as_deref(), &selector);
                match self.revision()? {
                    Some(asked) if asked > revision => return Err(ApiError::too_large(asked, revision)),
                    // Only the present is kept, so an exact past is always gone.
                    Some(asked) if asked < revision && self.parameter("resourceVersionMatch") == "Exact" => {
                        return Err(ApiError::expired(asked, revision));
                    }
                    _ => {}
                }
                Ok(raw(200, "application/json", format.list(resource, revision, &objects)))
            }
            Method::POST => {
                let namespace = namespace.as_deref().unwrap_or_default();
                if resource.namespaced && namespace.is_empty() {
                    return Err(ApiError::method_not_allowed());
                }
                let object = cluster.create(resource, namespace, self.document()?, self.is_dry())?;
                Ok(raw(201, "application/json", format.object(resource, &object)))
            }
            Method::DELETE => {
                let options = self.delete_options()?;
                let (revision, objects) = cluster.list(resource, namespace.as_deref(), &self.selector()?);
                for object in &objects {
                    match cluster.delete(&Target::new(resource, object.namespace(), object.name()), &options)
                    {
                        Err(error) if error.code != 404 => return Err(error),
                        _ => {}
                    }
                }
                Ok(raw(200, "application/json", format.list(resource, revision, &objects)))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    fn object(&self, target: &Target) -> Result<Response, ApiError> {
        let format = Format::negotiate(self.header(header::ACCEPT), self.parameter("includeObject"));
        let cluster = &self.api.cluster;
        let answer_with = |code: u16, object: &Object| {
            raw(code, "application/json", format.object(target.resource, object))
        };
        match *self.method {
            Method::GET => Ok(answer_with(200, &*cluster.get(target)?)),
            Method::PUT => Ok(answer_with(200, &*cluster.update(target, self.document()?, self.is_dry())?)),
            Method::PATCH => {
                let media_type = self.header(header::CONTENT_TYPE);
                let kind = PatchKind::from_media_type(media_type)
                    .filter(|kind| *kind != PatchKind::Strategic || !target.resource.custom)
                    .ok_or_else(|| ApiError::unsupported_media_type(media_type))?;
                let patch = kind.parse(&self.body)?;
                let manager = self.parameter("fieldManager");
                if kind == PatchKind::Apply && manager.is_empty() {
                    return Err(ApiError::bad_request("fieldManager is required for apply patch"));
                }
                let (object, created) = cluster.patch(target, kind, &patch, manager, self.is_dry())?;
                Ok(answer_with(if created { 201 } else { 200 }, &object))
            }
            Method::DELETE if !target.status => match cluster.delete(target, &self.delete_options()?)? {
                Deleted::Marked(object) => Ok(answer_with(200, &object)),
                Deleted::Gone(object) => {
                    let resource = target.resource;
                    let details = json!({"name": target.name, "group": resource.group, "kind": resource.plural,
                        "uid": object.value["metadata"]["uid"]});
                    Ok(answer(
                        200,
                        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                        "status": "Success", "details": details}),
                    ))
                }
            },
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.parameter(name), "true" | "1")
    }

    fn is_dry(&self) -> bool {
        self.parameter("dryRun") == "All"
    }

    fn selector(&self) -> Result<Selector, ApiError> {
        let (labels, fields) = (self.parameter("labelSelector"), self.parameter("fieldSelector"));
        Selector::parse(labels, fields).map_err(ApiError::bad_request)
    }

    /// The resourceVersion asked for; none and zero both mean any.
    fn revision(&self) -> Result<Option<u64>, ApiError> {
        match self.parameter("resourceVersion") {
            "" | "0" => Ok(None),
            given => given.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("resourceVersion: Invalid value: {given:?}: must be a number"))
            }),
        }
    }

    fn document(&self) -> Result<Value, ApiError> {
        let media_type = self.header(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
        let unreadable = |e: String| ApiError::bad_request(format!("decoding the body: {e}"));
        match media_type {
            "application/json" | "" => {
                serde_json::from_slice(&self.body).map_err(|e| unreadable(e.to_string()))
            }
            "application/yaml" => serde_saphyr::from_slice(&self.body).map_err(|e| unreadable(e.to_string())),
            other => Err(ApiError::unsupported_media_type(other)),
        }
    }

    /// From the query and the body, which may be absent.
    fn delete_options(&self) -> Result<DeleteOptions, ApiError> {
        let body = if self.body.is_empty() { Value::Null } else { self.document()? };
        let string = |pointer: &str| Some(text(&body, pointer).to_owned()).filter(|s| !s.is_empty());
        let in_query = self.parameter("gracePeriodSeconds").parse().ok();
        Ok(DeleteOptions {
            grace_period_seconds: body["gracePeriodSeconds"].as_u64().or(in_query),
            uid: string("/preconditions/uid"),
            resource_version: string("/preconditions/resourceVersion"),
            dry_run: self.is_dry() || body["dryRun"][0] == "All",
        })
    }
}

fn refusal(error: &ApiError) -> Response {
    answer(error.code, &error.to_status())
}

fn answer(code: u16, document: &Value) -> Response {
    raw(code, "application/json", Bytes::from(document.to_string()))
}

fn raw(code: u16, media_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    response
}
