//! How single values are read: each reader's error says what is wrong with the value and what would be
//! right. Which setting it was, and where it stands, is added by the caller.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;

use super::{duration, suggest};

/// Names of the address plan that no configured range may take.
const RESERVED: [&str; 11] = [
    "internet",
    "vnet",
    "azure_platform",
    "private_endpoint",
    "private",
    "node",
    "api_server",
    "local_dns",
    "link_local",
    "other",
    "unknown",
];

pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    SocketAddr::from_str(text).map_err(|_| {
        format!("'{text}' is not ADDRESS:PORT; write for example 127.0.0.1:9435 or [::]:9435")
    })
}

/// An address, or `off`.
pub(super) fn page(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    SocketAddr::from_str(text).map(Some).map_err(|_| {
        format!("'{text}' is not ADDRESS:PORT; write for example 127.0.0.1:9436, or off")
    })
}

pub(super) fn socket(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if text.ends_with('/') || path.file_name().is_none() {
        return Err(format!(
            "'{text}' is no file's path; write for example /run/aksnet/agent.sock"
        ));
    }
    Ok(path)
}

pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!(
            "'{text}' is no absolute path; write for example /host"
        ))
    }
}

/// An address of the container networking service.
pub(super) fn cns_url(text: &str) -> Result<String, String> {
    http_url(text, "http://localhost:10090")
}

fn http_url(text: &str, example: &str) -> Result<String, String> {
    let uri = text.parse::<hyper::Uri>().ok();
    let secret = |uri: &hyper::Uri| {
        uri.query().is_some() || uri.authority().is_some_and(|a| a.as_str().contains('@'))
    };
    // Settings are shown, in the log and in `/status`; so the message does not show this one.
    if uri.as_ref().is_some_and(secret) {
        return Err(
            "an address with a user, a password or a query is not taken, as settings are shown; leave that out".to_owned(),
        );
    }
    let good = uri.is_some_and(|uri| {
        uri.scheme_str() == Some("http") && uri.host().is_some_and(|h| !h.is_empty())
    });
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "'{text}' is no http address; write for example {example}"
        ))
    }
}

/// An address of an OTLP collector; empty: none.
pub(super) fn otlp_url(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    http_url(text, "http://127.0.0.1:4318")
}

pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let Ok(net) = IpNet::from_str(text) else {
        return Err(match std::net::IpAddr::from_str(text) {
            Ok(std::net::IpAddr::V4(a)) => {
                format!("'{text}' has no prefix length; for the one address write {a}/32")
            }
            Ok(std::net::IpAddr::V6(a)) => {
                format!("'{text}' has no prefix length; for the one address write {a}/128")
            }
            Err(_) => format!(
                "'{text}' is not a CIDR; write for example 10.244.0.0/16 or fd00:10:244::/56"
            ),
        });
    };
    if net.trunc() != net {
        return Err(format!(
            "'{text}' has bits set beyond its prefix; write {}",
            net.trunc()
        ));
    }
    Ok(net)
}

pub(super) fn named_cidr(text: &str) -> Result<(String, IpNet), String> {
    let Some((name, net)) = text.split_once('=') else {
        return Err(format!(
            "'{text}' is not NAME=CIDR; write for example onprem=10.50.0.0/16"
        ));
    };
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
        return Err(format!(
            "'{name}' cannot be a range's name: it becomes a label value, so it takes up to 63 of a-z 0-9 _ - ."
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!(
            "the name '{name}' has a meaning of its own in labels; take another"
        ));
    }
    Ok((name.to_owned(), cidr(net)?))
}

pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    IpAddr::from_str(text)
        .map_err(|_| format!("'{text}' is not an address; write for example 20.99.1.1"))
}

pub(super) fn api_server(text: &str) -> Result<SocketAddr, String> {
    SocketAddr::from_str(text).map_err(|_| {
        format!(
            "'{text}' is not ADDRESS:PORT; write for example 10.224.0.200:443 or [fd00::200]:443"
        )
    })
}

pub(super) fn interface(text: &str) -> Result<String, String> {
    let pattern = crate::node::pattern::Pattern::new(text)?;
    if pattern.is_glob() {
        return Err(format!("'{text}' is a pattern; an uplink is named in full"));
    }
    Ok(text.to_owned())
}

pub(super) fn number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| format!("'{text}' is not a whole number from {least} to {most}"))
}

/// A number, or nothing.
pub(super) fn optional(text: &str, least: u32, most: u32) -> Result<Option<u32>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    number(text, least, most).map(Some)
}

/// `why`: what the power of two is for.
pub(super) fn power_of_two(text: &str, least: u32, most: u32, why: &str) -> Result<u32, String> {
    let n = number(text, least, most).map_err(|e| format!("{e} that is a power of two: {why}"))?;
    if !n.is_power_of_two() {
        let above = n.next_power_of_two();
        return Err(format!(
            "{n} is not a power of two: {why}; the nearest are {} and {above}",
            above / 2
        ));
    }
    Ok(n)
}

pub(super) fn time(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    if (least..=most).contains(&time) {
        Ok(time)
    } else {
        Err(format!(
            "{} is not from {} to {}",
            duration::show(time),
            duration::show(least),
            duration::show(most)
        ))
    }
}

pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

pub(super) fn choice<T>(
    text: &str,
    names: &[&'static str],
    from_name: fn(&str) -> Option<T>,
) -> Result<T, String> {
    from_name(text).ok_or_else(|| {
        format!(
            "'{text}' is none of {}{}",
            names.join(", "),
            suggest::hint(text, names.iter().copied())
        )
    })
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    let wrong = |why: &str| {
        format!(
            "'{text}' is neither a level (off, error, warn, info, debug, trace) nor a list of \
             target=level: {why}"
        )
    };
    // A word alone would be taken for a target, and silence everything else.
    let level = |part: &str| {
        !part.is_empty()
            && part
                .parse::<tracing_subscriber::filter::LevelFilter>()
                .is_ok()
    };
    // The parser (tracing-subscriber 0.3.23, `Directive::parse`) takes a directive with a blank before it for one that begins
    // a character later, and may so cut a longer character in two, which ends the process. No target of ours has any.
    if let Some(c) = text.chars().find(|c| !c.is_ascii()) {
        return Err(wrong(&format!("no target has a '{c}'")));
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    if let Some(word) = parts
        .iter()
        .find(|part| !part.contains('=') && !level(part))
    {
        return Err(wrong(&format!("'{word}' is no level")));
    }
    let filter = parts.join(",");
    tracing_subscriber::EnvFilter::builder()
        .parse(&filter)
        .map(|_| filter)
        .map_err(|e| wrong(&e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_cidr_is_answered_with_the_right_one() {
        assert!(
            cidr("10.244.1.5/16")
                .unwrap_err()
                .contains("write 10.244.0.0/16")
        );
        assert!(
            cidr("10.244.0.0")
                .unwrap_err()
                .contains("write 10.244.0.0/32")
        );
        assert!(cidr("fd00::1").unwrap_err().contains("write fd00::1/128"));
        assert!(cidr("10.244.0.0/33").unwrap_err().contains("not a CIDR"));
        assert!(cidr("pods").unwrap_err().contains("not a CIDR"));
    }

    #[test]
    fn powers_of_two_are_explained_with_the_nearest() {
        let e = power_of_two("1000", 4, 4096, "cells are found by hash").unwrap_err();
        assert!(e.contains("512 and 1024") && e.contains("by hash"), "{e}");
        assert!(
            power_of_two("3", 4, 4096, "x")
                .unwrap_err()
                .contains("from 4 to 4096")
        );
        assert_eq!(power_of_two("4096", 4, 4096, "x"), Ok(4096));
    }

    #[test]
    fn names_of_ranges_become_labels() {
        assert!(named_cidr("onprem=10.50.0.0/16").is_ok());
        assert!(
            named_cidr("10.50.0.0/16")
                .unwrap_err()
                .contains("NAME=CIDR")
        );
        assert!(
            named_cidr("On Prem=10.50.0.0/16")
                .unwrap_err()
                .contains("label")
        );
        assert!(
            named_cidr("internet=10.50.0.0/16")
                .unwrap_err()
                .contains("meaning")
        );
    }

    #[test]
    fn choices_list_themselves() {
        let e = choice(
            "tcxx",
            crate::config::Attach::NAMES,
            crate::config::Attach::from_name,
        )
        .unwrap_err();
        assert_eq!(
            e,
            "'tcxx' is none of auto, tcx, clsact; did you mean 'tcx'?"
        );
    }

    #[test]
    fn a_socket_has_a_name() {
        assert!(socket("/run/aksnet/agent.sock").is_ok());
        for nowhere in ["", "/", "/run/aksnet/", ".."] {
            assert!(socket(nowhere).is_err(), "{nowhere:?}");
        }
    }

    #[test]
    fn an_address_with_a_secret_in_it_is_neither_taken_nor_repeated() {
        for url in ["http://me:hunter2@host:1", "http://host/?token=hunter2"] {
            for error in [cns_url(url), otlp_url(url)].map(Result::unwrap_err) {
                assert!(
                    !error.contains("hunter2") && error.contains("leave"),
                    "{error}"
                );
            }
        }
        assert!(otlp_url("http://127.0.0.1:4318/otlp").is_ok());
        assert!(otlp_url("x").unwrap_err().contains("4318"));
        assert!(cns_url("x").unwrap_err().contains("10090"));
    }

    #[test]
    fn log_filters_are_checked_before_they_are_used() {
        assert!(log_filter("info").is_ok());
        assert!(log_filter("warn,aksnet_agent=debug").is_ok());
        assert!(log_filter("a=b=c").is_err());
        assert_eq!(
            log_filter(" warn, aksnet_agent=debug ").unwrap(),
            "warn,aksnet_agent=debug"
        );
        // It ended the process: a blank, and a letter of two bytes where a level is cut off.
        let error = log_filter(" info,a\u{e9}=debug").unwrap_err();
        assert!(error.contains("no target has a '\u{e9}'"), "{error}");
        for misspelt in ["loud", "Infos", "warn,aksnet_agent", ""] {
            assert!(log_filter(misspelt).is_err(), "{misspelt:?}");
        }
    }
}
