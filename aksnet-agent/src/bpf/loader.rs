//! Loads the embedded object: maps once, then each program by itself, so that one that this kernel refuses
//! does not take the others with it.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use aksnet_common::{
    flow::{Sampling, WAYS},
    probe_config::{Settings, global},
};
use anyhow::{Context as _, Result, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{BtfTracePoint, SchedClassifier},
};
use tracing::debug;

use super::{
    attach::Attacher,
    kernel::{self, Kernel},
    maps::MapSource,
    status::ProgramState,
};
use crate::config::Attach;

/// The BPF object that `build.rs` compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/aksnet.bpf.o"));

/// The tc programs of the object: ENTER at tc ingress, EXIT at tc egress.
pub const CLASSIFIERS: [&str; 6] = [
    "aksnet_enter_pod",
    "aksnet_exit_pod",
    "aksnet_enter_uplink",
    "aksnet_exit_uplink",
    "aksnet_enter_uplink_ip",
    "aksnet_exit_uplink_ip",
];
/// The program on the tracepoint `kfree_skb`.
pub const DROP: &str = "aksnet_drop";

/// [`WAYS`], as map sizes are counted.
#[expect(clippy::cast_possible_truncation, reason = "it is 4")]
const CELLS_PER_BUCKET: u32 = WAYS as u32;

/// How the datapath is to be set up.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Cells in the flow table: a power of two, at least 4.
    pub flow_cells: u32,
    /// Entries in each of the two spill maps.
    pub spill_entries: u32,
    /// Entries in each of the two drop maps.
    pub drop_entries: u32,
    /// One packet in this many is timed: a power of two; 1 times every packet.
    pub sample: u32,
    /// This many first packets of a flow are always timed.
    pub first_packets: u32,
    /// Which kind of tc link.
    pub attach: Attach,
    /// Level of the datapath's own log lines; 0 none, 1 error … 5 trace.
    pub log_level: u8,
    /// Seed of the flow hash; `None` for a random one.
    pub hash_seed: Option<u64>,
    /// The network namespace whose drops count; `None` for the agent's own.
    pub netns: Option<u32>,
    /// Further programs of the object, which only benchmarks load: the loader keeps no map open for later.
    pub further: &'static [&'static str],
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            flow_cells: 65_536,
            spill_entries: 8_192,
            drop_entries: 8_192,
            sample: 64,
            first_packets: 2,
            attach: Attach::Auto,
            log_level: 0,
            hash_seed: None,
            netns: None,
            further: &[],
        }
    }
}

/// The kernel side, loaded.
pub struct Loaded {
    /// Attaches the programs and knows their state.
    pub attacher: Attacher,
    /// Reads the maps.
    pub source: MapSource,
    /// What the running kernel says of itself.
    pub kernel: Kernel,
}

/// Loads the object into the kernel.
///
/// # Errors
/// When the options are out of range, the kernel has no BTF, a map cannot be created, or not one of the tc
/// programs loads.
pub fn load(options: &LoadOptions) -> Result<Loaded> {
    check(options)?;
    let kernel = Kernel::read()?;
    let sampling = Sampling {
        mask: options.sample - 1,
        first: options.first_packets,
    };
    let settings = Settings {
        hash_seed: options.hash_seed.unwrap_or_else(random_seed),
        bucket_mask: options.flow_cells / CELLS_PER_BUCKET - 1,
        sample_mask: sampling.mask,
        first_packets: sampling.first,
        netns: match options.netns {
            Some(inode) => inode,
            None => kernel::own_netns()?,
        },
        netfilter_drop: kernel.reason_number("netfilter_drop").unwrap_or(0),
        not_specified: kernel.not_specified(),
        noise: kernel.noise,
    };
    let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .override_global(global::SETTINGS, &settings, true)
        .override_global(global::OFFSETS, &kernel.offsets, true)
        .override_global(aya_log::LEVEL, &options.log_level, true)
        .map_max_entries("FLOWS", options.flow_cells / CELLS_PER_BUCKET)
        .map_max_entries("TIMES", options.flow_cells)
        .map_max_entries("PASSAGES", kernel::possible_cpus()?)
        .map_max_entries("SPILL_0", options.spill_entries)
        .map_max_entries("SPILL_1", options.spill_entries)
        .map_max_entries("DROPS_0", options.drop_entries)
        .map_max_entries("DROPS_1", options.drop_entries)
        .load(OBJECT)
        .context("cannot create the BPF maps")?;

    let mut programs = Vec::new();
    let mut first_error = None;
    for name in CLASSIFIERS {
        let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
        let state = match program.load() {
            Ok(()) => ProgramState::Loaded,
            Err(error) => {
                let text = short(&error);
                first_error.get_or_insert_with(|| format!("{name}: {text}"));
                ProgramState::Failed(text)
            }
        };
        programs.push((name, state));
    }
    if !programs
        .iter()
        .any(|(_, state)| *state == ProgramState::Loaded)
    {
        bail!(
            "the kernel refuses the tc programs: {}",
            first_error.unwrap_or_default()
        );
    }
    programs.push((DROP, load_drop(&mut ebpf, &kernel, &btf)?));
    for name in options.further {
        let program: &mut SchedClassifier = ebpf.program_mut(name).context(*name)?.try_into()?;
        program.load()?;
    }
    let source = MapSource::take(&mut ebpf, options.flow_cells, sampling)?;
    let attacher = Attacher::new(ebpf, programs, options.attach)?;
    Ok(Loaded {
        attacher,
        source,
        kernel,
    })
}

/// Gives memory back that reading the kernel's types and names took for a moment: several megabytes, which the
/// allocator would keep for the rest of the agent's life.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A seed that nobody outside can guess.
#[must_use]
pub fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn load_drop(ebpf: &mut Ebpf, kernel: &Kernel, btf: &Btf) -> Result<ProgramState> {
    if !kernel.has_drop_tracepoint {
        return Ok(ProgramState::Unsupported(
            "no tracepoint kfree_skb in the kernel's BTF".to_owned(),
        ));
    }
    let program: &mut BtfTracePoint = ebpf.program_mut(DROP).context(DROP)?.try_into()?;
    Ok(match program.load("kfree_skb", btf) {
        Ok(()) => ProgramState::Loaded,
        Err(error) => ProgramState::Failed(short(&error)),
    })
}

/// An error with its causes in one line: the verifier's log is pages long, its last lines say why.
fn short(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    debug!(%text, "the kernel's whole answer");
    first_and_telling(&text)
}

/// The error and the line of the verifier's log that says why: the last one before its statistics.
fn first_and_telling(text: &str) -> String {
    const STATISTICS: [&str; 4] = [
        "processed ",
        "verification time ",
        "stack depth ",
        "max_states_per_insn ",
    ];
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !STATISTICS.iter().any(|s| line.starts_with(s)))
        .collect();
    match lines.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first, .., last] => format!("{first} … {last}"),
    }
}

fn check(options: &LoadOptions) -> Result<()> {
    if !options.flow_cells.is_power_of_two()
        || options.flow_cells < CELLS_PER_BUCKET
        || options.flow_cells > 1 << 24
    {
        bail!(
            "flow-cells must be a power of two from 4 to 16777216, not {}",
            options.flow_cells
        );
    }
    if !options.sample.is_power_of_two() {
        bail!(
            "sample must be a power of two (1 times every packet, 64 one in 64), not {}",
            options.sample
        );
    }
    if options.spill_entries == 0 || options.drop_entries == 0 {
        bail!("spill-entries and drop-entries must be at least 1");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_the_datapath_cannot_have_are_named() {
        for cells in [0, 2, 3, 65_535, 1 << 25] {
            let error = check(&LoadOptions {
                flow_cells: cells,
                ..LoadOptions::default()
            })
            .expect_err("out of range");
            assert!(error.to_string().contains(&cells.to_string()), "{error}");
        }
        let error = check(&LoadOptions {
            sample: 10,
            ..LoadOptions::default()
        })
        .expect_err("not a power of two");
        assert!(error.to_string().contains("sample"), "{error}");
        check(&LoadOptions::default()).expect("the defaults are in range");
    }

    #[test]
    fn of_the_verifiers_answer_the_reason_is_kept() {
        let text = "the BPF_PROG_LOAD syscall returned Permission denied (os error 13). Verifier output: 0: R1=ctx()\n\
                    114: (4f) r1 |= r0\n\
                    R1 pointer arithmetic on map_value_or_null prohibited, null-check it first\n\
                    verification time 660 usec\nstack depth 192+0+0\n\
                    processed 109 insns (limit 1000000) max_states_per_insn 0\n\n";
        let short = first_and_telling(text);
        assert!(short.starts_with("the BPF_PROG_LOAD syscall"), "{short}");
        assert!(short.ends_with("null-check it first"), "{short}");
    }
}
