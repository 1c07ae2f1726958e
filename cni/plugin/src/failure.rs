//! The error object of the CNI specification, and which code each failure gets.
//!
//! Codes 1–99 are the specification's (section 5, "Error"), from 100 on they are this plugin's.

use fairlead_net::agent::AgentError;
use fairlead_net::config::{ConfigError, NodeFileError, Version};
use fairlead_net::exec::WireError;
use fairlead_net::gc::DetachError;
use fairlead_net::ipam::IpamError;
use fairlead_net::netns::NetnsError;
use fairlead_net::store::StoreError;
use serde_json::{Value, json};

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The configuration is of a version that is not spoken.
    IncompatibleVersion = 1,
    /// The container does not exist: there is nothing to clean up.
    UnknownContainer = 3,
    /// A CNI_ variable is missing or makes no sense.
    Environment = 4,
    /// Files or the kernel failed.
    Io = 5,
    /// What should be JSON is not.
    Decode = 6,
    /// The network configuration makes no sense.
    Config = 7,
    /// Something else must happen first, and probably will: the runtime may try again.
    TryAgainLater = 11,
    /// No pod can be attached now (STATUS).
    Unavailable = 50,
    /// Nor do the pods that are there reach everything (STATUS).
    Limited = 51,
    /// The interface exists already: the attachment was not removed before.
    Exists = 100,
    /// Every address of the node's ranges is in use, or the one that was asked for.
    NoAddress = 101,
    /// Something is not as ADD has made it (CHECK).
    Differs = 102,
}

/// A failed verb.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) msg: String,
    details: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: None }
    }

    /// With what does not fit into the message.
    pub(crate) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: Some(details.into()), ..self }
    }

    /// The error object, in the version that the runtime speaks.
    pub(crate) fn to_json(&self, version: Version) -> Value {
        let mut error = json!({ "cniVersion": version.as_str(), "code": self.code as u32, "msg": self.msg });
        if let Some(details) = &self.details {
            error["details"] = details.as_str().into();
        }
        error
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let code = match error {
            ConfigError::NotJson(_) => Code::Decode,
            ConfigError::Version(_) => Code::IncompatibleVersion,
            ConfigError::Field { .. } => Code::Config,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NodeFileError> for Failure {
    fn from(error: NodeFileError) -> Self {
        let code = match error {
            NodeFileError::Absent(_) => Code::TryAgainLater,
            NodeFileError::Unreadable { .. } => Code::Io,
            NodeFileError::Malformed { .. } => Code::Decode,
        };
        Self::new(code, error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::File(file) if file.step == "decode" => Code::Decode,
            StoreError::File(_) | StoreError::Survey(_) => Code::Io,
            StoreError::Ipam(IpamError::NotOurs { .. }) => Code::Config,
            StoreError::Ipam(IpamError::Exhausted { .. } | IpamError::Taken { .. }) => Code::NoAddress,
            StoreError::Ipam(IpamError::Attached(_)) => Code::Exists,
            StoreError::Released(_) => Code::UnknownContainer,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NetnsError> for Failure {
    fn from(error: NetnsError) -> Self {
        Self::new(Code::Io, error.to_string())
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        let code = match error {
            WireError::Exists { .. } => Code::Exists,
            WireError::Netns(_) | WireError::Step { .. } => Code::Io,
        };
        Self::new(code, error.to_string())
    }
}

impl From<DetachError> for Failure {
    fn from(error: DetachError) -> Self {
        match error {
            DetachError::Wire(error) => error.into(),
            DetachError::Store(error) => error.into(),
            DetachError::Survey(_) => Self::new(Code::Io, error.to_string()),
        }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Connect { .. } => {
                Self::new(Code::TryAgainLater, format!("agentSocket: {error}: is fairlead-proxy running?"))
            }
            AgentError::Talk { .. } | AgentError::Answer(_) => {
                Self::new(Code::TryAgainLater, format!("agentSocket: {error}"))
            }
            // What it lacks comes (the pod's policies), or can be made room for (a map that is full).
            AgentError::Refused(_) => Self::new(Code::TryAgainLater, error.to_string()),
        }
    }
}
