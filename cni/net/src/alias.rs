//! What the alias of an interface of ours says: for which network and attachment it was made.

use crate::attachment::{Attachment, is_identifier};

/// How the alias begins.
const MARK: &str = "fairlead";

/// The longest alias that the kernel takes, in bytes.
const ALIAS_MAX: usize = 255;

/// The alias of the host's side of `attachment` in `network`; none if it would be too long for the kernel.
#[must_use]
pub fn of(network: &str, attachment: &Attachment) -> Option<String> {
    Some(format!("{MARK} {network} {attachment}")).filter(|alias| alias.len() <= ALIAS_MAX)
}

/// The network and the attachment that an alias names; none if it is not one of ours.
#[must_use]
pub fn owner(alias: &str) -> Option<(String, Attachment)> {
    let (network, attachment) = alias.strip_prefix(MARK)?.strip_prefix(' ')?.split_once(' ')?;
    // It becomes a directory's name.
    is_identifier(network).then_some(())?;
    Some((network.into(), attachment.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment::new("pod", "eth0").expect("valid")
    }

    #[test]
    fn an_alias_says_whose_an_interface_is() {
        let text = of("pods", &attachment()).expect("short");
        assert_eq!(text, "fairlead pods pod/eth0");
        assert_eq!(owner(&text), Some(("pods".into(), attachment())));
        for other in [
            "",
            "fairlead",
            "fairlead pods",
            "fairleader pods pod/eth0",
            "fairlead pods pod",
            "fairlead ../x pod/eth0",
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn an_alias_that_the_kernel_would_refuse_is_left_out() {
        assert_eq!(of(&"n".repeat(240), &attachment()), None);
    }
}
