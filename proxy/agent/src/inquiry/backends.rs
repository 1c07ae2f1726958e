//! `fairlead-proxy backends`: what Services lead to, by the reconciler, the map, and the flow table.

use std::collections::HashMap;

use fairlead_core::model::ObjectName;
use fairlead_core::reconcile::BackendView;
use serde::Serialize;

use crate::agent::{Agent, lock};
use crate::dataplane::{flows, services};
use crate::errors::chain;

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// What the reconciler says of it.
    #[serde(flatten)]
    pub view: BackendView,
    /// The pod that has the address now.
    pub pod: Option<String>,
    /// What the map has: it changes each time the id gets a new tenant, and is 0 while it has none.
    pub generation: u32,
    /// How many connections of the flow table go to it.
    pub flows: u64,
}

/// The backends of one Service, `namespace/name`, or of all.
///
/// # Errors
/// When there is no such Service, or the kernel refuses to read a map.
pub fn list(agent: &Agent, service: Option<&str>) -> Result<Vec<Backend>, String> {
    let name = service.map(named).transpose()?;
    let reconciler = lock(&agent.reconciler);
    if let Some(name) = &name
        && reconciler.index().service(name).is_none()
    {
        return Err(format!("there is no Service {name} with a virtual address"));
    }
    let views = reconciler.backends(name.as_ref());
    drop(reconciler);
    let generations =
        services::generations(&agent.pins, views.iter().map(|view| view.id)).map_err(|e| chain(&e))?;
    let mut of_ids: HashMap<(u32, u32), u64> = HashMap::new();
    flows::read(&agent.pins, |connection| {
        *of_ids.entry((connection.flow.backend, connection.flow.generation)).or_default() += 1;
    })
    .map_err(|e| chain(&e))?;
    let backend = |(view, generation): (BackendView, u32)| Backend {
        pod: agent.policies.who(view.address),
        generation,
        flows: of_ids.get(&(view.id, generation)).copied().unwrap_or(0),
        view,
    };
    Ok(views.into_iter().zip(generations).map(backend).collect())
}

/// The object that `text`, `namespace/name`, names.
///
/// # Errors
/// When it is no such text.
pub fn named(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err(format!("{text:?} is not namespace/name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_named_with_its_namespace() {
        assert_eq!(named("shop/web"), Ok(ObjectName::new("shop", "web")));
        for text in ["web", "/web", "shop/", "shop/web/80", ""] {
            assert!(named(text).is_err(), "{text}");
        }
    }
}
