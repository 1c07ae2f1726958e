//! The four kinds of patch, each a pure function from an object and a body to the patched object.

mod apply;
mod keys;
mod strategic;

use serde_json::Value;

use crate::resource::Resource;
use crate::status::ApiError;

/// What the `Content-Type` of a PATCH says the body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own: lists are merged by key.
    Strategic,
    /// Server-side apply, in YAML or JSON.
    Apply,
}

impl PatchKind {
    /// Reads a media type, parameters ignored.
    #[must_use]
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }

    /// The body as a document.
    ///
    /// # Errors
    /// A bad request, if it is neither JSON nor, for server-side apply, YAML.
    pub fn parse(self, body: &[u8]) -> Result<Value, ApiError> {
        let unreadable = |e: String| ApiError::bad_request(format!("error decoding patch: {e}"));
        if self == Self::Apply {
            serde_saphyr::from_slice(body).map_err(|e| unreadable(e.to_string()))
        } else {
            serde_json::from_slice(body).map_err(|e| unreadable(e.to_string()))
        }
    }

    /// `current` with `patch` applied; `manager` is who applies, for server-side apply.
    ///
    /// # Errors
    /// A bad request, if the patch does not fit the object.
    pub fn apply(
        self,
        resource: &Resource,
        current: &Value,
        patch: &Value,
        manager: &str,
    ) -> Result<Value, ApiError> {
        match self {
            Self::Json => {
                let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                    .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
                let mut patched = current.clone();
                json_patch::patch(&mut patched, &operations)
                    .map_err(|e| ApiError::bad_request(format!("the patch does not fit the object: {e}")))?;
                Ok(patched)
            }
            Self::Merge => {
                let mut patched = current.clone();
                json_patch::merge(&mut patched, patch);
                Ok(patched)
            }
            Self::Strategic => Ok(strategic::merge(resource.kind, current, patch)),
            Self::Apply => Ok(apply::apply(resource, current, patch, manager)),
        }
    }
}
