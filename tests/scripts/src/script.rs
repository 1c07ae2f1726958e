//! The form of a script.

use anyhow::{Context as _, Result, bail, ensure};
use fairlead_core::index::Index;
use fairlead_core::model::ObjectName;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

/// A script, read from its file.
#[derive(Clone, Debug)]
pub struct Script {
    /// The name of the proxy's own node.
    pub node: String,
    /// How many slots there are.
    pub slots: u32,
    /// How many backends there are.
    pub backends: u32,
    /// How many frontends fit, if that is limited.
    pub frontends: Option<u32>,
    /// Whether the outcome depends on the order of events, as it does where something runs out.
    pub fixed_order: bool,
    /// Events up to each expectation.
    pub steps: Vec<Step>,
}

/// Events and what the maps hold after them.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// At most one for each object, so that their order does not matter.
    pub events: Vec<Event>,
    /// The dump, line by line.
    pub expected: Vec<String>,
}

/// A change that a watch reports.
#[derive(Clone, Debug)]
pub enum Event {
    /// A Service was added or changed.
    Service(Box<core::Service>),
    /// An EndpointSlice was added or changed.
    Slice(Box<discovery::EndpointSlice>),
    /// A Node was added or changed.
    Node(Box<core::Node>),
    /// An object of this kind was deleted.
    Deleted(Kind, ObjectName),
}

/// The kinds of objects in scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    Slice,
    /// v1 Node.
    Node,
}

impl Event {
    /// Feeds it to an index, as the agent would.
    pub fn feed(&self, index: &mut Index) {
        match self {
            Self::Service(object) => index.apply_service(object),
            Self::Slice(object) => index.apply_slice(object),
            Self::Node(object) => index.apply_node(object),
            Self::Deleted(Kind::Service, name) => index.delete_service(name),
            Self::Deleted(Kind::Slice, name) => index.delete_slice(name),
            Self::Deleted(Kind::Node, name) => index.delete_node(&name.name),
        }
    }
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// If a section, an option or an object can't be understood.
    pub fn parse(text: &str) -> Result<Self> {
        let mut script = Self {
            node: "a".into(),
            slots: 1024,
            backends: 1024,
            frontends: None,
            fixed_order: false,
            steps: Vec::new(),
        };
        let mut sections = text.split("\n-- ");
        for line in sections.next().into_iter().flat_map(str::lines) {
            script.option(line).with_context(|| format!("line {line:?}"))?;
        }
        let mut step = Step::default();
        for section in sections {
            let (title, body) = section.split_once('\n').unwrap_or((section, ""));
            match title.trim_end_matches([' ', '-']) {
                "apply" => {
                    for document in body.split("\n---") {
                        step.events.push(parse_object(document).with_context(|| format!("in {document}"))?);
                    }
                }
                "delete" => {
                    for line in body.lines().filter(|line| !line.trim().is_empty()) {
                        step.events.push(parse_deleted(line).with_context(|| format!("line {line:?}"))?);
                    }
                }
                "expect" => {
                    step.expected = body
                        .lines()
                        .filter(|line| !line.trim().is_empty())
                        .map(|line| line.trim_end().into())
                        .collect();
                    script.steps.push(std::mem::take(&mut step));
                }
                other => bail!("a section named {other:?}"),
            }
        }
        ensure!(step.events.is_empty(), "events after the last expectation");
        ensure!(!script.steps.is_empty(), "a script that expects nothing");
        Ok(script)
    }

    fn option(&mut self, line: &str) -> Result<()> {
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (name, value) = line.split_once(": ").context("neither a comment nor an option")?;
        match name {
            "node" => self.node = value.to_owned(),
            "slots" => self.slots = value.parse()?,
            "backends" => self.backends = value.parse()?,
            "frontends" => self.frontends = Some(value.parse()?),
            "order" => self.fixed_order = value == "fixed",
            _ => bail!("no such option"),
        }
        Ok(())
    }
}

fn parse_object(document: &str) -> Result<Event> {
    let value: serde_json::Value = serde_saphyr::from_str(document)?;
    Ok(match value.get("kind").and_then(serde_json::Value::as_str) {
        Some("Service") => Event::Service(Box::new(serde_json::from_value(value)?)),
        Some("EndpointSlice") => Event::Slice(Box::new(serde_json::from_value(value)?)),
        Some("Node") => Event::Node(Box::new(serde_json::from_value(value)?)),
        kind => bail!("an object of kind {kind:?}"),
    })
}

fn parse_deleted(line: &str) -> Result<Event> {
    let (kind, name) = line.trim().split_once(' ').context("no name")?;
    let kind = match kind {
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::Slice,
        "Node" => Kind::Node,
        other => bail!("an object of kind {other:?}"),
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Ok(Event::Deleted(kind, ObjectName::new(namespace, name)))
}
