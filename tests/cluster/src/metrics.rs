//! What an agent's `/metrics` says.

use anyhow::{Context, Result};
use fairlead_harness::Node;

/// The value of one sample of a node's agent, by its name and labels as they are written.
///
/// # Errors
/// When the agent does not answer, or has no such sample.
pub fn sample(node: &Node, name: &str) -> Result<f64> {
    let text = node.metrics()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.with_context(|| format!("{name} is not in:\n{text}"))?;
    value.trim().parse().with_context(|| format!("{name} is {value}"))
}
