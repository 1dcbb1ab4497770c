//! Log lines: `tracing` on standard error, for people or as JSON. What the datapath says through `aya-log`
//! and the netlink crates through `log` ends up in the same place.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{BpfLog, Config, LogFormat};

/// Starts logging as the config says. A second call changes nothing.
pub fn init(config: &Config) {
    // The filter was checked when the config was read; should it still be refused, log by default.
    let filter = EnvFilter::builder()
        .parse(directives(&config.log, config.bpf_log))
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

/// The modules of the BPF crate, as they stand before what they log. Not the agent's own: those are `aksnet_agent::`.
const DATAPATH: &str = "aksnet::";

/// The netlink crates log every message that they do not fully know, which newer kernels always send; aya logs each
/// relocation. What the datapath was told to say is let through whatever the agent's own level.
fn directives(log: &str, bpf_log: BpfLog) -> String {
    let mut all = log.to_owned();
    if !log.contains("netlink") {
        all.push_str(",netlink_proto=error,netlink_packet_route=error,netlink_packet_core=error");
    }
    // aya_obj, too: a directive holds for all targets that begin so.
    if !log.contains("aya") {
        all.push_str(",aya=warn");
    }
    // It has an error line for each request that fails: the watches have one for each outage.
    if !log.contains("kube_client") {
        all.push_str(",kube_client=off");
    }
    if bpf_log != BpfLog::Off && log != "off" && !log.contains(DATAPATH) {
        all = format!("{all},{DATAPATH}={}", bpf_log.name());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_clients_own_lines_are_left_out_unless_asked_for() {
        assert!(directives("debug", BpfLog::Off).contains("kube_client=off"));
        let asked = directives("info,kube_client=debug", BpfLog::Off);
        assert!(!asked.contains("kube_client=off"), "{asked}");
    }

    #[test]
    fn directives_stay_valid() {
        for log in [
            "info",
            "off",
            "warn,aksnet_agent=debug",
            "netlink_proto=trace",
            "kube_client=debug",
        ] {
            for bpf_log in [BpfLog::Off, BpfLog::Error, BpfLog::Debug] {
                let all = directives(log, bpf_log);
                let filter = EnvFilter::builder().parse(&all).unwrap();
                let says = filter.to_string().contains("aksnet::=");
                assert_eq!(says, bpf_log != BpfLog::Off && log != "off", "{filter}");
            }
        }
    }
}
