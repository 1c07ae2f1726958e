//! Errors as the Kubernetes API words them: a `Status` object with code, reason, message and causes.

use serde_json::{Value, json};

use crate::resource::Resource;

/// What the server answers instead of an object.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} ({code} {reason})")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, as in `AlreadyExists`.
    pub reason: &'static str,
    /// What went wrong, naming the object.
    pub message: String,
    /// The `details` of the `Status` object, or null.
    pub details: Value,
}

/// One thing wrong with one field of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, as in `spec.ports[0].nodePort`.
    pub field: String,
    reason: &'static str,
    message: String,
}

impl FieldError {
    /// The field's value is wrong.
    pub fn invalid(field: impl Into<String>, value: &Value, why: impl AsRef<str>) -> Self {
        let message = format!("Invalid value: {value}: {}", why.as_ref());
        Self { field: field.into(), reason: "FieldValueInvalid", message }
    }

    /// The field is missing.
    pub fn required(field: impl Into<String>, why: impl AsRef<str>) -> Self {
        let message = match why.as_ref() {
            "" => "Required value".to_owned(),
            why => format!("Required value: {why}"),
        };
        Self { field: field.into(), reason: "FieldValueRequired", message }
    }

    /// The field's value is not one of those allowed.
    pub fn unsupported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let allowed = allowed.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {value}: supported values: {allowed}");
        Self { field: field.into(), reason: "FieldValueNotSupported", message }
    }

    /// The field's value occurs twice.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value}"),
        }
    }

    /// The list or map has more elements than it may.
    pub fn too_many(field: impl Into<String>, count: usize, most: u64) -> Self {
        let message = format!("Too many: {count}: must have at most {most} items");
        Self { field: field.into(), reason: "FieldValueTooMany", message }
    }

    /// The text is longer than it may be.
    pub fn too_long(field: impl Into<String>, most: u64) -> Self {
        let message = format!("Too long: may not be more than {most} bytes");
        Self { field: field.into(), reason: "FieldValueTooLong", message }
    }

    /// The field may not be set here.
    pub fn forbidden(field: impl Into<String>, why: impl AsRef<str>) -> Self {
        let message = format!("Forbidden: {}", why.as_ref());
        Self { field: field.into(), reason: "FieldValueForbidden", message }
    }
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.details = json!({"name": name, "group": resource.group, "kind": resource.plural});
        self
    }

    /// The object is not there.
    #[must_use]
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", resource.qualified_plural()))
            .about(resource, name)
    }

    /// The URL names nothing.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// An object of that name is there already.
    #[must_use]
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", resource.qualified_plural()))
            .about(resource, name)
    }

    /// The object is not the one the writer saw.
    #[must_use]
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let what = resource.qualified_plural();
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {what} {name:?}: {why}"))
            .about(resource, name)
    }

    /// The request itself makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// The request makes sense, but not now.
    #[must_use]
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let what = resource.qualified_plural();
        Self::new(403, "Forbidden", format!("{what} {name:?} is forbidden: {why}")).about(resource, name)
    }

    /// No role of the user's allows it.
    #[must_use]
    pub fn not_allowed(user: &str, deed: &str) -> Self {
        Self::new(403, "Forbidden", format!("forbidden: no role lets user {user:?} {deed}"))
    }

    /// The verb does not exist for this URL.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    /// The body is in a format this server does not read.
    #[must_use]
    pub fn unsupported_media_type(got: &str) -> Self {
        let message = format!("the body of the request was in an unknown format: {got:?}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// The resourceVersion asked for is no longer in the history.
    #[must_use]
    pub fn expired(requested: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {requested} ({oldest})"))
    }

    /// The continue token was never given out by this server, which does not chunk lists.
    #[must_use]
    pub fn expired_continue() -> Self {
        Self::new(410, "Expired", "the provided continue parameter is too old: list again without it")
    }

    /// The resourceVersion asked for has not been reached.
    #[must_use]
    pub fn too_large(requested: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {requested}, current: {current}");
        let mut error = Self::new(504, "Timeout", message);
        error.details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
        error
    }

    /// The object breaks the rules of its kind.
    #[must_use]
    pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let mut listed: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        let listed = if listed.len() == 1 { listed.remove(0) } else { format!("[{}]", listed.join(", ")) };
        let kind = resource.qualified_kind();
        let mut error = Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {listed}"));
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({"reason": e.reason, "message": e.message, "field": e.field}))
            .collect();
        error.details =
            json!({"name": name, "group": resource.group, "kind": resource.kind, "causes": causes});
        error
    }

    /// The server plays dead: see the fault controls in the crate's documentation.
    #[must_use]
    pub fn outage() -> Self {
        Self::new(503, "ServiceUnavailable", "the server is out of service by request of the test")
    }

    /// The `Status` object that says this.
    #[must_use]
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}
