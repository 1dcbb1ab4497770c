//! smoke
use aya::{EbpfLoader, VerifierLogLevel, programs::SchedClassifier};
#[test]
fn stats() {
    let obj = std::fs::read(std::env::var("OBJ").unwrap()).unwrap();
    let k = aksnet_agent::bpf::kernel::Kernel::read().unwrap();
    let settings = aksnet_common::probe_config::Settings::default();
    let mut e = EbpfLoader::new()
        .override_global("SETTINGS", &settings, true)
        .override_global("OFFSETS", &k.offsets, true)
        .override_global(
            "AYA_LOG_LEVEL",
            &std::env::var("LL").map_or(0u8, |v| v.parse().unwrap()),
            true,
        )
        .map_max_entries("FLOWS", 16384)
        .map_max_entries("TIMES", 65536)
        .map_max_entries("PASSAGES", 2)
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(&obj)
        .unwrap();
    let btf = aya::Btf::from_sys_fs().unwrap();
    for n in [
        "aksnet_enter_pod",
        "aksnet_exit_pod",
        "aksnet_enter_uplink_ip",
        "aksnet_drop",
    ] {
        let t = std::time::Instant::now();
        let r = if n == "aksnet_drop" {
            let p: &mut aya::programs::BtfTracePoint =
                e.program_mut(n).unwrap().try_into().unwrap();
            p.load("kfree_skb", &btf)
        } else {
            let p: &mut SchedClassifier = e.program_mut(n).unwrap().try_into().unwrap();
            p.load()
        };
        match r {
            Ok(()) => println!("{n} ok {:?}", t.elapsed()),
            Err(x) => {
                let s = format!("{x}");
                let l: Vec<_> = s.lines().collect();
                println!("{n} {:?} lines {}", t.elapsed(), l.len());
                for x in &l[l.len().saturating_sub(25)..] {
                    println!("  {x}");
                }
            }
        }
    }
}
use aksnet_agent::bpf::{self, LoadOptions};
use aksnet_agent::collect::source::Source as _;
use aya::programs::{TestRun as _, TestRunOptions};
#[test]
fn loads() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .init();
    let mut d = bpf::load(&LoadOptions::default()).expect("load");
    d.attacher.attach_drops();
    for p in d.attacher.programs() {
        println!("{p:?}");
    }
    let mut f = vec![0u8; 54];
    f[12] = 8;
    f[14] = 0x45;
    f[17] = 40;
    f[23] = 6;
    f[26] = 10;
    f[30] = 11;
    f[46] = 0x50;
    f[47] = 0x10;
    for (n, prog) in [("aksnet_enter_pod", true), ("aksnet_exit_pod", false)] {
        let _ = prog;
        for syn in [0x10u8, 2] {
            f[47] = syn;
            let p: &mut SchedClassifier = d
                .attacher
                .ebpf()
                .program_mut(n)
                .unwrap()
                .try_into()
                .unwrap();
            let mut o = TestRunOptions::new();
            o.data_in = Some(&f);
            o.repeat = 100_000;
            let r = p.test_run(o).unwrap();
            println!("{n} {syn} ret {} {:?}", r.return_value as i32, r.duration);
        }
    }
    for c in 0..d.source.cells() {
        if d.source.state(c) != 0 {
            println!("{c} {:?} {:?}", d.source.hot(c), d.source.cold(c));
        }
    }
    println!("{:?}", d.source.totals().unwrap());
}
