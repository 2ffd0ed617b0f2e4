//! What an event of the event loop is about: 64 bits of epoll data.

/// Source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// SIGTERM or SIGINT.
    Signal,
    /// A front-end wants to connect.
    Listener,
    /// The main socket.
    Main,
    /// The channel of a vCPU.
    Channel(u32),
    /// Something on the monitor socket.
    Monitor,
    /// An irqfd.
    Irqfd(u32),
    /// The channel of device state.
    Transfer,
}

impl Token {
    pub(super) fn to_data(self) -> u64 {
        match self {
            Self::Signal => 0,
            Self::Listener => 1,
            Self::Main => 2,
            Self::Channel(server) => 3 | u64::from(server) << 32,
            Self::Monitor => 5,
            Self::Transfer => 6,
            Self::Irqfd(n) => 4 | u64::from(n) << 32,
        }
    }

    pub(super) fn from_data(data: u64) -> Option<Self> {
        let index = (data >> 32) as u32;
        match data as u32 {
            0 => Some(Self::Signal),
            1 => Some(Self::Listener),
            2 => Some(Self::Main),
            3 => Some(Self::Channel(index)),
            4 => Some(Self::Irqfd(index)),
            5 => Some(Self::Monitor),
            6 => Some(Self::Transfer),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_its_data() {
        use Token::*;
        for token in [
            Signal,
            Listener,
            Main,
            Monitor,
            Transfer,
            Channel(0),
            Channel(4095),
            Irqfd(u32::MAX),
        ] {
            assert_eq!(Token::from_data(token.to_data()), Some(token));
        }
    }
}
