//! Services and EndpointSlices by the thousand.

use std::net::Ipv4Addr;

use anyhow::Result;
use fairlead_harness::api::Api;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

/// The first address of an endpoint that nobody has.
const FIRST_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Services, of one port each.
    pub(crate) services: u32,
    /// Endpoints of each Service, all different, in one slice.
    pub(crate) endpoints: u32,
}

/// Creates the objects.
///
/// # Errors
/// When the API server refuses one.
pub(crate) fn create(api: &Api, size: Size) -> Result<()> {
    let services = (0..size.services).map(|number| serde_json::from_value(service(number)));
    api.create_all::<Service>(&services.collect::<serde_json::Result<Vec<_>>>()?)?;
    let slices = (0..size.services).map(|number| serde_json::from_value(slice(number, size.endpoints)));
    api.create_all::<EndpointSlice>(&slices.collect::<serde_json::Result<Vec<_>>>()?)
}

fn service(number: u32) -> Value {
    json!({
        "metadata": { "name": name(number) },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    })
}

fn slice(number: u32, count: u32) -> Value {
    let address = |n: u32| Ipv4Addr::from_bits(FIRST_ENDPOINT.to_bits() + number * count + n);
    let endpoint = |n| json!({ "addresses": [address(n)], "conditions": { "ready": true } });
    json!({
        "metadata": { "name": name(number), "labels": { "kubernetes.io/service-name": name(number) } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": (0..count).map(endpoint).collect::<Vec<_>>(),
    })
}

fn name(number: u32) -> String {
    format!("bulk-{number}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_endpoint_has_an_address_of_its_own() {
        let slices = (0..50).map(|number| slice(number, 20));
        let addresses: HashSet<String> = slices
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
            .map(|endpoint| endpoint["addresses"][0].to_string())
            .collect();
        assert_eq!(addresses.len(), 1000);
    }
}
