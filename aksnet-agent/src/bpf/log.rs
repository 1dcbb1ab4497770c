//! The datapath's own log lines (`aya-log`), passed on to `tracing`. Off by default: then the verifier removes
//! the code for them from the programs.

use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use super::Attacher;

/// Passes on what the programs log, for as long as the runtime lives. Must be called within one.
pub fn follow(attacher: &mut Attacher) {
    let logger = EbpfLogger::init(attacher.ebpf())
        .map_err(anyhow::Error::from)
        // SAFETY: the logger owns the ring buffer's descriptor, gives the same one at every call, and closes it
        // only when it is dropped.
        .and_then(|logger| Ok(unsafe { AsyncFd::register(logger) }?));
    match logger {
        Ok(mut logger) => {
            tokio::spawn(async move {
                while let Ok(mut ready) = logger.readable_mut().await {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
            });
        }
        Err(error) => tracing::warn!("bpf_log: cannot read the datapath's log: {error:#}"),
    }
}
