//! Real guests that do not do as they should, on a kernel that is there already: none is downloaded for these.

use std::fs::File;
use std::time::Duration;

use anyhow::Result;
use xtask::vm::{
    self, guest,
    kernel::Kernel,
    machine::{End, Machine, Patience},
    verdict::Verdict,
    work::Program,
};

/// Boots a guest that runs this shell command as its only program, with the host's root alone.
fn guest(command: &str, silence: Duration) -> Result<Option<(Verdict, End)>> {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the kernels are for x86-64");
        return Ok(None);
    }
    let cache = vm::cache()?;
    let Some(kernel) = vm::USUAL
        .into_iter()
        .find_map(|s| Kernel::cached(s, &cache))
    else {
        println!("skipped: no kernel is in the cache yet (`cargo xtask vm` downloads it)");
        return Ok(None);
    };
    let program = Program {
        name: "odd".to_owned(),
        path: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), command.to_owned()],
        environment: Vec::new(),
    };
    let place = tempfile::tempdir()?;
    let (initramfs, log) = (place.path().join("initramfs"), place.path().join("log"));
    let script = guest::script(&[], &[program]);
    guest::write(File::create(&initramfs)?, &kernel, &script)?;
    let machine = Machine {
        kernel: &kernel.image,
        initramfs: &initramfs,
        log: &log,
        shares: &[],
    };
    let patience = Patience {
        whole: Duration::from_mins(10),
        silence,
    };
    let mut verdict = Verdict::default();
    let end = machine.run(patience, |line| verdict.hear(line))?;
    Ok(Some((verdict, end)))
}

#[test]
fn a_guest_that_hangs_is_ended_and_told() -> Result<()> {
    // Longer than it takes to boot, on a machine with much else to do.
    let silence = Duration::from_mins(2);
    let Some((verdict, end)) = guest("echo 'test first ... ok'; sleep 100000", silence)? else {
        return Ok(());
    };
    assert_eq!(end, End::Silent(silence));
    assert_eq!(verdict.programs[0].passed, ["first"]);
    assert_eq!(
        verdict.failures(1),
        ["odd: did not end", "the guest did not come to its end"]
    );
    Ok(())
}

#[test]
fn a_kernel_that_panics_ends_at_once_and_is_told() -> Result<()> {
    let command = "echo c > /proc/sysrq-trigger";
    let Some((verdict, end)) = guest(command, Duration::from_mins(5))? else {
        return Ok(());
    };
    assert_eq!(end, End::Off);
    assert!(verdict.failures(1).contains(&"odd: did not end".to_owned()));
    Ok(())
}

#[test]
fn a_test_that_fails_is_told_and_the_guest_goes_on_to_its_end() -> Result<()> {
    let command = "echo 'test one ... FAILED'; exit 101";
    let Some((verdict, end)) = guest(command, Duration::from_mins(5))? else {
        return Ok(());
    };
    assert_eq!(end, End::Off);
    assert_eq!(verdict.failures(1), ["odd: one failed"]);
    Ok(())
}
