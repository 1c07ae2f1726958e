//! Lists of the API, an object at a time.
//!
//! A list of a large cluster is tens of megabytes of text, of which each object is needed for a moment. So it is cut
//! into its objects while it comes, and never held whole: neither the text nor the objects.

use std::io;
use std::mem::take;

use futures::{AsyncBufRead, AsyncBufReadExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::Client;
use kube::api::ListParams;
use kube::core::Request;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// How many objects are asked for at once, of an API server that lists in parts: as its own clients do.
const PART: u32 = 500;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    /// The API server refused, or could not be asked.
    #[error("list: {0}")]
    Refused(#[source] kube::Error),
    /// The answer broke off.
    #[error("read a list: {0}")]
    Broken(#[source] io::Error),
    /// The answer is not one.
    #[error("understand a list: {0}")]
    Nonsense(#[source] serde_json::Error),
    /// The answer does not say what it is the state of.
    #[error("a list without a resourceVersion")]
    Timeless,
}

/// Hands on every object at `path` that the selector of fields lets pass, and returns the version of the state that
/// they are. An object that can't be decoded is left out.
pub(super) async fn list<K: DeserializeOwned>(
    client: &Client,
    path: &str,
    selector: Option<&str>,
    mut hand_on: impl FnMut(K),
) -> Result<String, ListError> {
    let mut parameters = ListParams::default().limit(PART);
    parameters.field_selector = selector.map(str::to_owned);
    loop {
        let request = Request::new(path).list(&parameters);
        let request = request.map_err(|e| ListError::Refused(kube::Error::BuildRequest(e)))?;
        let answer = client.request_stream(request).await.map_err(ListError::Refused)?;
        let meta = read(answer, |object| match serde_json::from_slice(object) {
            Ok(object) => hand_on(object),
            Err(e) => tracing::warn!("an object listed at {path} is left out: {e}"),
        })
        .await?;
        parameters.continue_token = meta.continue_.filter(|token| !token.is_empty());
        if parameters.continue_token.is_none() {
            return meta.resource_version.filter(|version| !version.is_empty()).ok_or(ListError::Timeless);
        }
    }
}

/// Reads a list to its end, handing on the text of each object.
async fn read(answer: impl AsyncBufRead, mut hand_on: impl FnMut(&[u8])) -> Result<ListMeta, ListError> {
    #[derive(Deserialize)]
    struct Envelope {
        metadata: ListMeta,
    }
    let mut answer = std::pin::pin!(answer);
    let mut cutter = Cutter::default();
    loop {
        let chunk = answer.fill_buf().await.map_err(ListError::Broken)?;
        if chunk.is_empty() {
            break;
        }
        let read = chunk.len();
        cutter.cut(chunk, &mut hand_on);
        answer.consume_unpin(read);
    }
    let envelope: Envelope = serde_json::from_slice(&cutter.envelope).map_err(ListError::Nonsense)?;
    Ok(envelope.metadata)
}

/// Cuts the JSON text of a list into the values of its `items`, and what remains of it without them.
#[derive(Debug, Default)]
struct Cutter {
    /// The list without its items.
    envelope: Vec<u8>,
    /// The item under way.
    item: Vec<u8>,
    /// The text under way, or the last one, outside of items: a key, when an array begins.
    text: Vec<u8>,
    /// How many objects and arrays are open.
    depth: u32,
    /// Whether the array that is open at depth 2 is the items.
    in_items: bool,
    /// Whether a text is open, and its next character stands for itself.
    in_text: bool,
    escaped: bool,
}

impl Cutter {
    /// Takes the next piece of the list's text, which may end anywhere.
    fn cut(&mut self, piece: &[u8], hand_on: &mut impl FnMut(&[u8])) {
        // What comes together goes together: the bytes from here on belong to the same part of the list.
        let mut start = 0;
        for (place, byte) in piece.iter().enumerate() {
            if self.in_text {
                self.read_text(*byte);
                continue;
            }
            match byte {
                b'"' => {
                    self.in_text = true;
                    self.text.clear();
                }
                b'{' | b'[' => {
                    if self.is_between_items() {
                        // A comma or blanks.
                        start = place;
                    }
                    self.depth += 1;
                    if self.depth == 2 && *byte == b'[' && self.text == b"items" {
                        self.envelope.extend_from_slice(&piece[start..=place]);
                        start = place + 1;
                        self.in_items = true;
                    }
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.is_between_items() {
                        self.item.extend_from_slice(&piece[start..=place]);
                        start = place + 1;
                        hand_on(&take(&mut self.item));
                    } else if self.in_items && self.depth == 1 {
                        start = place;
                        self.in_items = false;
                    }
                }
                _ => {}
            }
        }
        if self.is_between_items() {
            return;
        }
        let part = if self.in_items { &mut self.item } else { &mut self.envelope };
        part.extend_from_slice(&piece[start..]);
    }

    fn is_between_items(&self) -> bool {
        self.in_items && self.depth == 2
    }

    fn read_text(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_text = false,
            _ if self.depth == 1 => self.text.push(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::{BufReader, Cursor};
    use serde_json::{Value, json};

    use super::*;

    /// What a list of this text is read as, in pieces of that length.
    fn read_in_pieces(text: &str, length: usize) -> Result<(Vec<Value>, ListMeta), ListError> {
        let mut items = Vec::new();
        let reader = BufReader::with_capacity(length, Cursor::new(text.as_bytes()));
        let meta = block_on(read(reader, |item| items.push(serde_json::from_slice(item).expect("JSON"))))?;
        Ok((items, meta))
    }

    #[test]
    fn a_list_is_cut_into_its_objects_wherever_its_pieces_end() {
        let items = vec![
            json!({"metadata": {"name": "a", "labels": {"items": "[{\"x\\"}}, "spec": {"items": [1, {"y": []}]}}),
            json!({}),
            json!({"text": "}]\"\\", "deep": [[[{}]]]}),
        ];
        let list = json!({
            "kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": "next"},
            "items": items,
        });
        for text in [list.to_string(), serde_json::to_string_pretty(&list).expect("written")] {
            for length in 1..80 {
                let (found, meta) = read_in_pieces(&text, length).expect("a list");
                assert_eq!(found, items, "in pieces of {length}");
                assert_eq!(meta.resource_version.as_deref(), Some("7"));
                assert_eq!(meta.continue_.as_deref(), Some("next"));
            }
        }
    }

    #[test]
    fn the_order_of_a_lists_fields_does_not_matter() {
        let text = r#"{"items":[{"a":1},{"b":2}],"kind":"items","metadata":{"resourceVersion":"9"}}"#;
        let (items, meta) = read_in_pieces(text, 7).expect("a list");
        assert_eq!((items.len(), meta.resource_version.as_deref()), (2, Some("9")));
    }

    #[test]
    fn a_list_without_objects_is_one() {
        for items in ["[]", "[ ]", "null"] {
            let text = format!(r#"{{"metadata":{{"resourceVersion":"1"}},"items":{items}}}"#);
            let (items, meta) = read_in_pieces(&text, 5).expect("a list");
            assert_eq!((items.len(), meta.resource_version.as_deref()), (0, Some("1")));
        }
    }

    #[test]
    fn a_list_that_breaks_off_is_none() {
        let text = r#"{"metadata":{"resourceVersion":"1"},"items":[{"a":1},{"b":2}]}"#;
        for end in 0..text.len() {
            assert!(read_in_pieces(&text[..end], 16).is_err(), "{}", &text[..end]);
        }
    }
}
