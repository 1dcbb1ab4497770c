//! What `explain` is asked: which port of which protocol.

use std::str::FromStr;

use aksnet_common::packet::{ICMP, SCTP, TCP, UDP};

/// The port that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The port.
    pub port: AskedPort,
    /// IP protocol number.
    pub protocol: u8,
}

/// As it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskedPort {
    /// The protocol has none.
    None,
    /// By its number.
    Number(u16),
    /// By its name in the server's pod, or in the service.
    Name(String),
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Self {
                port: AskedPort::None,
                protocol: ICMP,
            });
        }
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => TCP,
            "udp" => UDP,
            "sctp" => SCTP,
            _ => return Err("the protocol is tcp, udp or sctp: 8080/tcp; or icmp alone".to_owned()),
        };
        let port = if port.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = port.parse().ok().filter(|port| *port != 0);
            AskedPort::Number(number.ok_or("a port is a number from 1 to 65535, or a name")?)
        } else {
            AskedPort::Name(port.to_owned())
        };
        Ok(Self { port, protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> (AskedPort, u8) {
        let asked: Asked = text.parse().unwrap();
        (asked.port, asked.protocol)
    }

    #[test]
    fn a_port_is_a_number_or_a_name_and_tcp_unless_said() {
        assert_eq!(asked("80"), (AskedPort::Number(80), 6));
        assert_eq!(asked("53/UDP"), (AskedPort::Number(53), 17));
        assert_eq!(asked("sip/sctp"), (AskedPort::Name("sip".into()), 132));
        assert_eq!(asked("ICMP"), (AskedPort::None, 1));
    }

    #[test]
    fn nothing_else_is() {
        for text in ["", "0", "65536", "80/", "80/xtp", "/tcp"] {
            assert!(text.parse::<Asked>().is_err(), "{text}");
        }
    }
}
