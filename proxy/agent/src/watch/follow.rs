//! One watch: a list, then its changes, and a list again where the API server has forgotten what came since.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

use fairlead_core::model::ObjectName;
use futures::StreamExt;
use kube::api::WatchParams;
use kube::core::{Status, WatchEvent};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::list::{ListError, list};
use super::{Change, Watches};
use crate::errors::chain;

/// After how many seconds the API server is to end an answer, to be asked again.
const SPAN: u32 = 290;
/// How long an answer may be silent: longer than the span, so that only a dead connection is.
const SILENCE: Duration = Duration::from_secs(295);
/// An answer without a word that ends sooner counts as a failure: it would be asked for all the time.
const SHORTEST: Duration = Duration::from_secs(1);
/// The first pause after a failure, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(30)];

/// What is watched, and where it is noted how that goes.
pub(super) struct Watch<'a> {
    /// A client of the API.
    pub(super) client: &'a Client,
    /// Where it is noted.
    pub(super) watches: &'a Watches,
    /// The kind, for people.
    pub(super) kind: &'static str,
    /// Which objects, by their fields; all if there is none.
    pub(super) selector: Option<String>,
    /// What an API server is taken for that does not have this kind; none if it has to have it.
    pub(super) optional: Option<Optional>,
}

/// A kind that an API server need not have: without it, it is taken for one that holds no object of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Optional {
    /// How long to wait before it is asked again.
    pub(super) pause: Duration,
    /// Whether that the agent may not see the kind counts the same: its permissions may be older than the agent.
    pub(super) or_forbidden: bool,
}

/// A kind that can be watched.
pub(super) trait Kind:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + 'static
{
}

impl<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + 'static> Kind for K {}

/// Why a watch ends, or has to go on after a pause.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("nobody takes what it delivers")]
    Unheard,
    #[error(transparent)]
    List(#[from] ListError),
    #[error("watch: {0}")]
    Refused(#[source] kube::Error),
    #[error("watch: {0}")]
    Ended(#[source] Box<Status>),
    #[error("watch: no word for {} seconds", SILENCE.as_secs())]
    Silent,
    #[error("watch: the answer ended at once")]
    Short,
}

impl Broken {
    /// Whether the API server has forgotten the version that was asked for (410 Gone).
    fn is_gone(&self) -> bool {
        match self {
            Self::Refused(kube::Error::Api(status)) | Self::Ended(status) => status.code == 410,
            _ => false,
        }
    }

    /// Whether the API server answered that it has no such kind, or none that the agent may see.
    fn is_absent(&self, optional: Optional) -> bool {
        let Self::List(ListError::Refused(kube::Error::Api(status))) = self else { return false };
        status.code == 404 || optional.or_forbidden && status.code == 403
    }
}

impl Watch<'_> {
    /// Follows the objects for as long as `send` takes what there is to say.
    pub(super) async fn follow<K: Kind>(self, send: impl Fn(Change<K>) -> bool) {
        self.watches.update(self.kind, |_| {});
        let mut follower =
            Follower { watch: self, send, known: HashSet::new(), version: None, pauses: Pauses::new() };
        loop {
            let broken = follower.run().await;
            let watch = &follower.watch;
            let absent = watch.optional.filter(|optional| broken.is_absent(*optional));
            match broken {
                Broken::Unheard => return,
                broken if broken.is_gone() => {
                    tracing::debug!("watch of {}: {broken}: listing anew", watch.kind);
                    follower.version = None;
                }
                broken if let Some(Optional { pause, .. }) = absent => {
                    watch.note_absent(&broken);
                    if follower.replace(HashSet::new()).is_err() {
                        return;
                    }
                    sleep(pause).await;
                }
                broken => {
                    watch.note_broken(&broken);
                    sleep(follower.pauses.next()).await;
                }
            }
        }
    }

    fn note_event(&self) {
        self.watches.update(self.kind, |state| {
            state.events += 1;
            state.heard = Some(SystemTime::now());
        });
    }

    fn note_good(&self) {
        self.watches.update(self.kind, |state| {
            if !state.connected && state.failures > 0 {
                tracing::info!("watch of {}: connected again", self.kind);
            }
            state.connected = true;
            state.heard = Some(SystemTime::now());
        });
    }

    fn note_absent(&self, broken: &Broken) {
        self.watches.update(self.kind, |state| {
            if !state.connected {
                tracing::info!("watch of {}: the API server does not offer it: taken as none", self.kind);
            }
            state.connected = true;
            state.listed = true;
            state.last_error = Some(chain(broken));
        });
    }

    fn note_broken(&self, broken: &Broken) {
        let text = chain(broken);
        self.watches.update(self.kind, |state| {
            if state.connected || state.last_error.as_ref() != Some(&text) {
                tracing::warn!("watch of {}: {text}; it will be tried until it works", self.kind);
            }
            state.connected = false;
            state.failures += 1;
            state.last_error = Some(text);
        });
    }
}

/// The state of a watch.
struct Follower<'a, S> {
    watch: Watch<'a>,
    send: S,
    /// The names of the objects that there are.
    known: HashSet<ObjectName>,
    /// Up to where the changes have been seen; none if a list is needed.
    version: Option<String>,
    pauses: Pauses,
}

impl<S> Follower<'_, S> {
    /// Lists, unless there is a version to go on from, and watches until that breaks.
    async fn run<K: Kind>(&mut self) -> Broken
    where
        S: Fn(Change<K>) -> bool,
    {
        let result: Result<(), Broken> = async {
            if self.version.is_none() {
                self.version = Some(self.list().await?);
            }
            loop {
                self.watch().await?;
            }
        }
        .await;
        result.err().unwrap_or(Broken::Unheard)
    }

    /// Lists all objects, and returns the version of their state.
    async fn list<K: Kind>(&mut self) -> Result<String, Broken>
    where
        S: Fn(Change<K>) -> bool,
    {
        let Self { watch, send, known, .. } = self;
        let (mut listed, mut is_heard) = (HashSet::new(), true);
        let path = K::url_path(&(), None);
        let version = list(watch.client, &path, watch.selector.as_deref(), |object: K| {
            let name = name_of(&object);
            known.insert(name.clone());
            listed.insert(name);
            watch.note_event();
            is_heard &= send(Change::Found(Box::new(object)));
        })
        .await?;
        watch.note_good();
        watch.watches.update(watch.kind, |state| state.listed = true);
        self.pauses.reset();
        if is_heard { self.replace(listed).map(|()| version) } else { Err(Broken::Unheard) }
    }

    /// Only these objects are left: those that were there and are not listed are handed on as deleted.
    fn replace<K: Kind>(&mut self, listed: HashSet<ObjectName>) -> Result<(), Broken>
    where
        S: Fn(Change<K>) -> bool,
    {
        let gone: Vec<ObjectName> = self.known.difference(&listed).cloned().collect();
        self.known = listed;
        gone.into_iter().try_for_each(|name| self.say(Change::Delete(name)))?;
        self.say(Change::Listed)
    }

    /// Hands on changes until the answer ends.
    async fn watch<K: Kind>(&mut self) -> Result<(), Broken>
    where
        S: Fn(Change<K>) -> bool,
    {
        let parameters = WatchParams {
            field_selector: self.watch.selector.clone(),
            timeout: Some(SPAN),
            bookmarks: true,
            ..WatchParams::default()
        };
        let started = Instant::now();
        let mut is_empty = true;
        let version = self.version.as_deref().unwrap_or_default();
        let events = Api::<K>::all(self.watch.client.clone()).watch(&parameters, version).await;
        let mut events = std::pin::pin!(events.map_err(Broken::Refused)?);
        self.watch.note_good();
        while let Some(event) = timeout(SILENCE, events.next()).await.map_err(|_| Broken::Silent)? {
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    self.known.insert(name_of(&object));
                    self.note(object.resource_version());
                    self.watch.note_event();
                    self.say(Change::Apply(Box::new(object)))?;
                }
                Ok(WatchEvent::Deleted(object)) => {
                    let name = name_of(&object);
                    self.known.remove(&name);
                    self.note(object.resource_version());
                    self.watch.note_event();
                    self.say(Change::Delete(name))?;
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    self.watch.note_good();
                    self.note(Some(bookmark.metadata.resource_version));
                }
                Ok(WatchEvent::Error(status)) => return Err(Broken::Ended(status)),
                // The rest of the answer is as good as it was.
                Err(kube::Error::SerdeError(e)) => {
                    tracing::warn!("watch of {}: a change is left out: {e}", self.watch.kind);
                }
                Err(e) => return Err(Broken::Refused(e)),
            }
            is_empty = false;
        }
        if is_empty && started.elapsed() < SHORTEST { Err(Broken::Short) } else { Ok(()) }
    }

    /// The changes up to this version have been seen.
    fn note(&mut self, version: Option<String>) {
        self.version = version.or_else(|| self.version.take());
        self.pauses.reset();
    }

    fn say<K>(&self, change: Change<K>) -> Result<(), Broken>
    where
        S: Fn(Change<K>) -> bool,
    {
        if (self.send)(change) { Ok(()) } else { Err(Broken::Unheard) }
    }
}

fn name_of(object: &impl Resource) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// Pauses that double, each a little off, so that not all agents of a cluster come back at once.
struct Pauses {
    base: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { base: PAUSES[0] }
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn next(&mut self) -> Duration {
        let base = self.base;
        self.base = (base * 2).min(PAUSES[1]);
        // A hasher's keys are random.
        let random = RandomState::new().build_hasher().finish() % 1000;
        base.mul_f64(0.75 + random as f64 / 2000.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use axum::response::{IntoResponse, Response};
    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    use super::*;
    use crate::watch::Pod;

    /// An API server that gives these answers in turn, and notes what it is asked; then none any more.
    struct Script {
        answers: VecDeque<(u16, String)>,
        asked: Vec<String>,
    }

    fn pod(name: &str, version: u32) -> Value {
        json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": version.to_string()}})
    }

    fn listed(version: u32, names: &[&str]) -> (u16, String) {
        let items: Vec<Value> = names.iter().map(|name| pod(name, 1)).collect();
        let list = json!({"metadata": {"resourceVersion": version.to_string()}, "items": items});
        (200, list.to_string())
    }

    fn changes(events: &[(&str, Value)]) -> (u16, String) {
        let line = |(kind, object): &(&str, Value)| format!("{}\n", json!({"type": kind, "object": object}));
        (200, events.iter().map(line).collect())
    }

    fn status(code: u16) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "No", "code": code})
    }

    /// What is handed on of these answers until `count` changes have come, and what the API server was asked for.
    async fn follow(
        optional: Option<Optional>,
        count: usize,
        answers: Vec<(u16, String)>,
    ) -> (Vec<String>, Vec<String>) {
        let script = Arc::new(Mutex::new(Script { answers: answers.into(), asked: Vec::new() }));
        let serving = Arc::clone(&script);
        let answer = async move |uri: Uri| -> Response {
            let next = {
                let mut script = serving.lock().expect("not poisoned");
                script.asked.push(uri.query().unwrap_or_default().to_owned());
                script.answers.pop_front()
            };
            match next {
                Some((code, body)) => (StatusCode::from_u16(code).expect("a code"), body).into_response(),
                None => std::future::pending().await,
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        let mut config = kube::Config::new(format!("http://{address}").parse().expect("an address"));
        config.default_retry = false;
        let client = Client::try_from(config).expect("a client");

        let (sender, mut receiver) = mpsc::unbounded_channel();
        let send = move |change: Change<Pod>| {
            let text = match change {
                Change::Apply(pod) => format!("+{}", pod.name_any()),
                Change::Found(pod) => format!("={}", pod.name_any()),
                Change::Delete(name) => format!("-{}", name.name),
                Change::Listed => "listed".to_owned(),
            };
            sender.send(text).is_ok()
        };
        let watches = Watches::default();
        let watch = Watch { client: &client, watches: &watches, kind: "Pod", selector: None, optional };
        let mut said = Vec::new();
        let follow = watch.follow(send);
        let collect = async {
            while said.len() < count {
                said.push(receiver.recv().await.expect("a change"));
            }
        };
        let all = async {
            tokio::select! { () = follow => {}, () = collect => {} }
        };
        timeout(Duration::from_secs(20), all).await.expect("soon");
        let asked = script.lock().expect("not poisoned").asked.clone();
        (said, asked)
    }

    #[tokio::test]
    async fn a_watch_that_breaks_goes_on_where_it_was() {
        let bookmark = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "12"}});
        let (said, asked) = follow(
            None,
            6,
            vec![
                listed(5, &["a", "b"]),
                changes(&[("ADDED", pod("c", 6)), ("DELETED", pod("a", 7)), ("BOOKMARK", bookmark)]),
                (500, status(500).to_string()),
                changes(&[("MODIFIED", pod("b", 13))]),
            ],
        )
        .await;
        assert_eq!(said, ["=a", "=b", "listed", "+c", "-a", "+b"]);
        assert!(!asked[0].contains("watch"), "{asked:?}");
        for (query, version) in asked[1..].iter().zip(["5", "12", "12"]) {
            assert!(query.contains(&format!("resourceVersion={version}")), "{query}");
        }
    }

    #[tokio::test]
    async fn a_version_that_is_forgotten_is_listed_anew_and_what_went_meanwhile_is_deleted() {
        for gone in [changes(&[("ERROR", status(410))]), (410, status(410).to_string())] {
            let answers = vec![listed(5, &["a", "b"]), gone, listed(20, &["b", "c"])];
            let (mut said, asked) = follow(None, 7, answers).await;
            assert_eq!(said.split_off(3), ["=b", "=c", "-a", "listed"]);
            assert!(!asked[2].contains("watch"), "{asked:?}");
        }
    }

    #[tokio::test]
    async fn a_list_that_breaks_off_takes_nothing_back() {
        let (code, mut text) = listed(20, &["c", "d"]);
        text.truncate(text.len() - 30);
        let gone = (410, status(410).to_string());
        let answers = vec![listed(5, &["a"]), gone, (code, text), listed(21, &["a", "c"])];
        let (said, _) = follow(None, 8, answers).await;
        assert_eq!(said, ["=a", "listed", "=c", "=d", "=a", "=c", "-d", "listed"]);
    }

    #[tokio::test]
    async fn a_list_in_parts_is_one_list() {
        let mut first: Value = serde_json::from_str(&listed(5, &["a"]).1).expect("a list");
        first["metadata"]["continue"] = "more".into();
        let (said, asked) = follow(None, 3, vec![(200, first.to_string()), listed(5, &["b"])]).await;
        assert_eq!(said, ["=a", "=b", "listed"]);
        assert!(asked[0].contains("limit=500") && asked[1].contains("continue=more"), "{asked:?}");
    }

    #[tokio::test]
    async fn a_kind_that_the_api_server_does_not_have_is_one_without_objects() {
        let optional = |or_forbidden| Some(Optional { pause: Duration::from_secs(60), or_forbidden });
        for (code, or_forbidden) in [(404, true), (404, false), (403, true)] {
            let (said, _) = follow(optional(or_forbidden), 1, vec![(code, status(code).to_string())]).await;
            assert_eq!(said, ["listed"]);
        }
        let answers = vec![(403, status(403).to_string()), listed(1, &["a"])];
        let (said, _) = follow(optional(false), 2, answers).await;
        assert_eq!(said, ["=a", "listed"], "what is kept from the agent may hold objects");
        let answers = vec![(404, status(404).to_string()), listed(1, &["a"])];
        let (said, _) = follow(None, 2, answers).await;
        assert_eq!(said, ["=a", "listed"], "one that must be there is waited for");
    }

    #[test]
    fn pauses_grow_to_a_limit_and_start_over() {
        let mut pauses = Pauses::new();
        let first = pauses.next();
        assert!(first >= PAUSES[0].mul_f64(0.75) && first <= PAUSES[0].mul_f64(1.25), "{first:?}");
        let last = (0..20).map(|_| pauses.next()).last().expect("a pause");
        assert!(last >= PAUSES[1].mul_f64(0.75), "{last:?}");
        pauses.reset();
        assert!(pauses.next() < PAUSES[0] * 2);
    }
}
