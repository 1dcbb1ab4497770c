//! The pages that readers have: the command line's is as the command line, and every link leads somewhere.

use std::path::Path;

#[test]
fn pages_are_up_to_date_and_links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let agent = Path::new(env!("CARGO_BIN_EXE_aksnet-agent"));
    if let Err(error) = xtask::docs::run(root, agent, true) {
        panic!("{error:#}");
    }
}
