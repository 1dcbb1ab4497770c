//! What programs *cost*, by what does not depend on how busy the machine is: how much of them there is, and how often an
//! empty one could run meanwhile. What they take in nanoseconds is measured by `cargo xtask bench`.

use aksnet_agent::bpf::{DROP, LoadOptions};
use aksnet_common::packet::ACK;

use crate::{
    rig::{self, HOOKS},
    runs::{Bench, ENTER, Test, VARIED},
};

/// A program, the instructions that the verifier goes through at the most, the bytes of its instructions as the kernel has
/// translated them, and those of the machine's as it has compiled them for amd64.
///
/// A quarter above what was measured on the kernel that follows most branches (6.1, docs/kernels.md), and a quarter above
/// the lengths on 6.18.
const CEILINGS: [(&str, u32, u32, u32); 7] = [
    ("aksnet_enter_pod", 49_000, 39_000, 21_500),
    ("aksnet_enter_uplink", 49_000, 39_000, 21_500),
    ("aksnet_enter_uplink_ip", 15_000, 29_000, 15_600),
    ("aksnet_exit_pod", 79_000, 55_000, 30_200),
    ("aksnet_exit_uplink", 79_000, 55_000, 30_200),
    ("aksnet_exit_uplink_ip", 33_000, 38_000, 20_500),
    (DROP, 27_000, 36_500, 21_100),
];

/// A packet of a known flow takes so many times as long as one that only its frame is changed of, at the most.
const TIMES: f64 = 12.0;

#[test]
fn no_program_is_much_larger_than_it_was() {
    assert!(
        HOOKS
            .iter()
            .all(|hook| CEILINGS.iter().any(|(name, ..)| *name == hook.program))
    );
    rig::with(&LoadOptions::default(), |mut rig| {
        let mut larger = Vec::new();
        for (name, instructions, translated, compiled) in CEILINGS {
            let program = rig.datapath.attacher.ebpf().program(name);
            let info = program
                .expect("the object has the program")
                .info()
                .expect("the kernel describes it");
            // 0 where the kernel does not compile programs.
            let jited = cfg!(target_arch = "x86_64").then(|| info.size_jitted());
            let sizes = [
                (
                    "instructions verified",
                    info.verified_instruction_count(),
                    instructions,
                ),
                ("bytes translated", info.size_translated(), translated),
                ("bytes compiled", jited, compiled),
            ];
            for (what, found, most) in sizes {
                println!("{name}: {found:?} {what}");
                if found.is_some_and(|n| n > most) {
                    larger.push(format!("{name}: {found:?} {what}, {most} are allowed"));
                }
            }
        }
        assert!(larger.is_empty(), "{larger:#?}");
    });
}

#[test]
fn a_known_flow_costs_a_small_multiple_of_an_empty_program() {
    const FLOWS: u32 = 100;
    const REPEAT: u32 = 100_000;
    rig::with(&LoadOptions::default(), |_| {
        let test = Test::tcp(ACK).flows(FLOWS);
        let mut bench = Bench::start(&LoadOptions::default()).expect("programs load");
        let mut run = |name: &'static str, repeat| {
            bench
                .run_flows(name, &test, repeat)
                .expect("the program runs")
        };
        // The first four packets of a flow are timed.
        run(ENTER, 5 * FLOWS);
        // The best of several: whatever else the machine does makes a run longer, never shorter.
        let [empty, enter] = [VARIED, ENTER].map(|name| {
            let rounds = (0..10).map(|_| run(name, REPEAT));
            rounds.fold(f64::MAX, f64::min)
        });
        println!("{enter} ns, and {empty} ns without");
        assert!(
            empty > 0.0 && enter < TIMES * empty,
            "{enter} ns, and {empty} ns without"
        );
    });
}
