//! EndpointSlices.

use k8s_openapi::api::discovery::v1 as discovery;

use super::{
    Notes, SERVICE_NAME_LABEL, family_name, is_opted_out, object_name, port_number, protocol, unicast,
};
use crate::intern::Interned;
use crate::model::{EndpointSlice, Hints, ObjectName, SliceEndpoint, SlicePort};

pub(super) fn convert(
    object: &discovery::EndpointSlice,
    interned: &mut Interned,
    notes: &mut Notes,
) -> Option<EndpointSlice> {
    let name = object_name(&object.metadata, notes)?;
    let labels = object.metadata.labels.as_ref()?;
    let service = labels.get(SERVICE_NAME_LABEL).filter(|service| !service.is_empty())?;
    if is_opted_out(&object.metadata) {
        return None;
    }
    if !matches!(object.address_type.as_str(), "IPv4" | "IPv6") {
        let message = format!("{:?} is neither IPv4 nor IPv6: the slice is skipped", object.address_type);
        notes.note("addressType", message);
        return None;
    }
    Some(EndpointSlice {
        service: ObjectName::new(name.namespace.clone(), service.as_str()),
        ports: ports(object, interned, notes),
        endpoints: endpoints(object, interned, notes),
        name,
    })
}

fn ports(object: &discovery::EndpointSlice, interned: &mut Interned, notes: &mut Notes) -> Vec<SlicePort> {
    let mut found: Vec<SlicePort> = Vec::new();
    for (index, listed) in object.ports.iter().flatten().enumerate() {
        let path = format!("ports[{index}]");
        let number = listed.port.ok_or_else(|| "missing: no Service port is every port".to_owned());
        let number = notes.check(format!("{path}.port"), number.and_then(port_number));
        let protocol = notes.check(format!("{path}.protocol"), protocol(&listed.protocol));
        let (Some(port), Some(protocol)) = (number, protocol) else { continue };
        let name = interned.name(listed.name.as_deref().unwrap_or_default());
        let port = SlicePort { name, protocol, port };
        if !found.contains(&port) {
            found.push(port);
        }
    }
    found
}

fn endpoints(
    object: &discovery::EndpointSlice,
    interned: &mut Interned,
    notes: &mut Notes,
) -> Vec<SliceEndpoint> {
    let mut found = Vec::with_capacity(object.endpoints.as_ref().map_or(0, Vec::len));
    for (index, listed) in object.endpoints.iter().flatten().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        let Some(text) = listed.addresses.first() else {
            notes.note(path, "empty");
            continue;
        };
        let checked = unicast(text).and_then(|address| match family_name(address) {
            family if family == object.address_type => Ok(address),
            family => Err(format!("{address} is {family} in a slice of {}", object.address_type)),
        });
        let Some(address) = notes.check(format!("{path}[0]"), checked) else { continue };
        let conditions = listed.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        found.push(SliceEndpoint {
            address,
            ready,
            serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
            terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
            node: listed.node_name.as_deref().map(|node| interned.name(node)),
            hints: hints(listed).map(|hints| interned.hints(hints)),
        });
    }
    found
}

fn hints(endpoint: &discovery::Endpoint) -> Option<Hints> {
    let hints = endpoint.hints.as_ref()?;
    let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into()).collect();
    let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.as_str().into()).collect();
    Some(Hints { zones, nodes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::slice;
    use serde_json::{Value, from_value, json};

    fn converted(endpoint: Value) -> SliceEndpoint {
        let object = json!({
            "metadata": { "namespace": "default", "name": "web-1", "labels": { SERVICE_NAME_LABEL: "web" } },
            "addressType": "IPv6",
            "endpoints": [endpoint],
        });
        let converted = slice(&from_value(object).expect("an EndpointSlice"), &mut Interned::default());
        assert_eq!(converted.problems, []);
        converted.value.expect("a slice").endpoints.remove(0)
    }

    #[test]
    fn unknown_conditions_mean_ready_serving_and_not_terminating() {
        let state = |conditions: Value| {
            let endpoint = converted(json!({ "addresses": ["fd00::1"], "conditions": conditions }));
            (endpoint.ready, endpoint.serving, endpoint.terminating)
        };
        assert_eq!(state(json!({})), (true, true, false));
        assert_eq!(state(json!({ "ready": false })), (false, true, false));
        assert_eq!(
            state(json!({ "ready": false, "serving": true, "terminating": true })),
            (false, true, true)
        );
    }

    #[test]
    fn hints_name_zones_and_nodes() {
        let hints =
            json!({ "forZones": [{ "name": "z1" }, { "name": "z2" }], "forNodes": [{ "name": "a" }] });
        let endpoint = converted(json!({ "addresses": ["fd00::1"], "hints": hints }));
        let hints = endpoint.hints.expect("hints");
        assert_eq!((hints.zones.len(), hints.nodes.len()), (2, 1));
        assert_eq!(converted(json!({ "addresses": ["fd00::1"] })).hints, None);
    }
}
