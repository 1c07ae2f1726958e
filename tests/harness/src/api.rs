//! The cluster's API, for code that is not asynchronous.

use std::fmt::Debug;
use std::future::Future;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

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

/// A blocking client. Objects are those of the namespace `default`.
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

    fn of<K: Object>(&self) -> kube::Api<K> {
        kube::Api::default_namespaced(self.client.clone())
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

fn what<K: Object>() -> String {
    K::kind(&()).into_owned()
}
