//! Watches: a stream of changes that begins with the objects there are, at a revision of the past, or now.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use super::format::Format;
use super::{Api, Control, raw};
use crate::cluster::Cluster;
use crate::object::Object;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::status::ApiError;
use crate::store::Change;

/// How often a watch that asked for bookmarks gets one: often, so that tests need not wait for it.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(2);
/// How long a watch lasts that names no timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The parameters of a watch.
pub(super) struct WatchRequest {
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
    pub(super) format: Format,
    /// None for "any", which begins with the objects there are.
    pub(super) resource_version: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) initial_events: Option<bool>,
    pub(super) version_match: String,
    pub(super) timeout_seconds: Option<u64>,
}

/// Starts a watch. One that can't start because its past is gone says so in its first event, as Kubernetes' does.
pub(super) fn respond(api: &Api, request: WatchRequest) -> Result<Response, ApiError> {
    if request.initial_events.is_some() && request.version_match != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(ApiError::bad_request(why));
    }
    if request.initial_events == Some(true) && !request.bookmarks {
        return Err(ApiError::bad_request("sendInitialEvents requires setting allowWatchBookmarks"));
    }
    let timeout = request.timeout_seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let watcher = Watcher {
        revisions: api.cluster.revisions(),
        breaks: api.control.borrow().breaks,
        control: api.control.subscribe(),
        cluster: api.cluster.clone(),
        cursor: None,
        next_bookmark: Instant::now() + BOOKMARK_INTERVAL,
        deadline: Instant::now() + timeout,
        over: false,
        request,
    };
    let events = stream::unfold(watcher, |mut watcher| async {
        let chunk = watcher.next().await?;
        Some((Ok::<Bytes, Infallible>(chunk), watcher))
    });
    Ok(raw(200, "application/json", Body::from_stream(events)))
}

struct Watcher {
    cluster: std::sync::Arc<Cluster>,
    request: WatchRequest,
    revisions: Receiver<u64>,
    control: Receiver<Control>,
    /// How often all watches had been ended when this one began.
    breaks: u64,
    /// The revision up to which everything was sent; none before the first chunk.
    cursor: Option<u64>,
    next_bookmark: Instant,
    deadline: Instant,
    over: bool,
}

impl Watcher {
    /// The next events, as many as there are; none at the end of the watch.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            let mut chunk = BytesMut::new();
            self.revisions.mark_unchanged();
            match self.cursor {
                None => self.begin(&mut chunk),
                Some(cursor) => {
                    self.be_late().await;
                    self.catch_up(cursor, &mut chunk);
                }
            }
            if !chunk.is_empty() {
                return Some(chunk.freeze());
            }
            if self.over {
                break;
            }
            self.sleep().await;
            let now = Instant::now();
            self.over |= now >= self.deadline;
            if let Some(cursor) = self.cursor.filter(|_| self.request.bookmarks && now >= self.next_bookmark)
            {
                self.next_bookmark = now + BOOKMARK_INTERVAL;
                self.bookmark(cursor, false, &mut chunk);
                return Some(chunk.freeze());
            }
        }
        None
    }

    /// Until something changed, a bookmark is due, or the watch is over.
    async fn sleep(&mut self) {
        let breaks = self.breaks;
        let ended = move |control: &Control| control.ends(breaks);
        let wake = if self.request.bookmarks { self.next_bookmark.min(self.deadline) } else { self.deadline };
        let over = tokio::select! {
            changed = self.revisions.changed() => changed.is_err(),
            _ = self.control.wait_for(ended) => true,
            () = sleep_until(wake) => false,
        };
        self.over |= over;
    }

    /// Waits as long as a test has said, so that changes are told late and many at once.
    async fn be_late(&mut self) {
        let delay = self.control.borrow().delays.get(self.request.resource.plural).copied();
        let Some(delay) = delay.filter(|delay| !delay.is_zero()) else { return };
        let breaks = self.breaks;
        // An end of the watch is noticed where it always is.
        let ended = self.control.wait_for(move |control| control.ends(breaks));
        let _ = tokio::time::timeout(delay, ended).await;
    }

    fn begin(&mut self, chunk: &mut BytesMut) {
        let WatchRequest { resource, namespace, selector, resource_version, .. } = &self.request;
        let initial = self.request.initial_events.unwrap_or(resource_version.is_none());
        let (revision, objects) = self.cluster.list(resource, namespace.as_deref(), selector);
        if let Some(asked) = resource_version.filter(|asked| *asked > revision) {
            return self.fail(&ApiError::too_large(asked, revision), chunk);
        }
        if initial {
            for object in objects {
                self.event("ADDED", &object, chunk);
            }
            if self.request.initial_events == Some(true) {
                self.bookmark(revision, true, chunk);
            }
            self.cursor = Some(revision);
        } else {
            let from = resource_version.unwrap_or(revision);
            self.cursor = Some(from);
            self.catch_up(from, chunk);
        }
    }

    fn catch_up(&mut self, cursor: u64, chunk: &mut BytesMut) {
        match self.cluster.changes_after(self.request.resource, cursor) {
            Ok((revision, changes)) => {
                // A second time, everything is told as to a client that resumes from an earlier revision.
                let times = if self.control.borrow().duplicate { 2 } else { 1 };
                for _ in 0..times {
                    for change in &changes {
                        if let Some(kind) = self.kind_of(change) {
                            self.event(kind, &change.object, chunk);
                        }
                    }
                }
                self.cursor = Some(revision);
            }
            Err(gone) => self.fail(&gone, chunk),
        }
    }

    /// What a change is to someone who sees only the selected objects.
    fn kind_of(&self, change: &Change) -> Option<&'static str> {
        if self.request.namespace.as_deref().is_some_and(|namespace| namespace != change.object.namespace()) {
            return None;
        }
        let selected = |object: &Object| self.request.selector.matches(&object.value);
        let before = change.before.as_deref().is_some_and(selected);
        let now = !change.removed && selected(&change.object);
        match (before, now) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }

    fn fail(&mut self, error: &ApiError, chunk: &mut BytesMut) {
        self.over = true;
        write_event("ERROR", error.to_status().to_string().as_bytes(), chunk);
    }

    fn event(&self, kind: &str, object: &Object, chunk: &mut BytesMut) {
        write_event(kind, &self.request.format.object(self.request.resource, object), chunk);
    }

    fn bookmark(&self, revision: u64, ends_initial_events: bool, chunk: &mut BytesMut) {
        let bookmark = self.request.format.bookmark(self.request.resource, revision, ends_initial_events);
        write_event("BOOKMARK", &bookmark, chunk);
    }
}

fn write_event(kind: &str, object: &[u8], chunk: &mut BytesMut) {
    chunk.put_slice(br#"{"type":""#);
    chunk.put_slice(kind.as_bytes());
    chunk.put_slice(br#"","object":"#);
    chunk.put_slice(object);
    chunk.put_slice(b"}\n");
}
