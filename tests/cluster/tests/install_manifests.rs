//! The manifests by which Fairlead is installed: every field is one of the API's, and every argument one of the binaries'.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use fairlead_cluster_tests::manifests::{self, OVERLAYS, strings};
use fairlead_harness::{binary, output};
use k8s_openapi::api::{apps, batch, core, rbac};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What the API's type makes of the object.
fn through<K: DeserializeOwned + Serialize>(object: &Value) -> Result<Value> {
    Ok(serde_json::to_value(serde_json::from_value::<K>(object.clone())?)?)
}

/// Whether the object is a valid one of its kind, without a field that its kind has not.
fn validate(object: &Value) -> Result<()> {
    let kind =
        (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
    let known = match kind {
        ("v1", "ServiceAccount") => through::<core::v1::ServiceAccount>(object),
        ("v1", "ConfigMap") => through::<core::v1::ConfigMap>(object),
        ("v1", "Service") => through::<core::v1::Service>(object),
        ("v1", "Pod") => through::<core::v1::Pod>(object),
        ("apps/v1", "Deployment") => through::<apps::v1::Deployment>(object),
        ("apps/v1", "DaemonSet") => through::<apps::v1::DaemonSet>(object),
        ("batch/v1", "Job") => through::<batch::v1::Job>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<rbac::v1::ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            through::<rbac::v1::ClusterRoleBinding>(object)
        }
        ("rbac.authorization.k8s.io/v1", "Role") => through::<rbac::v1::Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => through::<rbac::v1::RoleBinding>(object),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            through::<apiextensions::v1::CustomResourceDefinition>(object)
        }
        (version, kind) => bail!("{version} {kind}: this test knows no such kind"),
    };
    let what = || format!("{} {}", kind.1, object["metadata"]["name"]);
    survives(object, &known.with_context(what)?).with_context(what)
}

/// Whether all that is in `given` is in `known`; the error names the field that is not.
fn survives(given: &Value, known: &Value) -> Result<()> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().try_for_each(|(field, value)| {
            let same = known.get(field).with_context(|| format!("{field}: there is no such field"))?;
            survives(value, same).with_context(|| field.clone())
        }),
        (Value::Array(given), Value::Array(known)) => {
            ensure!(given.len() == known.len(), "{} of {} survive", known.len(), given.len());
            given.iter().zip(known).try_for_each(|(given, known)| survives(given, known))
        }
        // Whole numbers of a schema are read as others.
        (Value::Number(given), Value::Number(known)) if given.as_f64() == known.as_f64() => Ok(()),
        _ => {
            ensure!(given == known, "{given} is read as {known}");
            Ok(())
        }
    }
}

/// The objects of every overlay; those of the base alone where kustomize can't make the others.
fn all() -> Result<Vec<(&'static str, Vec<Value>)>> {
    let mut all = Vec::new();
    for overlay in OVERLAYS {
        match manifests::kustomized(overlay)? {
            Ok(objects) => all.push((overlay, objects)),
            Err(why) => println!("left out: {overlay}: {why}"),
        }
    }
    let files = ["service-account.yaml", "rbac-proxy.yaml", "rbac-cni.yaml", "daemonset.yaml"];
    let objects: Vec<_> = files.iter().map(|file| manifests::base(file)).collect::<Result<_>>()?;
    all.push(("the base's files", objects.concat()));
    Ok(all)
}

fn daemon_set(objects: &[Value]) -> Result<&Value> {
    objects.iter().find(|object| object["kind"] == "DaemonSet").context("no DaemonSet")
}

fn containers(daemon_set: &Value) -> &[Value] {
    let containers = daemon_set["spec"]["template"]["spec"]["containers"].as_array();
    containers.map(Vec::as_slice).unwrap_or_default()
}

#[test]
fn every_field_is_one_that_the_api_knows() -> Result<()> {
    for (overlay, objects) in all()? {
        objects.iter().try_for_each(validate).context(overlay)?;
    }
    for directory in ["crds", "examples", "kind"] {
        for entry in fs::read_dir(manifests::path(directory))? {
            let path = entry?.path();
            // What kind reads is no object of the API, and of policies the engine's own tests are the judges.
            let is_other = |name: &str| name == "cluster.yaml" || name.contains("policies.yaml");
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if directory != "crds" && is_other(&name) || path.extension().is_none_or(|e| e != "yaml") {
                continue;
            }
            let objects = manifests::objects(&fs::read_to_string(&path)?)?;
            objects.iter().try_for_each(validate).with_context(|| name)?;
        }
    }
    Ok(())
}

#[test]
fn a_field_that_the_api_does_not_know_is_named() {
    let misspelt = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "spec": {"containers": [{"name": "x", "imagePullpolicy": "Never"}]}});
    let error = format!("{:#}", validate(&misspelt).expect_err("misspelt"));
    assert!(error.contains("spec: containers: imagePullpolicy: there is no such field"), "{error}");
}

#[test]
fn each_overlay_has_the_containers_that_it_is_named_after() -> Result<()> {
    for (overlay, objects) in all()? {
        let names: Vec<&str> =
            containers(daemon_set(&objects)?).iter().filter_map(|c| c["name"].as_str()).collect();
        let expected: &[&str] = match overlay {
            "overlays/cni-only" => &["cni"],
            "overlays/proxy-only" => &["proxy"],
            _ => &["proxy", "cni"],
        };
        assert_eq!(names, expected, "{overlay}");
        let has = |text: &str| objects.iter().any(|object| object["metadata"]["name"] == text);
        for name in ["proxy", "cni"] {
            assert_eq!(has(&format!("fairlead-{name}")), names.contains(&name), "{overlay}: roles of {name}");
        }
    }
    Ok(())
}

#[test]
fn every_volume_is_mounted_and_every_mount_has_its_volume() -> Result<()> {
    for (overlay, objects) in all()? {
        let daemon_set = daemon_set(&objects)?;
        let volumes = daemon_set["spec"]["template"]["spec"]["volumes"].as_array().into_iter().flatten();
        let volumes: BTreeSet<&str> = volumes.filter_map(|volume| volume["name"].as_str()).collect();
        let mounts = containers(daemon_set).iter().flat_map(|c| c["volumeMounts"].as_array()).flatten();
        let mounts: BTreeSet<&str> = mounts.filter_map(|mount| mount["name"].as_str()).collect();
        assert_eq!(mounts, volumes, "{overlay}");
    }
    Ok(())
}

#[test]
fn roles_are_bound_to_the_account_that_the_pods_have() -> Result<()> {
    for (overlay, objects) in all()? {
        let account = &daemon_set(&objects)?["spec"]["template"]["spec"]["serviceAccountName"];
        ensure!(objects.iter().any(|o| o["kind"] == "ServiceAccount" && o["metadata"]["name"] == *account));
        for binding in objects.iter().filter(|o| o["roleRef"].is_object()) {
            let role = &binding["roleRef"];
            let is_role = |o: &&Value| {
                o["kind"] == role["kind"]
                    && o["metadata"]["name"] == role["name"]
                    && (o["kind"] == "ClusterRole"
                        || o["metadata"]["namespace"] == binding["metadata"]["namespace"])
            };
            ensure!(objects.iter().any(|o| is_role(&o)), "{overlay}: there is no role {role}");
            assert_eq!(binding["subjects"][0]["name"], *account, "{overlay}");
        }
        let count = |kinds: [&str; 2]| {
            objects.iter().filter(|o| kinds.contains(&o["kind"].as_str().unwrap_or_default())).count()
        };
        assert_eq!(count(["ClusterRole", "Role"]), count(["ClusterRoleBinding", "RoleBinding"]), "{overlay}");
    }
    Ok(())
}

#[test]
#[ignore = "needs the binaries: run make test"]
fn every_argument_is_one_that_the_binary_takes() -> Result<()> {
    for (overlay, objects) in all()? {
        for container in containers(daemon_set(&objects)?) {
            let program = strings(container, "/command").pop().context("no command")?;
            let arguments = strings(container, "/args");
            // Whatever comes before --help is read first, and refused if it is not understood.
            let help = output(Command::new(binary(&program)?).args(&arguments).arg("--help"));
            help.with_context(|| format!("{overlay}: {program} {}", arguments.join(" ")))?;
            let mut wrong = Command::new(binary(&program)?);
            ensure!(output(wrong.args(&arguments).args(["--no-such", "--help"])).is_err(), "{program}");
        }
    }
    Ok(())
}
