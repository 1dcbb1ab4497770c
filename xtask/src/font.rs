//! The *font* of what is drawn for the documentation.

use std::fs;

use anyhow::{Context as _, Result, anyhow};
use plotters::style::{FontStyle, register_font};

/// Where Debian has it, from fonts-dejavu-core: the package chromium brings it, by fontconfig.
pub const PATH: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

/// Makes it known to plotters as `sans-serif`.
///
/// # Errors
/// When it is not there.
pub fn register() -> Result<()> {
    let font = fs::read(PATH).with_context(|| format!("{PATH} (Debian: fonts-dejavu-core)"))?;
    // plotters keeps fonts for as long as the process lives.
    register_font(
        "sans-serif",
        FontStyle::Normal,
        Box::leak(font.into_boxed_slice()),
    )
    .map_err(|_| anyhow!("{PATH} is no font"))
}
