//! The shapes in which a client can ask for objects: whole, their metadata alone, or as rows for kubectl to print.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::table;
use crate::object::Object;
use crate::resource::Resource;

/// A shape of objects in answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// As stored.
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
    /// `Table`.
    Table(Include),
}

/// What each row of a table carries beside its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Format {
    /// Reads the `Accept` header and the `includeObject` parameter.
    pub(super) fn negotiate(accept: &str, include: &str) -> Self {
        let include = match include {
            "None" => Include::Nothing,
            "Object" => Include::Object,
            _ => Include::Metadata,
        };
        // Clients name what they prefer first.
        for option in accept.split(',') {
            let has = |parameter: &str| option.split(';').any(|p| p.trim() == parameter);
            if has("as=Table") && has("v=v1") {
                return Self::Table(include);
            }
            if has("as=PartialObjectMetadata") || has("as=PartialObjectMetadataList") {
                return Self::Metadata;
            }
            if option.trim().starts_with("application/json") && !option.contains("as=") {
                break;
            }
        }
        Self::Whole
    }

    /// One object.
    pub(super) fn object(self, resource: &Resource, object: &Object) -> Bytes {
        match self {
            Self::Whole => object.json.clone(),
            Self::Metadata => Bytes::from(metadata(object).to_string()),
            Self::Table(include) => {
                let revision = object.value["metadata"]["resourceVersion"].clone();
                Bytes::from(table::table(resource, revision, [object], include).to_string())
            }
        }
    }

    /// A list of objects.
    pub(super) fn list(self, resource: &Resource, revision: u64, objects: &[Arc<Object>]) -> Bytes {
        let list_of = |version: &str, kind: &str, items: Vec<Bytes>| {
            let head = format!(
                r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{{"resourceVersion":"{revision}"}},"items":["#
            );
            let mut body =
                Vec::with_capacity(head.len() + 2 + items.iter().map(|i| i.len() + 1).sum::<usize>());
            body.extend_from_slice(head.as_bytes());
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    body.push(b',');
                }
                body.extend_from_slice(item);
            }
            body.extend_from_slice(b"]}");
            Bytes::from(body)
        };
        match self {
            Self::Whole => {
                let items = objects.iter().map(|o| o.json.clone()).collect();
                list_of(&resource.api_version(), &format!("{}List", resource.kind), items)
            }
            Self::Metadata => {
                let items = objects.iter().map(|o| Bytes::from(metadata(o).to_string())).collect();
                list_of("meta.k8s.io/v1", "PartialObjectMetadataList", items)
            }
            Self::Table(include) => {
                let objects = objects.iter().map(Arc::as_ref);
                Bytes::from(table::table(resource, json!(revision.to_string()), objects, include).to_string())
            }
        }
    }

    /// A bookmark: an object of which only the resourceVersion counts, and the mark that ends a streamed list.
    pub(super) fn bookmark(self, resource: &Resource, revision: u64, ends_initial_events: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if ends_initial_events {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let bookmark =
            json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata});
        match self {
            Self::Whole => Bytes::from(bookmark.to_string()),
            Self::Metadata => self.object(resource, &Object::new(bookmark)),
            Self::Table(_) => {
                let rows: [&Object; 0] = [];
                let table = table::table(resource, json!(revision.to_string()), rows, Include::Metadata);
                Bytes::from(table.to_string())
            }
        }
    }
}

/// The `PartialObjectMetadata` of an object.
pub(super) fn metadata(object: &Object) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.value["metadata"]})
}
