//! Links: which program runs on which interface. tcx where the kernel has it, first in order, so that no
//! other program can hide a packet; else a filter on the clsact qdisc, where what a killed agent left is
//! found by name and replaced.

use std::collections::HashMap;

use aksnet_common::{drops::WATCHED_BRIDGE, packet::Link, stats::Role};
use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::MapData,
    programs::{
        BtfTracePoint, Link as _, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
    },
};
use nix::errno::Errno;

use super::{
    attach_error::AttachError,
    datapath::Datapath,
    loader::DROP,
    status::{ProgramState, ProgramStatus},
};
use crate::{config::Attach, node::interface::Interface};

/// A program and what became of it.
struct Program {
    name: &'static str,
    state: ProgramState,
    /// On how many interfaces it runs.
    interfaces: usize,
}

struct Attached {
    links: [SchedClassifierLink; 2],
    programs: [&'static str; 2],
    watched: Vec<u32>,
}

/// The programs and where they are attached.
pub struct Attacher {
    ebpf: Ebpf,
    programs: Vec<Program>,
    watched: aya::maps::HashMap<MapData, u32, u32>,
    /// How many attached interfaces ask for an entry in `watched`: a bridge has many ports.
    watchers: HashMap<u32, usize>,
    attached: HashMap<u32, Attached>,
    mode: Attach,
}

/// The filter's priority and handle on a clsact qdisc: ahead of others, and the same after a restart.
const PRIORITY: u16 = 1;
const HANDLE: tc::TcHandle = tc::TcHandle::new(0, 0xa5);

impl Attacher {
    /// Takes over the loaded object.
    ///
    /// # Errors
    /// When the object lacks a map.
    pub fn new(
        mut ebpf: Ebpf,
        programs: Vec<(&'static str, ProgramState)>,
        mode: Attach,
    ) -> Result<Self> {
        let watched = ebpf
            .take_map("WATCHED")
            .context("the BPF object has no map WATCHED")?
            .try_into()?;
        let programs = programs
            .into_iter()
            .map(|(name, state)| Program {
                name,
                state,
                interfaces: 0,
            })
            .collect();
        Ok(Self {
            ebpf,
            programs,
            watched,
            watchers: HashMap::new(),
            attached: HashMap::new(),
            mode,
        })
    }

    /// Attaches the drop tracepoint. Where the kernel does not have it or refuses it, that is the program's
    /// state, not an error.
    pub fn attach_drops(&mut self) {
        let Some(drop) = self.programs.iter_mut().find(|p| p.name == DROP) else {
            return;
        };
        if drop.state != ProgramState::Loaded {
            return;
        }
        let program: Result<&mut BtfTracePoint, ProgramError> = self
            .ebpf
            .program_mut(DROP)
            .map_or(Err(ProgramError::NotLoaded), TryInto::try_into);
        match program.and_then(BtfTracePoint::attach) {
            Ok(_) => drop.state = ProgramState::Attached,
            Err(error) => drop.state = ProgramState::Failed(text(&error)),
        }
    }

    fn watch(&mut self, target: &Interface) -> Result<(), AttachError> {
        self.unwatch(target.index);
        let programs = match (target.role, target.link) {
            (Role::Pod, Link::Ethernet) => ["aksnet_enter_pod", "aksnet_exit_pod"],
            (Role::Uplink, Link::Ethernet) => ["aksnet_enter_uplink", "aksnet_exit_uplink"],
            (Role::Uplink, Link::Ip) => ["aksnet_enter_uplink_ip", "aksnet_exit_uplink_ip"],
            (Role::Pod, Link::Ip) => {
                return Err(AttachError::Unsupported(
                    "a pod interface without a link layer".to_owned(),
                ));
            }
        };
        // EXIT first: a packet that enters while only ENTER runs would look as if it had never left.
        let exit = self.link(target, programs[1], TcAttachType::Egress)?;
        let enter = self.link(target, programs[0], TcAttachType::Ingress)?;
        let bridge = target.bridge.map(|bridge| (bridge, WATCHED_BRIDGE));
        let watched: Vec<(u32, u32)> = std::iter::once((target.index, target.bridge.unwrap_or(0)))
            .chain(bridge)
            .collect();
        for &(index, value) in &watched {
            let users = self.watchers.entry(index).or_default();
            *users += 1;
            if *users == 1 {
                self.watched
                    .insert(index, value, 0)
                    .map_err(|e| AttachError::Rejected(text(&e)))?;
            }
        }
        let watched = watched.into_iter().map(|(index, _)| index).collect();
        let links = [exit, enter];
        self.attached.insert(
            target.index,
            Attached {
                links,
                programs,
                watched,
            },
        );
        self.count_attached();
        Ok(())
    }

    fn unwatch(&mut self, index: u32) {
        let Some(attached) = self.attached.remove(&index) else {
            return;
        };
        for link in attached.links {
            if let Err(error) = link.detach() {
                // The interface is gone with its filters, or somebody removed ours: either way it is detached.
                tracing::debug!(index, error = text(&error), "a link was gone already");
            }
        }
        for index in attached.watched {
            if let Some(users) = self.watchers.get_mut(&index) {
                *users -= 1;
                if *users == 0 {
                    self.watchers.remove(&index);
                    // An entry that is gone already is as good as removed.
                    let _ = self.watched.remove(&index);
                }
            }
        }
        self.count_attached();
    }

    /// Detaches everything, the tracepoint too: after this no program runs any more.
    pub fn detach_all(&mut self) {
        let indices: Vec<u32> = self.attached.keys().copied().collect();
        for index in indices {
            self.unwatch(index);
        }
        if let Some(Ok(program)) = self
            .ebpf
            .program_mut(DROP)
            .map(TryInto::<&mut BtfTracePoint>::try_into)
        {
            let _ = program.unload();
        }
        if let Some(drop) = self.programs.iter_mut().find(|p| p.name == DROP)
            && drop.state == ProgramState::Attached
        {
            drop.state = ProgramState::Loaded;
        }
    }

    /// The interfaces that are watched.
    pub fn watching(&self) -> impl Iterator<Item = u32> + '_ {
        self.attached.keys().copied()
    }

    /// Which kind of link is in use; [`Attach::Auto`] until the first interface told.
    #[must_use]
    pub fn mode(&self) -> Attach {
        self.mode
    }

    /// How often the programs of a hook (`enter`, `exit`, `drop`) ran, and for how many nanoseconds, by the
    /// kernel's own account; it stands still unless `kernel.bpf_stats_enabled` is on.
    #[must_use]
    pub fn runs(&self, hook: &str) -> (u64, u64) {
        let prefix = format!("aksnet_{hook}");
        self.ebpf
            .programs()
            .filter(|(name, _)| name.starts_with(&prefix))
            .filter_map(|(_, program)| program.info().ok())
            .fold((0, 0), |(runs, ns), info| {
                let spent = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
                (runs + info.run_count(), ns + spent)
            })
    }

    /// The loaded object, for the log ring and for tests that run a program directly.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn link(
        &mut self,
        target: &Interface,
        program: &'static str,
        at: TcAttachType,
    ) -> Result<SchedClassifierLink, AttachError> {
        match self
            .programs
            .iter()
            .find(|p| p.name == program)
            .map(|p| &p.state)
        {
            Some(ProgramState::Loaded | ProgramState::Attached) => {}
            Some(ProgramState::Unsupported(why) | ProgramState::Failed(why)) => {
                return Err(AttachError::Unsupported(format!(
                    "program {program} is not loaded: {why}"
                )));
            }
            None => return Err(AttachError::Unsupported(format!("no program {program}"))),
        }
        match is_there(target) {
            Ok(true) => {}
            Ok(false) => return Err(AttachError::InterfaceGone),
            Err(error) => {
                let why = format!("cannot look for the interface: {}", error.desc());
                return Err(AttachError::Rejected(why));
            }
        }
        if self.mode != Attach::Clsact {
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            match self.attach_with(&target.name, program, at, options) {
                Ok(link) => {
                    self.mode = Attach::Tcx;
                    return Ok(link);
                }
                Err(error) => {
                    // A kernel without tcx answers EINVAL to an attach type it does not know.
                    if self.mode == Attach::Auto && errno(&error) == Some(libc::EINVAL) {
                        self.mode = Attach::Clsact;
                    } else {
                        return Err(classify(target, &error));
                    }
                }
            }
        }
        match tc::qdisc_add_clsact(&target.name) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            // The kernel says EEXIST for a qdisc that is there: then it is as wanted.
            Err(error) if errno(&error) == Some(libc::EEXIST) => {}
            Err(error) => return Err(classify(target, &error)),
        }
        // A filter left by an agent that was killed. 'None there' is the usual answer.
        let _ = tc::qdisc_detach_program(&target.name, at, program);
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: PRIORITY,
            handle: HANDLE,
            classid: None,
        });
        self.attach_with(&target.name, program, at, options)
            .map_err(|error| classify(target, &error))
    }

    fn attach_with(
        &mut self,
        name: &str,
        program: &str,
        at: TcAttachType,
        options: TcAttachOptions,
    ) -> Result<SchedClassifierLink, ProgramError> {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(program)
            .map_or(Err(ProgramError::NotLoaded), TryInto::try_into)?;
        let id = program.attach_with_options(name, at, options)?;
        program.take_link(id)
    }

    fn count_attached(&mut self) {
        for program in self.programs.iter_mut().filter(|p| p.name != DROP) {
            program.interfaces = self
                .attached
                .values()
                .filter(|a| a.programs.contains(&program.name))
                .count();
        }
    }

    /// The programs of one hook as one: which of them runs depends on an interface's role and link layer.
    fn status_of(&self, hook: &str, prefix: &str) -> ProgramStatus {
        let programs = || self.programs.iter().filter(|p| p.name.starts_with(prefix));
        let interfaces = programs().map(|p| p.interfaces).sum();
        let not_loaded = programs().find(|p| p.state != ProgramState::Loaded);
        let side = if hook == "enter" { "ingress" } else { "egress" };
        let kind = if self.mode == Attach::Clsact {
            "clsact"
        } else {
            "tcx"
        };
        ProgramStatus {
            program: hook.to_owned(),
            hook: format!("{kind}_{side}"),
            state: match not_loaded {
                Some(program) => program.state.clone(),
                None if interfaces > 0 => ProgramState::Attached,
                None => ProgramState::Loaded,
            },
            up: interfaces > 0,
            interfaces,
        }
    }
}

impl Datapath for Attacher {
    fn attach(&mut self, interface: &Interface) -> Result<(), AttachError> {
        self.watch(interface)
    }

    fn detach(&mut self, ifindex: u32) {
        self.unwatch(ifindex);
    }

    fn programs(&self) -> Vec<ProgramStatus> {
        let drop = self.programs.iter().find(|p| p.name == DROP);
        let state = drop.map_or_else(
            || ProgramState::Unsupported("not in the object".to_owned()),
            |p| p.state.clone(),
        );
        vec![
            self.status_of("enter", "aksnet_enter"),
            self.status_of("exit", "aksnet_exit"),
            ProgramStatus {
                program: "drop".to_owned(),
                hook: "tp_btf/kfree_skb".to_owned(),
                up: state == ProgramState::Attached,
                state,
                interfaces: 0,
            },
        ]
    }
}

/// Whether the interface of this name is still the one that is meant. The error is why that cannot be told: an agent without
/// a file descriptor left cannot ask.
fn is_there(target: &Interface) -> Result<bool, Errno> {
    match nix::net::if_::if_nametoindex(target.name.as_str()) {
        Ok(index) => Ok(index == target.index),
        Err(Errno::ENODEV | Errno::ENXIO) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The system's error number, wherever in the chain of causes it stands.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<std::io::Error>()
            && let Some(number) = io.raw_os_error()
        {
            return Some(number);
        }
        cause = e.source();
    }
    None
}

fn classify(target: &Interface, error: &(dyn std::error::Error + 'static)) -> AttachError {
    match errno(error) {
        Some(libc::ENODEV | libc::ENXIO) => AttachError::InterfaceGone,
        _ if is_there(target) == Ok(false) => AttachError::InterfaceGone,
        Some(libc::EOPNOTSUPP | libc::EINVAL) => AttachError::Unsupported(text(error)),
        _ => AttachError::Rejected(text(error)),
    }
}

fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

impl Drop for Attacher {
    fn drop(&mut self) {
        self.detach_all();
    }
}
