//! What a client asks and a pod's server answers, whatever the protocol between them.
//!
//! A request is text: a number, then optionally `+N` for an answer that is at least N bytes longer, then padding
//! that makes the request large. The answer is one line of JSON.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a server answers, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The pod that answers.
    pub pod: String,
    /// The address that the server saw the request come from.
    pub client: SocketAddr,
    /// How many requests this server has had, this one included.
    pub served: u64,
    /// The first word of the request.
    pub said: String,
    /// How many bytes the request had.
    pub length: usize,
    /// Whether the server ends the connection after this answer, because its pod is terminating.
    pub closing: bool,
    /// How many SCTP packets with a wrong checksum this server has seen.
    pub damaged: u64,
    /// What makes the answer as long as was asked for; the client checks it and leaves it out of its report.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub padding: String,
}

/// The text of request `number`, of at least `size` bytes, that asks for an answer longer by `answer_size` bytes.
pub(crate) fn request(number: u32, size: usize, answer_size: usize) -> String {
    let mut text = number.to_string();
    if answer_size > 0 {
        text += &format!(" +{answer_size}");
    }
    if size > text.len() {
        text.push(' ');
        text.extend(std::iter::repeat_n('x', size - text.len()));
    }
    text
}

/// The first word of a request, and the padding that its answer shall have.
pub(crate) fn understand(request: &str) -> (&str, usize) {
    let mut words = request.split_ascii_whitespace();
    let said = words.next().unwrap_or_default();
    let padding = words.next().and_then(|word| word.strip_prefix('+')).and_then(|n| n.parse().ok());
    (said, padding.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_size_asked_for_and_says_what_answer_it_wants() {
        assert_eq!(request(7, 0, 0), "7");
        assert_eq!(request(7, 100, 0).len(), 100);
        let large = request(7, 100, 4000);
        assert_eq!(large.len(), 100);
        assert_eq!(understand(&large), ("7", 4000));
        assert_eq!(understand("hello"), ("hello", 0));
    }
}
