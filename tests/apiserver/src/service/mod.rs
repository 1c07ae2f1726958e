//! What the API server itself does to a Service: defaults, validation, and allocation of its addresses and ports.
//!
//! Called by the admission of every write, under the store's lock. [`Claims`] is derived from the stored Services
//! alone, so a write that is refused or dry leaves nothing to undo.

mod claims;
mod defaults;
mod families;
mod validate;

use serde_json::Value;

pub(crate) use claims::{Claims, Ranges};
pub(crate) use validate::{is_port, is_port_name};

use crate::status::FieldError;

/// Completes `service` and gives it the addresses and node ports it asks for or needs.
///
/// # Errors
/// Everything that is wrong with it, by field.
pub(crate) fn admit(
    service: &mut Value,
    before: Option<&Value>,
    claims: &Claims,
) -> Result<(), Vec<FieldError>> {
    if let Some(before) = before {
        defaults::carry_over(service, before);
    }
    defaults::fill(service);
    let errors = validate::check(service);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut errors = families::allocate(service, before, claims);
    claims.assign_node_ports(service, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The type of a Service that has been defaulted.
fn kind(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

/// Whether Services of this type have node ports.
fn has_node_ports(service: &Value) -> bool {
    let wanted = service["spec"]["allocateLoadBalancerNodePorts"] != false;
    kind(service) == "NodePort" || (kind(service) == "LoadBalancer" && wanted)
}

fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIP"] == "None" || service["spec"]["clusterIPs"][0] == "None"
}
