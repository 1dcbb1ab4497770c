//! What the agent needs before it can do anything: capabilities, and the kernel's type information. Asked
//! for first, so that a missing one is named rather than met as `EPERM` from some system call.

use std::path::Path;

use caps::CapSet;

use crate::{
    config::Config,
    exit::{Exit, Failure},
};

/// Where the kernel publishes its types.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Makes effective what this process is permitted. Another user than root has the capabilities of the binary's file
/// (as the container image's binary has them) as permitted ones only: were they effective from the start, the kernel would
/// refuse to execute the file wherever one of them is not granted, and nobody would say which.
///
/// To be called before any thread is started: each has capabilities of its own, from the one that starts it. What cannot
/// be had is left to [`check`] to name.
pub fn raise() {
    let Ok(permitted) = caps::read(None, CapSet::Permitted) else {
        return;
    };
    if caps::read(None, CapSet::Effective).is_ok_and(|effective| effective != permitted) {
        let _left_to_check = caps::set(None, CapSet::Effective, &permitted);
    }
}

/// Checks this process and this kernel.
///
/// # Errors
/// Names what is missing and how to grant it.
pub fn check() -> Result<(), Failure> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Without /proc there is no telling; the system calls will.
    if let Some(effective) = effective_capabilities(&status) {
        permitted(effective)?;
    }
    btf(Path::new(BTF))
}

/// Checks whether this process may capture packets, which takes less.
///
/// # Errors
/// Names what is missing and how to grant it.
pub fn check_capture() -> Result<(), Failure> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective_capabilities(&status) {
        Some(effective) if effective & (1 << CAP_NET_RAW) == 0 => Err(Failure::new(
            Exit::NoPermission,
            "CAP_NET_RAW missing, which --capture needs: run as root (sudo aksnet-agent ...), or in Kubernetes add \
             [NET_RAW] to the container's securityContext.capabilities.add, or grant the binary its own with `setcap \
             cap_net_raw+ep aksnet-agent`",
        )),
        _ => Ok(()),
    }
}

/// As the config has it: for programs, or for capturing.
///
/// # Errors
/// As [`check`].
pub fn check_for(config: &Config) -> Result<(), Failure> {
    if config.capture {
        check_capture()
    } else {
        check()
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn permitted(effective: u64) -> Result<(), Failure> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    let mut missing = Vec::new();
    if !has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    // CAP_SYS_ADMIN contains the two that 5.8 split off from it.
    for (capability, name) in [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")] {
        if !has(capability) && !has(CAP_SYS_ADMIN) {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(", ");
    let short = names.replace("CAP_", "");
    let file = format!("{}+ep", names.to_lowercase().replace(", ", ","));
    Err(Failure::new(
        Exit::NoPermission,
        format_args!(
            "{names} missing: run as root (sudo aksnet-agent ...), or in Kubernetes add \
             [{short}] to the container's securityContext.capabilities.add, or grant the \
             binary its own with `setcap {file} aksnet-agent`"
        ),
    ))
}

fn btf(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::OsFile,
        format_args!(
            "this kernel has no BTF ({} is not there), from which the agent reads the layout of the \
             kernel's structures: boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (AKS's node images \
             have it), and in a container mount the host's /sys",
            path.display()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_how_to_grant_it() {
        let e = permitted(1 << CAP_NET_ADMIN).unwrap_err();
        assert_eq!(e.exit, Exit::NoPermission);
        let text = e.to_string();
        assert!(text.starts_with("CAP_BPF, CAP_PERFMON missing: "), "{text}");
        assert!(text.contains("add [BPF, PERFMON] to"), "{text}");
        assert!(text.contains("setcap cap_bpf,cap_perfmon+ep"), "{text}");
    }

    #[test]
    fn sys_admin_stands_for_the_two_it_was_split_into() {
        assert!(permitted(1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN).is_ok());
        assert!(permitted(1 << CAP_NET_ADMIN | 1 << CAP_BPF | 1 << CAP_PERFMON).is_ok());
        assert!(
            permitted(1 << CAP_SYS_ADMIN)
                .unwrap_err()
                .to_string()
                .starts_with("CAP_NET_ADMIN missing")
        );
    }

    #[test]
    fn a_kernel_without_btf_is_told_apart() {
        let e = btf(Path::new("/nonexistent/btf")).unwrap_err();
        assert_eq!(e.exit, Exit::OsFile);
        assert!(e.to_string().contains("CONFIG_DEBUG_INFO_BTF=y"));
    }
}
