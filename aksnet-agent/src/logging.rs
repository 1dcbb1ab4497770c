//! Log lines: `tracing` on standard error, for people or as JSON. What the datapath says through `aya-log`
//! and the netlink crates through `log` ends up in the same place.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Starts logging as the config says. A second call changes nothing.
pub fn init(config: &Config) {
    // The filter was checked when the config was read; should it still be refused, log by default.
    let filter = EnvFilter::builder()
        .parse(directives(&config.log))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error means that logging was already started, by a test for instance.
    let _already = match config.log_format {
        LogFormat::Human => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// The netlink crates log every message that they do not fully know, which newer kernels always send.
fn directives(log: &str) -> String {
    if log.contains("netlink") {
        return log.to_owned();
    }
    format!("{log},netlink_proto=error,netlink_packet_route=error,netlink_packet_core=error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_stay_valid() {
        for log in [
            "info",
            "off",
            "warn,aksnet_agent=debug",
            "netlink_proto=trace",
        ] {
            EnvFilter::builder().parse(directives(log)).unwrap();
        }
    }
}
