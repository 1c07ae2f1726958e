//! `fairlead-proxy endpoints`: the pods of this node, with what the maps hold of each.

use fairlead_abi::policies;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, lock};
use crate::dataplane::endpoints::EndpointView;

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDetail {
    /// What the agent knows of it.
    #[serde(flatten)]
    pub view: EndpointView,
    /// What decides about packets that it is sent.
    pub ingress: Isolation,
    /// What decides about packets that it sends.
    pub egress: Isolation,
    /// Why its programs or entries are not as they should be, if so.
    pub fault: Option<String>,
}

/// The policies of a pod in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// "open" if nobody selects the pod, "closed" if its policies are not known, else "isolated".
    pub state: String,
    /// The objects that it is under.
    pub policies: Vec<String>,
}

/// Every pod of the node.
pub fn list(agent: &Agent) -> Vec<EndpointDetail> {
    let mut endpoints = lock(&agent.endpoints);
    let checked: Vec<(EndpointView, Option<String>)> = endpoints.checked();
    drop(endpoints);
    let isolation = |id: u32| Isolation {
        state: match id {
            policies::CLOSED => "closed",
            policies::OPEN => "open",
            _ => "isolated",
        }
        .to_owned(),
        policies: if id < policies::FIRST { Vec::new() } else { agent.policies.behind(id) },
    };
    let detail = |(view, fault): (EndpointView, Option<String>)| {
        let under = agent.policies.isolation(view.index);
        EndpointDetail { ingress: isolation(under.ingress), egress: isolation(under.egress), fault, view }
    };
    checked.into_iter().map(detail).collect()
}
