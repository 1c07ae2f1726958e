//! Errors in words: one line with every cause that adds something.

use std::error::Error;

/// The error and its causes, outermost first, without those that an outer one quotes.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let words = deeper.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = deeper.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::dataplane::DataplaneError;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error = DataplaneError::new("pin", "x", std::io::Error::other("no room"));
        assert_eq!(chain(&error), "pin x: no room");
    }
}
