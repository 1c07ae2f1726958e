//! IP families and cluster addresses of a Service: which it gets, and whether it may have those it asks for.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Claims, is_headless, kind};
use crate::object::{items, map_mut, text};
use crate::status::FieldError;

const FIELDS: [&str; 4] = ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"];

/// Settles `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`.
pub(super) fn allocate(service: &mut Value, before: Option<&Value>, claims: &Claims) -> Vec<FieldError> {
    if kind(service) == "ExternalName" {
        let spec = map_mut(service, "spec");
        FIELDS.iter().for_each(|field| {
            spec.remove(*field);
        });
        return Vec::new();
    }
    let mut requested = strings(service, "/spec/clusterIPs");
    let single = text(service, "/spec/clusterIP").to_owned();
    if requested.is_empty() && !single.is_empty() {
        requested.push(single);
    } else if !single.is_empty() && requested[0] != single {
        let value = &service["spec"]["clusterIPs"];
        return vec![FieldError::invalid("spec.clusterIPs", value, "first value must match `clusterIP`")];
    }
    let mut families = strings(service, "/spec/ipFamilies");
    if let Some(before) = before {
        if let Some(error) = changed_primary(before, &requested, &families) {
            return vec![error];
        }
        let downgraded = service["spec"]["ipFamilyPolicy"] == "SingleStack"
            && before["spec"]["ipFamilyPolicy"] != "SingleStack";
        if downgraded {
            requested.truncate(1);
            families.truncate(1);
        }
    }

    let mut errors = Vec::new();
    let policy = policy(service, &requested, &families, claims, &mut errors);
    settle_families(service, &policy, &requested, &mut families, claims, &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    if !is_headless(service) {
        let owner = Claims::owner(service);
        for (i, family) in families.iter().enumerate() {
            let wanted = requested.get(i).cloned();
            match claims.address(&owner, family, wanted.as_deref()) {
                Ok(address) if i < requested.len() => requested[i] = address.to_string(),
                Ok(address) => requested.push(address.to_string()),
                Err(why) => {
                    let field = format!("spec.clusterIPs[{i}]");
                    errors.push(FieldError::invalid(field, &json!(wanted), why));
                }
            }
        }
    }
    let spec = map_mut(service, "spec");
    spec.insert("clusterIP".to_owned(), json!(requested.first()));
    spec.insert("clusterIPs".to_owned(), json!(requested));
    spec.insert("ipFamilies".to_owned(), json!(families));
    spec.insert("ipFamilyPolicy".to_owned(), json!(policy));
    errors
}

/// The first address and family of a Service are for life, unless it is ExternalName for a while.
fn changed_primary(before: &Value, requested: &[String], families: &[String]) -> Option<FieldError> {
    let why = "may not change once set";
    let (address, family) = (text(before, "/spec/clusterIPs/0"), text(before, "/spec/ipFamilies/0"));
    if let Some(first) = requested.first().filter(|first| !address.is_empty() && *first != address) {
        return Some(FieldError::invalid("spec.clusterIPs[0]", &json!(first), why));
    }
    let first = families.first().filter(|first| !family.is_empty() && *first != family)?;
    Some(FieldError::invalid("spec.ipFamilies[0]", &json!(first), why))
}

fn policy(
    service: &Value,
    requested: &[String],
    families: &[String],
    claims: &Claims,
    errors: &mut Vec<FieldError>,
) -> String {
    let given = text(service, "/spec/ipFamilyPolicy");
    let several = requested.len() > 1 || families.len() > 1;
    if given == "SingleStack" && several {
        let why =
            "must be RequireDualStack or PreferDualStack when multiple addresses or families are specified";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", &json!(given), why));
    }
    if given == "RequireDualStack" && claims.families().len() < 2 && !is_selectorless_headless(service) {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", &json!(given), why));
    }
    match given {
        "" if several || is_selectorless_headless(service) => "RequireDualStack".to_owned(),
        "" => "SingleStack".to_owned(),
        given => given.to_owned(),
    }
}

fn is_selectorless_headless(service: &Value) -> bool {
    let selector = service["spec"]["selector"].as_object();
    is_headless(service) && selector.is_none_or(serde_json::Map::is_empty)
}

/// Adds the families that the addresses asked for, the cluster's default and the policy imply.
fn settle_families(
    service: &Value,
    policy: &str,
    requested: &[String],
    families: &mut Vec<String>,
    claims: &Claims,
    errors: &mut Vec<FieldError>,
) {
    for (i, address) in requested.iter().enumerate().filter(|(_, address)| *address != "None") {
        let family = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => "IPv4",
            Ok(IpAddr::V6(_)) => "IPv6",
            Err(_) => {
                let field = format!("spec.clusterIPs[{i}]");
                errors.push(FieldError::invalid(field, &json!(address), "must be a valid IP address"));
                continue;
            }
        };
        match families.get(i) {
            None => families.push(family.to_owned()),
            Some(given) if given != family => {
                let field = format!("spec.ipFamilies[{i}]");
                let why = format!("expected {family:?} to match the cluster IP {address:?}");
                errors.push(FieldError::invalid(field, &json!(given), why));
            }
            Some(_) => {}
        }
    }
    for (i, family) in families.iter().enumerate() {
        if !["IPv4", "IPv6"].contains(&family.as_str()) {
            errors.push(FieldError::unsupported(
                format!("spec.ipFamilies[{i}]"),
                &json!(family),
                &["IPv4", "IPv6"],
            ));
        } else if !claims.families().contains(&family.as_str()) && !is_selectorless_headless(service) {
            let why = "not configured on this cluster";
            errors.push(FieldError::invalid(format!("spec.ipFamilies[{i}]"), &json!(family), why));
        }
    }
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        let why = "may only hold one of each family";
        errors.push(FieldError::invalid("spec.ipFamilies", &json!(families), why));
    }
    if families.is_empty() {
        families.extend(claims.families().first().map(|family| (*family).to_owned()));
    }
    if policy != "SingleStack" && families.len() == 1 {
        let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
        if claims.families().contains(&other) || is_selectorless_headless(service) {
            families.push(other.to_owned());
        }
    }
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    items(value, pointer).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
