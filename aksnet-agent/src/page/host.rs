//! The *host* of a request is the name by which the browser knows the page. A web site elsewhere can have its own name
//! resolve to 127.0.0.1 and then read what is served there as its own (DNS rebinding); it cannot have the browser call
//! it `localhost` or a bare address. So only those are answered to.

use std::net::IpAddr;

use axum::http::uri::Authority;

/// The hosts that are answered to, whatever the port: a port-forward has one of its own.
#[derive(Clone, Copy, Debug)]
pub struct Hosts(IpAddr);

impl Hosts {
    /// `localhost`, loopback addresses, and the address that is listened at; any address where that is all of them.
    #[must_use]
    pub fn at(listen: IpAddr) -> Self {
        Self(listen.to_canonical())
    }

    /// Whether the value of a `Host` header is one of them.
    #[must_use]
    pub fn allow(self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        // `http://127.0.0.1@evil.example` is no header that a browser sends.
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host();
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let bare = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'));
        bare.unwrap_or(name)
            .parse::<IpAddr>()
            .map(|address| address.to_canonical())
            .is_ok_and(|address| {
                address.is_loopback() || address == self.0 || self.0.is_unspecified()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_and_addresses_of_the_page_are_answered_to() {
        let hosts = Hosts::at([127, 0, 0, 1].into());
        for good in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.0.0.1:9436",
            "127.9.9.9:1",
            "[::1]:9436",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(hosts.allow(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:9436",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "10.224.0.4:9436",
            "[fe80::1]",
            "localhost evil",
        ] {
            assert!(!hosts.allow(bad), "{bad}");
        }
    }

    #[test]
    fn an_address_that_was_configured_is_answered_to() {
        let node = Hosts::at([10, 224, 0, 4].into());
        assert!(node.allow("10.224.0.4:9436") && node.allow("localhost"));
        assert!(!node.allow("10.224.0.5:9436") && !node.allow("node.example"));
        let all = Hosts::at([0, 0, 0, 0].into());
        assert!(all.allow("10.224.0.4:9436") && all.allow("[fd00::4]:9436"));
        assert!(!all.allow("node.example"));
    }
}
