//! What only some *kernels* can be asked: those that have the modules for it. Debian's have them, in `cargo xtask vm`;
//! elsewhere each says what is not there.

mod delay;

mod drops;

mod ipvs;

mod types;

use std::path::Path;

/// The right to go on where the kernel can do this, else says that it cannot.
fn can(what: &str, tried: bool) -> bool {
    if !tried {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        println!("skipped: {} has no {what}", release.trim());
    }
    tried
}

/// Whether a module is loaded.
fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module")
        .join(module)
        .join("initstate")
        .exists()
}
