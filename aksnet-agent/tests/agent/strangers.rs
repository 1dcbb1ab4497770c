//! *Strangers*: other people's programs on the hooks that the agent uses, before and after its own, which drop packets or
//! send them elsewhere, as Cilium's do. The agent's own programs decide nothing, so traffic goes as the stranger wants.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};
use nix::sys::signal::Signal;
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};
use xtask::testbed::{
    Netns, Testbed, counters,
    traffic::{Udp, UdpServer},
};

use crate::{
    life::{Agent, Home, has_tcx, plan_flags, turn},
    scrape::Scrape,
};

/// Datagrams of each case.
const SENT: u32 = 40;

/// What a stranger does with every packet.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wish {
    Drop,
    /// Sends it out of the interface of this index, to the next hop that the routing table has for it.
    Redirect(u32),
}

/// One instruction (include/uapi/linux/bpf.h, `struct bpf_insn`).
fn instruction(code: u8, registers: u8, immediate: u32) -> [u8; 8] {
    let [a, b, c, d] = immediate.to_le_bytes();
    [code, registers, 0, 0, a, b, c, d]
}

impl Wish {
    /// The program: `BPF_MOV64 | BPF_K`, `BPF_CALL`, `BPF_EXIT`.
    fn program(self) -> Vec<u8> {
        const MOV: u8 = 0xb7;
        const CALL: u8 = 0x85;
        const EXIT: u8 = 0x95;
        const TC_ACT_SHOT: u32 = 2;
        const REDIRECT_NEIGH: u32 = 152;
        let body = match self {
            Self::Drop => vec![instruction(MOV, 0, TC_ACT_SHOT)],
            Self::Redirect(to) => vec![
                instruction(MOV, 1, to),
                instruction(MOV, 2, 0),
                instruction(MOV, 3, 0),
                instruction(MOV, 4, 0),
                instruction(CALL, 0, REDIRECT_NEIGH),
            ],
        };
        [body, vec![instruction(EXIT, 0, 0)]].concat().concat()
    }

    /// The object file that it comes in.
    fn object(self) -> Result<Vec<u8>> {
        let program = self.program();
        let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
        object.append_section_data(license, b"GPL\0", 1);
        let section = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
        object.append_section_data(section, &program, 8);
        object.add_symbol(Symbol {
            name: b"stranger".to_vec(),
            value: 0,
            size: program.len() as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
        Ok(object.write()?)
    }
}

/// A stranger at work, until it is dropped.
struct Stranger {
    _link: SchedClassifierLink,
    _object: Ebpf,
}

impl Stranger {
    fn attach(node: &Netns, interface: &str, wish: Wish, order: LinkOrder) -> Result<Self> {
        let mut object = EbpfLoader::new().load(&wish.object()?)?;
        let program: &mut SchedClassifier = object
            .program_mut("stranger")
            .context("the object has it")?
            .try_into()?;
        program.load()?;
        let options = TcAttachOptions::TcxOrder(order);
        let link = node.run(|| {
            let id = program.attach_with_options(interface, TcAttachType::Ingress, options)?;
            Ok(program.take_link(id)?)
        })?;
        Ok(Self {
            _link: link,
            _object: object,
        })
    }
}

/// What the agent counts of a case: packets of flows, drops by the stranger.
fn counted(scrape: &Scrape) -> [u64; 2] {
    [
        scrape.count("aksnet_flow_packets_total", &[("protocol", "udp")]),
        scrape.count("aksnet_drop_packets_total", &[("reason", "tc_ingress")]),
    ]
}

fn since(now: [u64; 2], before: [u64; 2]) -> [u64; 2] {
    [now[0] - before[0], now[1] - before[1]]
}

#[test]
fn a_stranger_before_or_after_has_its_way_and_what_it_drops_is_seen() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().offloads(false).build()?;
    let node = bed.node().netns();
    if !has_tcx(node) {
        println!("skipped: this kernel has no tcx");
        return Ok(());
    }
    let (client, far) = (bed.pod(0), bed.remote_pod(0));
    let server = UdpServer::echo(far.netns(), (far.ip(), 53))?;
    let exchange = || Udp::to(server.address()).datagrams(SENT);
    exchange().run(client.netns())?;
    bed.settle()?;
    bed.pin_neighbours()?;
    let uplink = counters::link(node, "eth0")?.index;
    let home = Home::new()?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let sent = u64::from(SENT);
    // Packets that the agent's programs meet, and drops, for each place of the stranger. A packet that another program
    // took before is none that entered: its drop is seen, its way is not.
    for (wish, first, expected) in [
        (Wish::Drop, true, [0, sent]),
        (Wish::Drop, false, [sent, sent]),
        (Wish::Redirect(uplink), true, [sent, 0]),
        (Wish::Redirect(uplink), false, [2 * sent, 0]),
    ] {
        let before = counted(&agent.settled()?);
        let order = if first {
            LinkOrder::first()
        } else {
            LinkOrder::last()
        };
        let stranger = Stranger::attach(node, client.veth(), wish, order)?;
        let tail = format!("{wish:?}, first: {first}");
        if wish == Wish::Drop {
            let report = exchange().unanswered().run(client.netns());
            report.with_context(|| tail.clone())?;
        } else {
            exchange()
                .run(client.netns())
                .with_context(|| tail.clone())?;
        }
        let after = counted(&agent.settled()?);
        assert_eq!(since(after, before), expected, "{tail}");
        drop(stranger);

        // It has gone, and all is as before.
        exchange().run(client.netns())?;
        let last = counted(&agent.settled()?);
        assert_eq!(since(last, after), [2 * sent, 0], "after {tail}");
    }
    let complaints = agent.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}
