//! Roles that a test has enforced: what they allow, what they don't, and what nobody asked for.

use fairlead_apiserver::Server;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::config::AuthInfo;
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::common::{control, refused, start};

/// A client that calls itself by that name.
fn client_of(server: &Server, user: &str) -> Client {
    let mut config = Config::new(server.url().parse().unwrap());
    config.default_retry = false;
    config.auth_info = AuthInfo { token: Some(user.to_owned().into()), ..AuthInfo::default() };
    Client::try_from(config).unwrap()
}

async fn rights(server: &Server, user: &str) -> Value {
    let (status, body) = control(server, "GET", &format!("rights?user={user}"), "").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn who_has_roles_may_do_what_they_allow_and_nothing_else() {
    let (server, everyone) = start().await;
    let roles = json!([
        {"kind": "ClusterRole", "metadata": {"name": "a"}, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}]},
        {"kind": "Role", "metadata": {"name": "b", "namespace": "default"}, "rules": [
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]},
    ]);
    assert_eq!(control(&server, "PUT", "rights?user=u", &roles.to_string()).await.0, 200);
    let u = client_of(&server, "u");
    Api::<Pod>::all(u.clone()).list(&ListParams::default()).await.expect("everywhere");
    Api::<Pod>::namespaced(u.clone(), "default").list(&ListParams::default()).await.expect("and in each");
    Api::<ConfigMap>::namespaced(u.clone(), "default").list(&ListParams::default()).await.expect("there");
    let elsewhere = Api::<ConfigMap>::namespaced(u.clone(), "kube-system").list(&ListParams::default()).await;
    let (code, reason, message) = refused(elsewhere);
    assert_eq!((code, reason.as_str()), (403, "Forbidden"));
    assert!(message.contains("\"u\" list configmaps in kube-system"), "{message}");
    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    let whole = Api::<Node>::all(u.clone()).patch("n", &PatchParams::default(), &patch).await;
    assert_eq!(refused(whole).0, 403, "the status alone is allowed");
    let status = Api::<Node>::all(u).patch_status("n", &PatchParams::default(), &patch).await;
    assert_eq!(refused(status).0, 404, "there is none");
    // Others go on as they did, with and without a name.
    for other in [everyone, client_of(&server, "v")] {
        Api::<ConfigMap>::all(other).list(&ListParams::default()).await.expect("everything");
    }
    let expected = json!({
        "refused": ["patch nodes", "list configmaps in kube-system"], "unused": ["watch pods"],
    });
    let mut told = rights(&server, "u").await;
    told["refused"].as_array_mut().unwrap().sort_by_key(|deed| deed != "patch nodes");
    assert_eq!(told, expected);
}

#[tokio::test]
async fn roles_that_are_not_understood_are_named() {
    let (server, _) = start().await;
    let rule = json!({"apiGroups": [""], "resources": ["*"], "verbs": ["get"]});
    let roles = json!([{"kind": "ClusterRole", "metadata": {"name": "wide"}, "rules": [rule]}]);
    let (status, body) = control(&server, "PUT", "rights?user=u", &roles.to_string()).await;
    assert!(status == 400 && body.contains("wide: only apiGroups"), "{status} {body}");
    assert_eq!(control(&server, "GET", "rights?user=u", "").await.0, 404, "nothing was said of u");
}
