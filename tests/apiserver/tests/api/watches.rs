//! Lists and watches, through the real client library's watcher.

use crate::common::{next, object, start};
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, VersionMatch, WatchEvent, WatchParams,
};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;

fn config_maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

async fn create(api: &Api<ConfigMap>, name: &str) -> ConfigMap {
    let map = object(json!({"metadata": {"name": name, "labels": {"app": name}}}));
    api.create(&PostParams::default(), &map).await.unwrap()
}

async fn follow_a_watcher(config: watcher::Config) {
    let (_server, client) = start().await;
    let api = config_maps(&client);
    create(&api, "a").await;
    create(&api, "b").await;
    let stream = watcher(api.clone(), config);
    pin_mut!(stream);
    assert!(matches!(next(&mut stream).await, Ok(Event::Init)));
    for expected in ["a", "b"] {
        assert!(matches!(next(&mut stream).await, Ok(Event::InitApply(o)) if o.name_any() == expected));
    }
    assert!(matches!(next(&mut stream).await, Ok(Event::InitDone)));
    create(&api, "c").await;
    assert!(matches!(next(&mut stream).await, Ok(Event::Apply(o)) if o.name_any() == "c"));
    let patch = Patch::Merge(json!({"data": {"x": "y"}}));
    api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert!(matches!(next(&mut stream).await, Ok(Event::Apply(o)) if o.data.as_ref().unwrap()["x"] == "y"));
    api.delete("b", &DeleteParams::default()).await.unwrap();
    assert!(matches!(next(&mut stream).await, Ok(Event::Delete(o)) if o.name_any() == "b"));
}

#[tokio::test]
async fn a_watcher_lists_and_then_follows() {
    follow_a_watcher(watcher::Config::default()).await;
}

#[tokio::test]
async fn a_watcher_follows_a_streamed_list() {
    follow_a_watcher(watcher::Config::default().streaming_lists()).await;
}

#[tokio::test]
async fn a_watcher_whose_history_is_gone_lists_again() {
    let (server, client) = start().await;
    let api = config_maps(&client);
    create(&api, "a").await;
    let stream = watcher(api.clone(), watcher::Config::default());
    pin_mut!(stream);
    while !matches!(next(&mut stream).await, Ok(Event::InitDone)) {}
    server.cluster().compact();
    assert!(matches!(next(&mut stream).await, Err(watcher::Error::WatchError(status)) if status.code == 410));
    assert!(matches!(next(&mut stream).await, Ok(Event::Init)));
    assert!(matches!(next(&mut stream).await, Ok(Event::InitApply(o)) if o.name_any() == "a"));
    assert!(matches!(next(&mut stream).await, Ok(Event::InitDone)));
}

#[tokio::test]
async fn a_watch_starts_where_it_is_told_and_sees_only_what_it_selects() {
    let (_server, client) = start().await;
    let api = config_maps(&client);
    let first = create(&api, "a").await;
    create(&api, "b").await;
    let params = WatchParams::default().labels("app=a");
    let stream = api.watch(&params, &first.resource_version().unwrap()).await.unwrap().boxed();
    let mut stream = stream.filter(|e| std::future::ready(!matches!(e, Ok(WatchEvent::Bookmark(_)))));
    let relabel = |app: &str| Patch::Merge(json!({"metadata": {"labels": {"app": app}}}));
    let params = PatchParams::default();
    api.patch("b", &params, &relabel("a")).await.unwrap();
    api.patch("b", &params, &relabel("c")).await.unwrap();
    assert!(matches!(next(&mut stream).await, Ok(WatchEvent::Added(o)) if o.name_any() == "b"));
    assert!(matches!(next(&mut stream).await, Ok(WatchEvent::Deleted(o)) if o.name_any() == "b"));
}

#[tokio::test]
async fn bookmarks_move_on_with_changes_elsewhere() {
    let (_server, client) = start().await;
    let api = config_maps(&client);
    let first = create(&api, "a").await.resource_version().unwrap();
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(client, "default");
    let mut stream = secrets.watch(&WatchParams::default(), &first).await.unwrap().boxed();
    let later = create(&api, "b").await.resource_version().unwrap();
    loop {
        match next(&mut stream).await {
            Ok(WatchEvent::Bookmark(b)) if b.metadata.resource_version == later => return,
            Ok(WatchEvent::Bookmark(_)) => {}
            other => panic!("expected a bookmark, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_list_of_an_exact_past_and_a_watch_from_before_the_history_are_gone() {
    let (server, client) = start().await;
    let api = config_maps(&client);
    let first = create(&api, "a").await.resource_version().unwrap();
    create(&api, "b").await;
    let exact = ListParams::default().at(&first).matching(VersionMatch::Exact);
    assert_eq!(crate::common::refused(api.list(&exact).await).0, 410);
    let not_older = ListParams::default().at(&first).matching(VersionMatch::NotOlderThan);
    assert_eq!(api.list(&not_older).await.unwrap().items.len(), 2);
    server.cluster().compact();
    let mut stream = api.watch(&WatchParams::default(), &first).await.unwrap().boxed();
    assert!(
        matches!(next(&mut stream).await, Ok(WatchEvent::Error(e)) if e.code == 410 && e.reason == "Expired")
    );
}

#[tokio::test]
async fn an_outage_ends_watches_and_refuses_requests_until_it_is_over() {
    let (server, client) = start().await;
    let api = config_maps(&client);
    let first = create(&api, "a").await.resource_version().unwrap();
    let mut stream = api.watch(&WatchParams::default(), &first).await.unwrap().boxed();
    server.set_outage(true);
    while let Some(event) =
        tokio::time::timeout(crate::common::PATIENCE, stream.next()).await.expect("the end in time")
    {
        assert!(matches!(event, Ok(WatchEvent::Bookmark(_))), "{event:?}");
    }
    assert_eq!(crate::common::refused(api.get("a").await).0, 503);
    server.set_outage(false);
    api.get("a").await.unwrap();
}
