//! Faults on demand, and that nothing is lost by them.

use std::time::{Duration, Instant};

use fairlead_apiserver::Server;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;

use crate::common::{control, next, object, start};

#[tokio::test]
async fn a_watch_that_is_broken_goes_on_where_it_was() {
    let (server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    create(&api, "a").await;
    let stream = watcher(api.clone(), watcher::Config::default());
    pin_mut!(stream);
    while !matches!(next(&mut stream).await, Ok(Event::InitDone)) {}
    order(&server, "POST", "break").await;
    create(&api, "b").await;
    loop {
        match next(&mut stream).await {
            Ok(Event::Apply(map)) if map.name_any() == "b" => break,
            Ok(Event::Init) => panic!("it lists again, though nothing of the history is gone"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_is_told_twice_ends_with_the_last_state() {
    let (server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let now = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    order(&server, "POST", "duplicate").await;
    order(&server, "POST", "delay?ms=300").await;
    let mut stream = api.watch(&WatchParams::default(), &now).await.unwrap().boxed();
    // The first wakes the watch, which is then late enough to tell both of what follows.
    create(&api, "a").await;
    create(&api, "b").await;
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 6 {
        match next(&mut stream).await.unwrap() {
            WatchEvent::Added(map) => told.push(format!("+{}", map.name_any())),
            WatchEvent::Deleted(map) => told.push(format!("-{}", map.name_any())),
            _ => {}
        }
    }
    assert_eq!(told, ["+a", "+b", "-a", "+a", "+b", "-a"]);
    order(&server, "DELETE", "duplicate").await;
    order(&server, "POST", "delay?ms=0").await;
    create(&api, "c").await;
    create(&api, "d").await;
    for name in ["c", "d"] {
        let event = next(&mut stream).await.unwrap();
        assert!(matches!(&event, WatchEvent::Added(map) if map.name_any() == name), "{event:?}");
    }
}

#[tokio::test]
async fn a_watch_that_is_late_tells_everything_in_the_end() {
    let (server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let now = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    order(&server, "POST", "delay?ms=300&kind=configmaps").await;
    let mut stream = api.watch(&WatchParams::default(), &now).await.unwrap().boxed();
    let begin = Instant::now();
    for name in ["a", "b"] {
        let map = object(json!({"metadata": {"name": name}}));
        api.create(&PostParams::default(), &map).await.unwrap();
    }
    for name in ["a", "b"] {
        assert!(matches!(next(&mut stream).await, Ok(WatchEvent::Added(o)) if o.name_any() == name));
    }
    assert!(begin.elapsed() >= Duration::from_millis(250), "told after {:?}", begin.elapsed());
}

#[tokio::test]
async fn an_unknown_fault_is_refused() {
    let (server, _client) = start().await;
    for (method, fault, code) in [("POST", "flood", 404), ("GET", "outage", 404), ("POST", "delay?ms=x", 400)]
    {
        assert_eq!(ask(&server, method, fault).await, code, "{method} {fault}");
    }
}

async fn create(api: &Api<ConfigMap>, name: &str) {
    let map = object(json!({"metadata": {"name": name}}));
    api.create(&PostParams::default(), &map).await.unwrap();
}

pub(crate) async fn order(server: &Server, method: &str, fault: &str) {
    assert_eq!(ask(server, method, fault).await, 200, "{method} {fault}");
}

/// The status of the answer.
async fn ask(server: &Server, method: &str, fault: &str) -> u16 {
    control(server, method, fault, "").await.0
}
