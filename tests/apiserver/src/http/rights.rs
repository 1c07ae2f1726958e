//! Who may do what: authorisation by roles, for tests of the roles that a program is installed with.
//!
//! At first everyone may do everything. `PUT /-/rights?user=u` leaves the user `u` what the ClusterRoles and Roles in its
//! body allow, a JSON list; who a request is from, its bearer token says. `GET /-/rights?user=u` tells what the user was
//! refused, and what of it all was never asked for. What names no object, such as discovery, is for everyone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::response::Response;
use http::{HeaderMap, Method, header};
use serde_json::{Value, json};

use super::path::Path;
use super::{Parameters, answer, refusal};
use crate::object::text;
use crate::status::ApiError;

/// What each user may do of whom anything was said.
#[derive(Debug, Default)]
pub(crate) struct Rights(Mutex<BTreeMap<String, Granted>>);

/// What one user may do, and did.
#[derive(Debug, Default)]
struct Granted {
    /// Each with whether it was of use.
    deeds: BTreeMap<Deed, bool>,
    refused: BTreeSet<Deed>,
}

/// A verb and what it is about, as roles have them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Deed {
    group: String,
    /// `nodes`, or `nodes/status`.
    resource: String,
    verb: String,
    /// None is everywhere.
    namespace: Option<String>,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, resource, verb, namespace } = self;
        write!(f, "{verb} {resource}")?;
        if !group.is_empty() {
            write!(f, ".{group}")?;
        }
        namespace.as_ref().map_or(Ok(()), |namespace| write!(f, " in {namespace}"))
    }
}

impl Rights {
    /// Does what `/-/rights` asks for.
    pub(super) fn order(&self, method: &Method, query: &Parameters, body: &[u8]) -> Response {
        let Some(user) = query.get("user") else {
            return refusal(&ApiError::bad_request("say whose rights, as in ?user=u"));
        };
        match *method {
            Method::PUT => match roles(body) {
                Ok(deeds) => {
                    let deeds = deeds.into_iter().map(|deed| (deed, false)).collect();
                    self.lock().insert(user.clone(), Granted { deeds, ..Granted::default() });
                    answer(200, &json!({}))
                }
                Err(why) => refusal(&ApiError::bad_request(why)),
            },
            Method::GET => {
                let users = self.lock();
                let Some(granted) = users.get(user) else { return refusal(&ApiError::no_such_path()) };
                let unused = granted.deeds.iter().filter(|(_, is_used)| !**is_used).map(|(deed, _)| deed);
                let refused: Vec<_> = granted.refused.iter().map(ToString::to_string).collect();
                let unused: Vec<_> = unused.map(ToString::to_string).collect();
                answer(200, &json!({"refused": refused, "unused": unused}))
            }
            _ => refusal(&ApiError::method_not_allowed()),
        }
    }

    /// Whether whoever asks may; the answer is noted.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        method: &Method,
        is_watch: bool,
        path: &Path,
    ) -> Result<(), ApiError> {
        let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(user) = token.and_then(|value| value.strip_prefix("Bearer ")) else { return Ok(()) };
        let mut users = self.lock();
        let Some(granted) = users.get_mut(user) else { return Ok(()) };
        let Some(deed) = deed(method, is_watch, path) else { return Ok(()) };
        let everywhere = Deed { namespace: None, ..deed.clone() };
        let mut may = false;
        for granting in [&deed, &everywhere] {
            if let Some(is_used) = granted.deeds.get_mut(granting) {
                (*is_used, may) = (true, true);
            }
        }
        if may {
            return Ok(());
        }
        let refusal = ApiError::not_allowed(user, &deed.to_string());
        granted.refused.insert(deed);
        Err(refusal)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Granted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request is, as roles have it; none if it names no object.
fn deed(method: &Method, is_watch: bool, path: &Path) -> Option<Deed> {
    let (resource, subresource, namespace, is_collection) = match path {
        Path::Fixed(_) => return None,
        Path::Collection(collection) => (collection.resource, "", collection.namespace.as_deref(), true),
        Path::Object(target) => {
            let namespace = Some(target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
            (target.resource, if target.status { "/status" } else { "" }, namespace, false)
        }
    };
    let verb = match (method, is_collection) {
        (&Method::GET, true) if is_watch => "watch",
        (&Method::GET, true) => "list",
        (&Method::GET, false) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, true) => "deletecollection",
        (&Method::DELETE, false) => "delete",
        _ => return None,
    };
    Some(Deed {
        group: resource.group.to_owned(),
        resource: format!("{}{subresource}", resource.plural),
        verb: verb.to_owned(),
        namespace: namespace.map(str::to_owned),
    })
}

/// All that some roles allow, or what in them is not understood here.
fn roles(body: &[u8]) -> Result<Vec<Deed>, String> {
    let roles: Vec<Value> = serde_json::from_slice(body).map_err(|e| format!("decode the roles: {e}"))?;
    let mut deeds = Vec::new();
    for role in &roles {
        let name = text(role, "/metadata/name");
        let namespace = match text(role, "/kind") {
            "ClusterRole" => None,
            "Role" => Some(text(role, "/metadata/namespace").to_owned()),
            other => return Err(format!("{name}: kind: {other:?} is no role")),
        };
        for rule in role["rules"].as_array().into_iter().flatten() {
            let [groups, resources, verbs] =
                ["apiGroups", "resources", "verbs"].map(|field| words(rule, field));
            if rule.as_object().is_none_or(|rule| rule.len() != 3)
                || resources.iter().chain(&verbs).any(|word| word == "*")
            {
                return Err(format!("{name}: only apiGroups, resources and verbs are understood: {rule}"));
            }
            for group in &groups {
                for resource in &resources {
                    deeds.extend(verbs.iter().map(|verb| Deed {
                        group: group.clone(),
                        resource: resource.clone(),
                        verb: verb.clone(),
                        namespace: namespace.clone(),
                    }));
                }
            }
        }
    }
    Ok(deeds)
}

fn words(rule: &Value, field: &str) -> Vec<String> {
    let words = rule[field].as_array().into_iter().flatten();
    words.filter_map(Value::as_str).map(str::to_owned).collect()
}
