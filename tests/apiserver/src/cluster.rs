//! The verbs: what a client or a controller can do to the objects. HTTP and the controllers call these alone.
//!
//! Every write happens under one lock: read what is there, compute what shall be, admit it, store it. Watches sleep
//! until the revision moves and then read the store's history.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::object::{Object, is_unset, items, name_suffix, new_uid, text};
use crate::patch::PatchKind;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::service::{Claims, Ranges};
use crate::status::ApiError;
use crate::store::{Change, Store};
use crate::{NAMESPACES, NODES, PODS, SERVICE_CIDRS, SERVICES, admission, clock};

/// One object, or its status, as a URL names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The kind.
    pub resource: &'static Resource,
    /// The namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// Whether only `status` is meant.
    pub status: bool,
}

impl Target {
    /// The object itself.
    #[must_use]
    pub fn new(resource: &'static Resource, namespace: &str, name: &str) -> Self {
        Self { resource, namespace: namespace.to_owned(), name: name.to_owned(), status: false }
    }
}

/// How an object is to be deleted.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds a Pod gets to end; its own `terminationGracePeriodSeconds` by default.
    pub grace_period_seconds: Option<u64>,
    /// The uid the object must have.
    pub uid: Option<String>,
    /// The resourceVersion the object must have.
    pub resource_version: Option<String>,
    /// Check and answer, but store nothing.
    pub dry_run: bool,
}

/// What became of a deletion.
#[derive(Debug, Clone)]
pub enum Deleted {
    /// The object is gone; its last state.
    Gone(Arc<Object>),
    /// The object is marked, and goes when its kubelet or its finalizers are done.
    Marked(Arc<Object>),
}

/// The objects of the cluster, and the verbs on them.
#[derive(Debug)]
pub struct Cluster {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
    cluster_cidrs: Vec<IpNet>,
}

#[derive(Debug)]
struct State {
    store: Store,
    claims: Claims,
}

impl Cluster {
    /// A cluster without objects.
    #[must_use]
    pub fn new(ranges: Ranges, cluster_cidrs: Vec<IpNet>, history: usize) -> Self {
        let store = Store::new(history);
        let revision = watch::Sender::new(store.revision());
        Self { state: Mutex::new(State { store, claims: Claims::new(ranges) }), revision, cluster_cidrs }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while writing can't leave half an object behind: objects are replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision of the last change, and a wake-up at each further one.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Forgets the history of changes: running watches and those that start in the past end with 410 Gone.
    pub fn compact(&self) {
        let mut state = self.state();
        state.store.compact();
        self.revision.send_replace(state.store.revision());
    }

    /// One object.
    ///
    /// # Errors
    /// Not found.
    pub fn get(&self, target: &Target) -> Result<Arc<Object>, ApiError> {
        self.state().existing(target)
    }

    /// The objects of a namespace, or of all, and the revision at which they were these.
    #[must_use]
    pub fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        selector: &Selector,
    ) -> (u64, Vec<Arc<Object>>) {
        let (revision, all): (u64, Vec<_>) = {
            let state = self.state();
            (state.store.revision(), state.store.list(resource, namespace).cloned().collect())
        };
        (revision, all.into_iter().filter(|object| selector.matches(&object.value)).collect())
    }

    /// The changes of a kind after `revision`, and the revision up to which these are all.
    ///
    /// # Errors
    /// 410 Gone, if the history does not reach that far back.
    pub fn changes_after(&self, resource: &Resource, revision: u64) -> Result<(u64, Vec<Change>), ApiError> {
        let state = self.state();
        let changes = state.store.changes_after(resource, revision);
        let changes = changes.map_err(|e| ApiError::expired(e.requested, e.oldest))?;
        Ok((state.store.revision(), changes))
    }

    /// Creates an object in `namespace` (empty for cluster-scoped kinds).
    ///
    /// # Errors
    /// Whatever is wrong with the object, or 409 if the name is taken.
    pub fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Arc<Object>, ApiError> {
        check_identity(resource, &object)?;
        let mut state = self.state();
        if is_unset(&object, "/metadata/name") {
            let prefix = text(&object, "/metadata/generateName").to_owned();
            if prefix.is_empty() {
                let missing =
                    crate::status::FieldError::required("metadata.name", "name or generateName is required");
                return Err(ApiError::invalid(resource, "", &[missing]));
            }
            let free = |name: &String| state.store.get(resource, namespace, name).is_none();
            let name = std::iter::repeat_with(|| format!("{prefix}{}", name_suffix())).find(free);
            object["metadata"]["name"] = json!(name);
        }
        let name = text(&object, "/metadata/name").to_owned();
        let given = text(&object, "/metadata/namespace");
        if !given.is_empty() && given != namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the object ({given}) does not match the namespace on the URL ({namespace:?})"
            )));
        }
        if resource.namespaced {
            state.check_namespace(resource, namespace, &name)?;
            object["metadata"]["namespace"] = json!(namespace);
        }
        if state.store.get(resource, namespace, &name).is_some() {
            return Err(ApiError::already_exists(resource, &name));
        }
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(new_uid());
        metadata["creationTimestamp"] = json!(clock::now());
        for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            metadata.as_object_mut().map(|m| m.remove(field));
        }
        // Nodes report themselves with their status; all other kinds get theirs from a controller.
        if resource.has_status && resource != &NODES {
            object.as_object_mut().map(|o| o.remove("status"));
        }
        self.store(&mut state, resource, object, None, dry_run)
    }

    /// Replaces an object, or its status.
    ///
    /// # Errors
    /// Not found, 409 if the writer saw an older object, or whatever is wrong with the object.
    pub fn update(&self, target: &Target, object: Value, dry_run: bool) -> Result<Arc<Object>, ApiError> {
        check_identity(target.resource, &object)?;
        let mut state = self.state();
        let before = state.existing(target)?;
        self.replace(&mut state, target, &before, object, dry_run)
    }

    /// Patches an object, or its status. Server-side apply creates what is not there.
    ///
    /// # Errors
    /// Not found, a bad patch, 409, or whatever is wrong with the patched object.
    pub fn patch(
        &self,
        target: &Target,
        kind: PatchKind,
        patch: &Value,
        manager: &str,
        dry_run: bool,
    ) -> Result<(Arc<Object>, bool), ApiError> {
        let resource = target.resource;
        let existing = self.get(target);
        if kind == PatchKind::Apply {
            check_identity(resource, patch)?;
            if existing.is_err() && !target.status {
                let mut object = kind.apply(resource, &json!({}), patch, manager)?;
                object["metadata"]["name"] = json!(target.name);
                return self
                    .create(resource, &target.namespace, object, dry_run)
                    .map(|object| (object, true));
            }
        }
        let mut state = self.state();
        let before = state.existing(target)?;
        let patched = kind.apply(resource, &before.value, patch, manager)?;
        self.replace(&mut state, target, &before, patched, dry_run).map(|object| (object, false))
    }

    /// Deletes an object: at once, or by marking it if a kubelet or finalizers have work to do first.
    ///
    /// # Errors
    /// Not found, or 409 if it is not the object that the client means.
    pub fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<Deleted, ApiError> {
        let mut state = self.state();
        let before = state.existing(target)?;
        let (resource, name) = (target.resource, target.name.as_str());
        let differs = |wanted: &Option<String>, field: &str| {
            wanted.as_ref().filter(|wanted| *wanted != text(&before.value, field)).is_some()
        };
        if differs(&options.uid, "/metadata/uid")
            || differs(&options.resource_version, "/metadata/resourceVersion")
        {
            return Err(ApiError::conflict(resource, name, "the object does not meet the precondition"));
        }
        let grace = grace_period(resource, &before.value, options);
        let finalizers = has_finalizers(resource, &before.value);
        if grace == 0 && !finalizers {
            if options.dry_run {
                return Ok(Deleted::Gone(before));
            }
            return Ok(Deleted::Gone(self.remove(&mut state, target).unwrap_or(before)));
        }
        let marked = !is_unset(&before.value, "/metadata/deletionTimestamp");
        let left = before.value["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(u64::MAX);
        if marked && left <= grace {
            return Ok(Deleted::Marked(before));
        }
        let mut object = before.value.clone();
        object["metadata"]["deletionTimestamp"] = json!(clock::after(Duration::from_secs(grace)));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        if resource == &NAMESPACES {
            object["status"]["phase"] = json!("Terminating");
        }
        self.store(&mut state, resource, object, Some(&before), options.dry_run).map(Deleted::Marked)
    }

    /// Removes a Namespace that is being deleted and is empty; the namespace controller calls this.
    pub(crate) fn finish_namespace(&self, name: &str) {
        let target = Target::new(&NAMESPACES, "", name);
        self.remove(&mut self.state(), &target);
    }

    fn remove(&self, state: &mut State, target: &Target) -> Option<Arc<Object>> {
        let gone = state.store.remove(target.resource, &target.namespace, &target.name)?;
        state.claim(target.resource, Some(&gone.value), None);
        self.revision.send_replace(state.store.revision());
        Some(gone)
    }

    /// The common end of update and patch.
    fn replace(
        &self,
        state: &mut State,
        target: &Target,
        before: &Arc<Object>,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Arc<Object>, ApiError> {
        let (resource, name) = (target.resource, target.name.as_str());
        if !object.is_object() {
            return Err(ApiError::bad_request("the object is not a map"));
        }
        let old = &before.value;
        let given = |pointer: &str| text(&object, pointer);
        let (version, uid) = (given("/metadata/resourceVersion"), given("/metadata/uid"));
        if !version.is_empty() && version != text(old, "/metadata/resourceVersion") {
            let why =
                "the object has been modified; please apply your changes to the latest version and try again";
            return Err(ApiError::conflict(resource, name, why));
        }
        if !uid.is_empty() && uid != text(old, "/metadata/uid") {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta differs");
            return Err(ApiError::conflict(resource, name, &why));
        }
        for (field, expected) in [("name", name), ("namespace", &target.namespace)] {
            let given = given(&format!("/metadata/{field}"));
            if !given.is_empty() && given != expected {
                let message =
                    format!("the {field} of the object ({given}) does not match the {field} on the URL");
                return Err(ApiError::bad_request(message));
            }
        }
        if target.status {
            let status = object["status"].take();
            object = old.clone();
            object["status"] = status;
        } else {
            if resource.has_status {
                object["status"] = old["status"].clone();
            }
            for field in [
                "name",
                "namespace",
                "uid",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
            ] {
                restore(&mut object["metadata"], &old["metadata"], field);
            }
            if resource == &NAMESPACES {
                object["spec"]["finalizers"] = old["spec"]["finalizers"].clone();
            }
        }
        object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        self.store(state, resource, object, Some(before), dry_run)
    }

    /// Admits an object and stores it, unless that changes nothing. The last finalizer gone, it goes instead.
    fn store(
        &self,
        state: &mut State,
        resource: &'static Resource,
        mut object: Value,
        before: Option<&Arc<Object>>,
        dry_run: bool,
    ) -> Result<Arc<Object>, ApiError> {
        object["apiVersion"] = json!(resource.api_version());
        object["kind"] = json!(resource.kind);
        let old = before.map(|b| &b.value);
        admission::admit(resource, &mut object, old, &state.store, &state.claims, &self.cluster_cidrs)?;
        if object["status"].is_null() {
            object.as_object_mut().map(|o| o.remove("status"));
        }
        if let Some(before) = before.filter(|before| same_but_for_bookkeeping(&before.value, &object)) {
            return Ok(Arc::clone(before));
        }
        if dry_run {
            return Ok(Arc::new(Object::new(object)));
        }
        let deleted = !is_unset(&object, "/metadata/deletionTimestamp");
        let due = object["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or_default() == 0;
        let target =
            Target::new(resource, text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
        let finished = before.is_some() && deleted && due && !has_finalizers(resource, &object);
        state.claim(resource, old, Some(&object));
        let stored = state.store.put(resource, object);
        self.revision.send_replace(state.store.revision());
        if finished { Ok(self.remove(state, &target).unwrap_or(stored)) } else { Ok(stored) }
    }
}

impl State {
    /// Takes note of what an object holds of the addresses and ports of the cluster, or adds to them.
    fn claim(&mut self, resource: &Resource, before: Option<&Value>, after: Option<&Value>) {
        if resource == &SERVICES {
            self.claims.replace(before, after);
        } else if resource == &SERVICE_CIDRS {
            self.claims.replace_ranges(before, after);
        }
    }

    fn existing(&self, target: &Target) -> Result<Arc<Object>, ApiError> {
        let found = self.store.get(target.resource, &target.namespace, &target.name);
        found.cloned().ok_or_else(|| ApiError::not_found(target.resource, &target.name))
    }

    /// Namespaced objects are created in namespaces that are there to stay.
    fn check_namespace(&self, resource: &Resource, namespace: &str, name: &str) -> Result<(), ApiError> {
        let found = self.store.get(&NAMESPACES, "", namespace);
        let found = found.ok_or_else(|| ApiError::not_found(&NAMESPACES, namespace))?;
        if is_unset(&found.value, "/metadata/deletionTimestamp") {
            return Ok(());
        }
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        Err(ApiError::forbidden(resource, name, &why))
    }
}

fn check_identity(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    if !object.is_object() || object.get("metadata").is_some_and(|m| !m.is_object()) {
        return Err(ApiError::bad_request("the body is not an object with metadata"));
    }
    let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    let expected = resource.api_version();
    let fits = (version.is_empty() || version == expected) && (kind.is_empty() || kind == resource.kind);
    if fits {
        return Ok(());
    }
    let message =
        format!("the object is a {version} {kind}, but the URL takes a {expected} {}", resource.kind);
    Err(ApiError::bad_request(message))
}

/// The seconds until an object may go: none but for a Pod that a kubelet runs.
fn grace_period(resource: &Resource, object: &Value, options: &DeleteOptions) -> u64 {
    let ended = matches!(text(object, "/status/phase"), "Succeeded" | "Failed");
    if resource != &PODS || is_unset(object, "/spec/nodeName") || ended {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_u64();
    options.grace_period_seconds.or(own).unwrap_or(30)
}

fn has_finalizers(resource: &Resource, object: &Value) -> bool {
    let spec = if resource == &NAMESPACES { items(object, "/spec/finalizers") } else { &[] };
    !items(object, "/metadata/finalizers").is_empty() || !spec.is_empty()
}

fn restore(metadata: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => metadata[field] = value.clone(),
        None => {
            metadata.as_object_mut().map(|m| m.remove(field));
        }
    }
}

/// Whether a write would change nothing but the times in managedFields.
fn same_but_for_bookkeeping(one: &Value, other: &Value) -> bool {
    let stripped = |value: &Value| {
        let mut value = value.clone();
        for entry in
            value.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten()
        {
            entry.as_object_mut().map(|e| e.remove("time"));
        }
        value
    };
    stripped(one) == stripped(other)
}
