//! The fuzz targets without a fuzzer: each over its seeds, whole, cut and damaged, in an ordinary build. What a fuzzer
//! found is among the seeds (`seeds/TARGET/found-*`), so that it stays mended.
//!
//! `cargo xtask fuzz` is the fuzzer.

use std::{fs, path::PathBuf};

// `crate::identify` of the files that the target `policy` shares with the agent's own tests.
use reads::identify;

#[expect(unreachable_pub, reason = "in the fuzz crate it is reachable")]
#[path = "../../aksnet-common/fuzz/src/lib.rs"]
mod packets;

#[expect(unreachable_pub, reason = "in the fuzz crate it is reachable")]
#[path = "../fuzz/src/lib.rs"]
mod reads;

/// A target, and the crate that it is in.
#[derive(Clone, Copy)]
struct Target {
    name: &'static str,
    run: fn(&str, &[u8]),
    fuzz: &'static str,
}

fn targets() -> Vec<Target> {
    let packets = packets::TARGETS.iter().map(|(name, _)| Target {
        name,
        run: packets::run,
        fuzz: "aksnet-common",
    });
    let reads = reads::TARGETS.iter().map(|(name, _)| Target {
        name,
        run: reads::run,
        fuzz: "aksnet-agent",
    });
    packets.chain(reads).collect()
}

impl Target {
    fn fuzz(&self) -> PathBuf {
        let agent = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        agent.join("..").join(self.fuzz).join("fuzz")
    }
}

/// Damaged inputs of each target.
const DAMAGED: usize = 1_500;

/// A sequence that a seed determines (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }

    /// Some bytes changed, some twice there, and perhaps the end missing.
    fn damage(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes.truncate(at),
                _ => {
                    let to = (at + self.below(16)).min(bytes.len());
                    let part = bytes[at..to].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
        bytes
    }
}

fn seeds(target: &Target) -> Vec<(String, Vec<u8>)> {
    let seeds = target.fuzz().join("seeds").join(target.name);
    let mut all: Vec<_> = fs::read_dir(seeds)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), fs::read(&path).unwrap())
        })
        .collect();
    all.sort();
    assert!(!all.is_empty(), "{} has no seeds", target.name);
    all
}

/// Each in a thread of its own, as they differ in how long they take.
#[test]
fn every_target_survives_its_seeds_whole_cut_and_damaged() {
    let threads: Vec<_> = targets()
        .into_iter()
        .map(|target| {
            let run = move || {
                let seeds = seeds(&target);
                for (name, bytes) in &seeds {
                    // The last line before a panic's message names the input.
                    eprintln!("{name}");
                    (target.run)(target.name, bytes);
                }
                let mut dice = Dice(1);
                for n in 0..DAMAGED {
                    let (name, bytes) = &seeds[n % seeds.len()];
                    let damaged = dice.damage(bytes);
                    let run = || (target.run)(target.name, &damaged);
                    let survived = std::panic::catch_unwind(run).is_ok();
                    assert!(survived, "{name}, damaged: {damaged:02x?}");
                }
            };
            let name = target.name.to_owned();
            std::thread::Builder::new().name(name).spawn(run).unwrap()
        })
        .collect();
    for thread in threads {
        let name = thread.thread().name().unwrap_or_default().to_owned();
        assert!(thread.join().is_ok(), "the target {name} failed");
    }
}

/// A target that no binary gives to the fuzzer would never run.
#[test]
fn every_target_has_its_binary_and_nothing_else_has_one() {
    for of in ["aksnet-common", "aksnet-agent"] {
        let targets: Vec<Target> = targets().into_iter().filter(|one| one.fuzz == of).collect();
        let fuzz = targets[0].fuzz();
        let mut names: Vec<&str> = targets.iter().map(|one| one.name).collect();
        names.sort_unstable();
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        let value = |line: &str| {
            let name = line.strip_prefix("name = \"")?.strip_suffix('"')?;
            Some(name.to_owned())
        };
        let mut binaries: Vec<String> = manifest.lines().filter_map(value).skip(1).collect();
        binaries.sort();
        assert_eq!(binaries, names);
        for name in &names {
            let source = fuzz.join("fuzz_targets").join(format!("{name}.rs"));
            let source = fs::read_to_string(source).unwrap();
            let run = format!("run(\"{name}\", bytes)");
            assert!(source.contains(&run), "{name}");
        }
        let mut folders: Vec<String> = fs::read_dir(fuzz.join("seeds"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        folders.sort();
        assert_eq!(folders, names);
    }
}
