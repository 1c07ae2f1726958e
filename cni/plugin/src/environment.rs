//! The CNI_ variables that a runtime sets, read once and checked when a verb needs them.

use std::env;
use std::io;

use fairlead_net::agent::PodRef;
use fairlead_net::attachment::{Attachment, AttachmentError};
use fairlead_net::netns::Netns;

use crate::failure::{Code, Failure};

/// The variables, as far as they are set and not empty.
pub(crate) struct Environment {
    pub(crate) command: Option<String>,
    container_id: Option<String>,
    ifname: Option<String>,
    netns: Option<String>,
    args: Option<String>,
}

impl Environment {
    /// This process's own.
    pub(crate) fn read() -> Self {
        let read = |name| env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            command: read("CNI_COMMAND"),
            container_id: read("CNI_CONTAINERID"),
            ifname: read("CNI_IFNAME"),
            netns: read("CNI_NETNS"),
            args: read("CNI_ARGS"),
        }
    }

    /// CNI_CONTAINERID and CNI_IFNAME.
    pub(crate) fn attachment(&self) -> Result<Attachment, Failure> {
        let container_id = required("CNI_CONTAINERID", self.container_id.as_deref())?;
        let ifname = required("CNI_IFNAME", self.ifname.as_deref())?;
        Attachment::new(container_id, ifname).map_err(|error| {
            let name = match error {
                AttachmentError::ContainerId(_) => "CNI_CONTAINERID",
                AttachmentError::Ifname(_) => "CNI_IFNAME",
            };
            Failure::new(Code::Environment, format!("{name}: {error}"))
        })
    }

    /// CNI_NETNS, as it is written in the result.
    pub(crate) fn netns_path(&self) -> Result<&str, Failure> {
        required("CNI_NETNS", self.netns.as_deref())
    }

    /// The namespace at CNI_NETNS, which must not be the host's.
    pub(crate) fn netns(&self) -> Result<Netns, Failure> {
        let netns = Netns::open(self.netns_path()?).map_err(|error| {
            let code = match error.source.kind() {
                io::ErrorKind::NotFound => Code::UnknownContainer,
                _ => Code::Environment,
            };
            Failure::new(code, format!("CNI_NETNS: {error}"))
        })?;
        if netns.inode()? == Netns::current()?.inode()? {
            return Err(Failure::new(Code::Environment, "CNI_NETNS: is the host's own network namespace"));
        }
        Ok(netns)
    }

    /// The pod's name from CNI_ARGS (`K8S_POD_NAMESPACE=…;K8S_POD_NAME=…;K8S_POD_UID=…`), empty where the
    /// runtime does not say; arguments for others are ignored.
    pub(crate) fn pod(&self) -> Result<PodRef, Failure> {
        let mut pod = PodRef::default();
        for argument in self.args.as_deref().unwrap_or_default().split(';').filter(|a| !a.is_empty()) {
            let Some((key, value)) = argument.split_once('=') else {
                let message = format!("CNI_ARGS: {argument:?} is not of the form KEY=VALUE");
                return Err(Failure::new(Code::Environment, message));
            };
            match key {
                "K8S_POD_NAMESPACE" => pod.namespace = value.into(),
                "K8S_POD_NAME" => pod.name = value.into(),
                "K8S_POD_UID" => pod.uid = value.into(),
                _ => {}
            }
        }
        Ok(pod)
    }
}

fn required<'a>(name: &str, value: Option<&'a str>) -> Result<&'a str, Failure> {
    value.ok_or_else(|| Failure::new(Code::Environment, format!("{name} is not set")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(args: &str) -> Environment {
        Environment {
            command: None,
            container_id: Some("a".into()),
            ifname: None,
            netns: None,
            args: Some(args.into()),
        }
    }

    #[test]
    fn a_pods_name_is_found_among_other_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1;X=a=b;";
        let pod = environment(args).pod().expect("valid");
        assert_eq!(pod, PodRef { namespace: "shop".into(), name: "web-0".into(), uid: "u1".into() });
    }

    #[test]
    fn a_refusal_names_the_variable() {
        let messages = [
            environment("K8S_POD_NAME").pod().map(drop),
            environment("").attachment().map(drop),
            environment("").netns().map(drop),
        ]
        .map(|outcome| outcome.expect_err("refused").msg);
        for (message, name) in messages.iter().zip(["CNI_ARGS: ", "CNI_IFNAME ", "CNI_NETNS "]) {
            assert!(message.starts_with(name), "{message}");
        }
    }
}
