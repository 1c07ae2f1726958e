//! The cluster's API, for code that is not asynchronous.

use std::fmt::Debug;
use std::future::Future;
use std::path::Path;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, Config, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// How many of many requests are under way at a time.
const AT_A_TIME: usize = 32;

/// A client for the API server that a kubeconfig names.
///
/// # Errors
/// When the kubeconfig can't be read.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig);
    let kubeconfig = read.with_context(|| format!("read {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// A blocking client. Objects are those of the namespace `default` where nothing else is said.
pub struct Api {
    runtime: Runtime,
    client: Client,
}

impl Api {
    /// Connects as the kubeconfig says.
    ///
    /// # Errors
    /// When the kubeconfig can't be read.
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(client(kubeconfig))?;
        Ok(Self { runtime, client })
    }

    /// The asynchronous client, for [`block_on`](Self::block_on).
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Waits for asynchronous work.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The object of that name, if there is one.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn get<K: Object>(&self, name: &str) -> Result<Option<K>> {
        self.block_on(self.of::<K>().get_opt(name)).with_context(|| format!("get {} {name}", what::<K>()))
    }

    /// The object of that name in another namespace, if there is one.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn get_in<K: Object>(&self, namespace: &str, name: &str) -> Result<Option<K>> {
        let api = kube::Api::<K>::namespaced(self.client.clone(), namespace);
        self.block_on(api.get_opt(name)).with_context(|| format!("get {} {namespace}/{name}", what::<K>()))
    }

    /// All objects with these labels; with no selector, all objects.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>> {
        let params = ListParams::default().labels(selector);
        let list = self.block_on(self.of::<K>().list(&params));
        Ok(list.with_context(|| format!("list {}s", what::<K>()))?.items)
    }

    /// Creates the object; returns what the API server made of it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn create<K: Object>(&self, object: &K) -> Result<K> {
        let created = self.block_on(self.of::<K>().create(&PostParams::default(), object));
        created.with_context(|| format!("create {}", what::<K>()))
    }

    /// Begins to delete the object.
    ///
    /// # Errors
    /// When the API server refuses, as it does when there is none.
    pub fn delete<K: Object>(&self, name: &str) -> Result<()> {
        let deleted = self.block_on(self.of::<K>().delete(name, &DeleteParams::default()));
        deleted.map(drop).with_context(|| format!("delete {} {name}", what::<K>()))
    }

    /// Creates many objects, several at a time, each in the namespace that it names.
    ///
    /// # Errors
    /// When the API server refuses one; others may have been created then.
    pub fn create_all<K: Object>(&self, objects: &[K]) -> Result<()> {
        let how = PostParams::default();
        let create = async |object| self.around(object).create(&how, object).await.map(drop);
        self.many(objects.iter().map(create))
            .with_context(|| format!("create {} {}s", objects.len(), what::<K>()))
    }

    /// Gives many objects the status that each has here, several at a time, as whoever runs them would.
    ///
    /// # Errors
    /// When the API server refuses one; others may have been written then.
    pub fn report_all<K: Object>(&self, objects: &[K]) -> Result<()> {
        let how = PatchParams::default();
        let report = async |object: &K| {
            let status = serde_json::to_value(object).map_err(kube::Error::SerdeError)?["status"].take();
            let patch = Patch::Merge(json!({ "status": status }));
            self.around(object).patch_status(&object.name_any(), &how, &patch).await.map(drop)
        };
        self.many(objects.iter().map(report))
            .with_context(|| format!("write the status of {} {}s", objects.len(), what::<K>()))
    }

    /// Makes many objects what they are here, several at a time: replaces them whatever they were, or creates them.
    ///
    /// # Errors
    /// When the API server refuses one; others may have been written then.
    pub fn update_all<K: Object>(&self, objects: &[K]) -> Result<()> {
        let (api, how) = (self.of::<K>(), PostParams::default());
        let update = async |object: &K| match api.replace(&object.name_any(), &how, object).await {
            Err(kube::Error::Api(status)) if status.code == 404 => api.create(&how, object).await.map(drop),
            replaced => replaced.map(drop),
        };
        self.many(objects.iter().map(update))
            .with_context(|| format!("update {} {}s", objects.len(), what::<K>()))
    }

    /// Deletes many objects, several at a time; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// When the API server refuses one; others may have been deleted then.
    pub fn delete_all<K: Object>(&self, objects: &[K]) -> Result<()> {
        let (api, how) = (self.of::<K>(), DeleteParams::default());
        let delete = async |object: &K| match api.delete(&object.name_any(), &how).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop),
        };
        self.many(objects.iter().map(delete))
            .with_context(|| format!("delete {} {}s", objects.len(), what::<K>()))
    }

    /// Applies a JSON merge patch to the object.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn patch<K: Object>(&self, name: &str, patch: &Value) -> Result<K> {
        self.patch_at(&self.of::<K>(), name, patch)
    }

    /// The same in another namespace.
    ///
    /// # Errors
    /// As [`patch`](Self::patch).
    pub fn patch_in<K: Object>(&self, namespace: &str, name: &str, patch: &Value) -> Result<K> {
        self.patch_at(&kube::Api::namespaced(self.client.clone(), namespace), name, patch)
    }

    /// Makes the object that the document names what the document says, by server-side apply: what an earlier one said
    /// and this one does not is taken away. Any kind that the API server knows, in the document's namespace.
    ///
    /// # Errors
    /// When the API server refuses, or does not know the kind.
    pub fn apply(&self, document: &Value) -> Result<Value> {
        let how = PatchParams::apply("fairlead-tests").force();
        let applied = self.block_on(async {
            let api = self.named_by(document).await?;
            api.patch(text(document, "/metadata/name"), &how, &Patch::Apply(document)).await
        });
        let applied = applied.with_context(|| format!("apply {}", describe(document)))?;
        Ok(serde_json::to_value(applied)?)
    }

    /// Begins to delete the object that the document names.
    ///
    /// # Errors
    /// When the API server refuses, as it does when there is none.
    pub fn remove(&self, document: &Value) -> Result<()> {
        let removed = self.block_on(async {
            let api = self.named_by(document).await?;
            api.delete(text(document, "/metadata/name"), &DeleteParams::default()).await
        });
        removed.map(drop).with_context(|| format!("delete {}", describe(document)))
    }

    /// The objects of the document's kind and namespace.
    async fn named_by(&self, document: &Value) -> kube::Result<kube::Api<DynamicObject>> {
        let (group, version) = match text(document, "/apiVersion").split_once('/') {
            Some((group, version)) => (group, version),
            None => ("", text(document, "/apiVersion")),
        };
        let gvk = GroupVersionKind::gvk(group, version, text(document, "/kind"));
        let (resource, capabilities) = pinned_kind(&self.client, &gvk).await?;
        Ok(match (capabilities.scope, text(document, "/metadata/namespace")) {
            (Scope::Cluster, _) => kube::Api::all_with(self.client.clone(), &resource),
            (Scope::Namespaced, "") => kube::Api::default_namespaced_with(self.client.clone(), &resource),
            (Scope::Namespaced, namespace) => {
                kube::Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
        })
    }

    fn patch_at<K: Object>(&self, api: &kube::Api<K>, name: &str, patch: &Value) -> Result<K> {
        let patched = self.block_on(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)));
        patched.with_context(|| format!("patch {} {name}", what::<K>()))
    }

    fn many(&self, work: impl Iterator<Item = impl Future<Output = kube::Result<()>>>) -> kube::Result<()> {
        self.block_on(stream::iter(work).buffer_unordered(AT_A_TIME).try_collect())
    }

    fn of<K: Object>(&self) -> kube::Api<K> {
        kube::Api::default_namespaced(self.client.clone())
    }

    /// The objects of the namespace that this one names.
    fn around<K: Object>(&self, object: &K) -> kube::Api<K> {
        match object.namespace() {
            Some(namespace) => kube::Api::namespaced(self.client.clone(), &namespace),
            None => self.of(),
        }
    }
}

/// A namespaced Kubernetes object.
pub trait Object:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned
{
}

impl<K> Object for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// The string at a JSON pointer; empty if there is none.
fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn describe(document: &Value) -> String {
    format!("{} {}", text(document, "/kind"), text(document, "/metadata/name"))
}

fn what<K: Object>() -> String {
    K::kind(&()).into_owned()
}
