//! The CNI_ variables that a runtime sets, read once and checked when a verb needs them.

use std::env;
use std::io;
use std::net::IpAddr;

use fairlead_net::agent::PodRef;
use fairlead_net::attachment::{Attachment, AttachmentError, Mac, MacError};
use fairlead_net::capabilities::parse_addresses;
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
        for (key, value) in self.arguments()? {
            match key {
                "K8S_POD_NAMESPACE" => pod.namespace = value.into(),
                "K8S_POD_NAME" => pod.name = value.into(),
                "K8S_POD_UID" => pod.uid = value.into(),
                _ => {}
            }
        }
        Ok(pod)
    }

    /// The addresses that CNI_ARGS ask for (`IP=10.0.0.9` or `IP=10.0.0.9/24,fd00::9`).
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let text = self.argument("IP")?.unwrap_or_default();
        parse_addresses(text.split(',').filter(|part| !part.is_empty()))
            .map_err(|(_, problem)| Failure::new(Code::Environment, format!("CNI_ARGS: IP: {problem}")))
    }

    /// The Ethernet address that CNI_ARGS ask for (`MAC=02:00:00:00:00:01`).
    pub(crate) fn mac(&self) -> Result<Option<Mac>, Failure> {
        let parsed = self.argument("MAC")?.map(str::parse).transpose();
        parsed.map_err(|error: MacError| Failure::new(Code::Environment, format!("CNI_ARGS: MAC: {error}")))
    }

    fn argument(&self, name: &str) -> Result<Option<&str>, Failure> {
        let found = self.arguments()?.into_iter().find(|(key, value)| *key == name && !value.is_empty());
        Ok(found.map(|(_, value)| value))
    }

    /// CNI_ARGS, key by key.
    fn arguments(&self) -> Result<Vec<(&str, &str)>, Failure> {
        let arguments = self.args.as_deref().unwrap_or_default().split(';').filter(|a| !a.is_empty());
        let malformed = |argument: &str| {
            Failure::new(Code::Environment, format!("CNI_ARGS: {argument:?} is not of the form KEY=VALUE"))
        };
        arguments.map(|argument| argument.split_once('=').ok_or_else(|| malformed(argument))).collect()
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
    fn addresses_may_be_asked_for_and_what_makes_no_sense_is_refused_by_name() {
        let asked = environment("MAC=02:00:00:00:00:01;IP=10.0.0.9/24,fd00::9");
        assert_eq!(asked.addresses().expect("valid").len(), 2);
        assert_eq!(asked.mac().expect("valid"), Some(Mac([2, 0, 0, 0, 0, 1])));
        let silent = environment("IP=;X=1");
        assert_eq!((silent.addresses().expect("none"), silent.mac().expect("none")), (Vec::new(), None));
        let bad = environment("IP=10.0.0.9,10.0.0.8;MAC=x");
        let message = bad.addresses().expect_err("two of a family").msg;
        assert!(message.starts_with("CNI_ARGS: IP: 10.0.0.8 "), "{message}");
        let message = bad.mac().expect_err("none").msg;
        assert!(message.starts_with("CNI_ARGS: MAC: \"x\" "), "{message}");
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
