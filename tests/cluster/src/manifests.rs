//! The manifests that install Fairlead: the files of the base as they are, and what kustomize makes of an overlay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fairlead_harness::output;
use serde_json::Value;

/// The overlays, the base among them.
pub const OVERLAYS: [&str; 4] = ["base", "overlays/cni-only", "overlays/kind", "overlays/proxy-only"];
/// The first kubectl whose kustomize takes directories for resources, as minor version of 1.
const KUBECTL: u32 = 21;

/// The file or directory of that name in `manifests`.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests").join(name)
}

/// The objects in a file of the base.
///
/// # Errors
/// When there is no such file, or it is not YAML.
pub fn base(file: &str) -> Result<Vec<Value>> {
    let path = path("base").join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    objects(&text).with_context(|| format!("understand {}", path.display()))
}

/// The ClusterRoles and Roles in a file of the base.
///
/// # Errors
/// As [`base`].
pub fn roles(file: &str) -> Result<Vec<Value>> {
    let is_role = |object: &Value| matches!(object["kind"].as_str(), Some("ClusterRole" | "Role"));
    Ok(base(file)?.into_iter().filter(is_role).collect())
}

/// The container of that name in the base's DaemonSet.
///
/// # Errors
/// When there is none.
pub fn container(name: &str) -> Result<Value> {
    let objects = base("daemonset.yaml")?;
    let daemon_set = objects.first().context("daemonset.yaml is empty")?;
    let containers = daemon_set["spec"]["template"]["spec"]["containers"].as_array();
    let found = containers.into_iter().flatten().find(|container| container["name"] == name);
    found.cloned().with_context(|| format!("no container {name}"))
}

/// The strings of a list at a JSON pointer; none if there is no list.
pub fn strings(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The capabilities that a container is left with.
///
/// # Errors
/// When it is left with others as well.
pub fn capabilities(container: &Value) -> Result<Vec<String>> {
    ensure!(strings(container, "/securityContext/capabilities/drop") == ["ALL"], "not all are dropped");
    Ok(strings(container, "/securityContext/capabilities/add"))
}

/// The objects of an overlay as kustomize makes them, or why it can't here.
///
/// # Errors
/// When kustomize finds fault with the overlay.
pub fn kustomized(overlay: &str) -> Result<Result<Vec<Value>, String>> {
    let version = output(Command::new("kubectl").args(["version", "--client", "-o", "json"]))?;
    let version: Value = serde_json::from_str(&version).context("understand kubectl's version")?;
    let minor = version["clientVersion"]["minor"].as_str().unwrap_or_default();
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    if digits.parse::<u32>().is_ok_and(|minor| minor < KUBECTL) {
        return Ok(Err(format!("the kustomize of kubectl 1.{minor} is older than that of 1.{KUBECTL}")));
    }
    let mut command = Command::new("kubectl");
    let text = output(command.arg("kustomize").arg(path(overlay)))?;
    objects(&text).map(Ok)
}

/// The objects of a YAML file of several documents.
///
/// # Errors
/// When it is not YAML.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}
