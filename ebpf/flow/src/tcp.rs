//! What a TCP segment's flags say about its connection (RFC 9293, section 3.1).

/// The flags' byte of a TCP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// What opens a connection.
    pub const OPENS: Self = Self(Self::SYN);
    /// What says that the sender has nothing more to say.
    pub const CLOSES: Self = Self(Self::FIN);
    /// What ends a connection at once.
    pub const RESETS: Self = Self(Self::RST);

    /// The first segment of a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }

    /// The sender has nothing more to say.
    #[inline(always)]
    pub const fn closes(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// The sender knows of no such connection, or will not go on with it.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_syn_without_ack_or_rst_opens() {
        assert!(Flags(0x02).opens());
        assert!(!Flags(0x06).opens());
        assert!(!Flags(0x12).opens());
        assert!(!Flags(0x10).opens());
    }

    #[test]
    fn fin_closes_and_rst_resets() {
        assert!(Flags(0x11).closes() && !Flags(0x11).resets());
        assert!(Flags(0x14).resets() && !Flags(0x14).closes());
        assert!(!Flags(0x18).closes() && !Flags(0x18).resets());
    }
}
