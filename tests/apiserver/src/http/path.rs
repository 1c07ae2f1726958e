//! What a URL's path names.

use crate::cluster::Target;
use crate::resource::{self, Resource};

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Discovery, OpenAPI, health: the path itself, without a slash at its end.
    Fixed(String),
    /// All objects of a kind, or those of one namespace.
    Collection(Collection),
    /// One object, or its status.
    Object(Target),
}

impl Path {
    /// Whether it names objects of a kind that a CustomResourceDefinition adds.
    pub(super) fn is_custom(&self) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Collection(collection) => collection.resource.custom,
            Self::Object(target) => target.resource.custom,
        }
    }
}

/// All objects of a kind, or those of one namespace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Collection {
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<String>,
}

/// Reads a path; none if it can't name anything.
pub(super) fn parse(path: &str) -> Option<Path> {
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
    let (group, version, rest) = match steps.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        steps => return Some(Path::Fixed(format!("/{}", steps.join("/")))),
    };
    let find = |plural: &str| resource::find(group, version, plural);
    let object = |resource, namespace: &str, name: &str, status| {
        Path::Object(Target { resource, namespace: namespace.to_owned(), name: name.to_owned(), status })
    };
    match *rest {
        // A Namespace's own subresource reads like a collection in it.
        ["namespaces", name, "status"] => Some(object(find("namespaces")?, "", name, true)),
        ["namespaces", namespace, plural] => {
            let resource = find(plural).filter(|r| r.namespaced)?;
            Some(Path::Collection(Collection { resource, namespace: Some(namespace.to_owned()) }))
        }
        ["namespaces", namespace, plural, name] => {
            Some(object(find(plural).filter(|r| r.namespaced)?, namespace, name, false))
        }
        ["namespaces", namespace, plural, name, "status"] => {
            let resource = find(plural).filter(|r| r.namespaced && r.has_status)?;
            Some(object(resource, namespace, name, true))
        }
        [plural] => Some(Path::Collection(Collection { resource: find(plural)?, namespace: None })),
        [plural, name] => Some(object(find(plural).filter(|r| !r.namespaced)?, "", name, false)),
        [plural, name, "status"] => {
            Some(object(find(plural).filter(|r| !r.namespaced && r.has_status)?, "", name, true))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ENDPOINT_SLICES, NAMESPACES, NODES, PODS};

    #[test]
    fn paths_name_collections_objects_and_statuses() {
        let object = |resource, namespace: &str, name: &str, status| {
            Some(Path::Object(Target { status, ..Target::new(resource, namespace, name) }))
        };
        let all = |resource| Some(Path::Collection(Collection { resource, namespace: None }));
        assert_eq!(parse("/api/v1/pods"), all(&PODS));
        assert_eq!(parse("/apis/discovery.k8s.io/v1/endpointslices"), all(&ENDPOINT_SLICES));
        assert_eq!(parse("/api/v1/namespaces/a/pods/b/status"), object(&PODS, "a", "b", true));
        assert_eq!(parse("/api/v1/namespaces/a"), object(&NAMESPACES, "", "a", false));
        assert_eq!(parse("/api/v1/namespaces/a/status"), object(&NAMESPACES, "", "a", true));
        assert_eq!(parse("/api/v1/nodes/n/status"), object(&NODES, "", "n", true));
        assert_eq!(parse("/api/v1/pods/b"), None);
        assert_eq!(parse("/api/v1/namespaces/a/nodes"), None);
        assert_eq!(parse("/api/v1/"), Some(Path::Fixed("/api/v1".to_owned())));
    }
}
