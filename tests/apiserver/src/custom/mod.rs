//! Custom resources: the kinds that a CustomResourceDefinition adds, held to its schema.
//!
//! The definitions are those of `manifests/crds`, as a cluster has them that was set up with these manifests. Unlike
//! a real server, this one keeps fields that a schema doesn't know: they stand for those of a later version.

mod rules;
mod schema;

use std::sync::LazyLock;

use serde_json::Value;

use crate::resource::Resource;
use crate::status::FieldError;

/// The definitions, each a document of YAML.
const DEFINITIONS: [&str; 1] = [include_str!("../../../../manifests/crds/clusternetworkpolicies.yaml")];

static PARSED: LazyLock<Vec<Value>> = LazyLock::new(|| {
    DEFINITIONS.iter().map(|text| serde_saphyr::from_str(text).expect("the definition is YAML")).collect()
});

/// Checks an object of a custom kind against the schema of its definition.
///
/// # Panics
/// If `resource` has no definition, which a test rules out.
pub(crate) fn check(resource: &Resource, object: &Value, errors: &mut Vec<FieldError>) {
    schema::check(schema_of(resource).expect("custom resources are defined"), object, "", errors);
}

/// The schema of the version that this server serves.
fn schema_of(resource: &Resource) -> Option<&'static Value> {
    let definition = PARSED.iter().find(|definition| {
        definition["spec"]["group"] == resource.group
            && definition["spec"]["names"]["plural"] == resource.plural
    })?;
    let versions = definition["spec"]["versions"].as_array()?;
    let version = versions.iter().find(|version| version["name"] == resource.version)?;
    version.pointer("/schema/openAPIV3Schema")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::ALL;

    #[test]
    fn every_custom_resource_is_served_as_its_definition_says() {
        let mut defined = 0;
        for resource in ALL.into_iter().filter(|resource| resource.custom) {
            let schema = schema_of(resource).expect("a schema");
            schema::tests::assert_is_understood(schema, resource.kind);
            let definition = PARSED.iter().find(|d| d["spec"]["names"]["kind"] == resource.kind).unwrap();
            let spec = &definition["spec"];
            assert_eq!(definition["metadata"]["name"], resource.qualified_plural());
            assert_eq!(spec["names"]["singular"], resource.singular);
            assert_eq!(spec["names"]["shortNames"], json!(resource.short_names));
            assert_eq!(spec["scope"] == "Namespaced", resource.namespaced);
            assert_eq!(spec["versions"][0]["subresources"].get("status").is_some(), resource.has_status);
            defined += 1;
        }
        assert_eq!(defined, DEFINITIONS.len());
    }
}
