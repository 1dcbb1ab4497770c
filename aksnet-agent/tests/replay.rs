//! `aksnet-agent replay`: by the binary, from captures that a writer of this file's own made. Nothing here needs root, and nothing
//! has a capability.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::Value;
use tempfile::TempDir;

mod privilege;

const POD: [u8; 4] = [10, 244, 0, 5];
const WEB: [u8; 4] = [10, 244, 0, 7];
const SERVICE: [u8; 4] = [10, 0, 0, 10];
const NODE: [u8; 4] = [10, 224, 0, 4];
const OUTSIDE: [u8; 4] = [93, 184, 216, 34];

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;

const PLAN: [&str; 6] = [
    "--pod-cidr",
    "10.244.0.0/16",
    "--service-cidr",
    "10.0.0.0/16",
    "--node-address",
    "10.224.0.4",
];

/// An IPv4 packet with TCP, without checksums, which nobody looks at.
fn tcp(
    (src, src_port): ([u8; 4], u16),
    (dst, dst_port): ([u8; 4], u16),
    flags: u8,
    (seq, id): (u32, u16),
    payload: usize,
) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(u16::try_from(40 + payload).unwrap().to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend([0x40, 0, 64, 6, 0, 0]);
    packet.extend(src);
    packet.extend(dst);
    packet.extend(src_port.to_be_bytes());
    packet.extend(dst_port.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(7_u32.to_be_bytes());
    packet.extend([0x50, flags, 1, 0, 0, 0, 0, 0]);
    packet.resize(40 + payload, 0x61);
    packet
}

fn udp6(src: u8, dst: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], 17, 64];
    for last in [src, dst] {
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend(5353_u16.to_be_bytes());
    packet.extend(53_u16.to_be_bytes());
    packet.extend(length);
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn ethernet(packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [8, 0]
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind);
    frame.extend(packet);
    frame
}

/// Linux cooked, version 1: kind of packet 0 (to us) or 4 (outgoing).
fn sll(packet: &[u8], kind: u8) -> Vec<u8> {
    let mut frame = vec![0, kind, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0];
    frame.extend(packet);
    frame
}

fn sll2(packet: &[u8], ifindex: u32, kind: u8) -> Vec<u8> {
    let mut frame = vec![8, 0, 0, 0];
    frame.extend(ifindex.to_be_bytes());
    frame.extend([0, 1, kind, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
    frame.extend(packet);
    frame
}

/// How a pcap file is written.
#[derive(Clone, Copy)]
struct Pcap {
    link_type: u32,
    big: bool,
    nanoseconds: bool,
    snaplen: usize,
}

impl Pcap {
    const fn of(link_type: u32) -> Self {
        Self {
            link_type,
            big: false,
            nanoseconds: false,
            snaplen: usize::MAX,
        }
    }

    fn word(self, n: u32) -> [u8; 4] {
        if self.big {
            n.to_be_bytes()
        } else {
            n.to_le_bytes()
        }
    }

    /// Frames with their times in microseconds from one moment on.
    fn file(self, frames: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let magic = if self.nanoseconds {
            0xa1b2_3c4d
        } else {
            0xa1b2_c3d4
        };
        let mut file = self.word(magic).to_vec();
        let version = if self.big { [0, 2, 0, 4] } else { [2, 0, 4, 0] };
        file.extend(version);
        for n in [0, 0, 262_144, self.link_type] {
            file.extend(self.word(n));
        }
        for (us, frame) in frames {
            let seconds = 1_700_000_000 + u32::try_from(us / 1_000_000).unwrap();
            let rest = u32::try_from(us % 1_000_000).unwrap();
            let rest = if self.nanoseconds { rest * 1_000 } else { rest };
            let kept = frame.len().min(self.snaplen);
            let lengths = [kept, frame.len()].map(|n| u32::try_from(n).unwrap());
            for n in [seconds, rest, lengths[0], lengths[1]] {
                file.extend(self.word(n));
            }
            file.extend(&frame[..kept]);
        }
        file
    }
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut padded = body.to_vec();
    padded.resize(body.len().next_multiple_of(4), 0);
    let length = u32::try_from(padded.len() + 12).unwrap().to_le_bytes();
    [&kind.to_le_bytes()[..], &length, &padded, &length].concat()
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let mut option = code.to_le_bytes().to_vec();
    option.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
    option.extend(value);
    option.resize(option.len().next_multiple_of(4), 0);
    option
}

/// A pcapng file of these interfaces; packets by interface, with their direction (0: not said, 1: in, 2: out).
fn pcapng(interfaces: &[&str], packets: &[(u64, u32, u32, Vec<u8>)]) -> Vec<u8> {
    let mut section = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
    section.extend([1, 0, 0, 0]);
    section.extend([0xff; 8]);
    let mut file = block(0x0a0d_0d0a, &section);
    for name in interfaces {
        let mut body = vec![1, 0, 0, 0];
        body.extend(262_144_u32.to_le_bytes());
        body.extend(option(2, name.as_bytes()));
        // Nanoseconds.
        body.extend(option(9, &[9]));
        body.extend(option(0, &[]));
        file.extend(block(1, &body));
    }
    for (ns, interface, direction, frame) in packets {
        let time = 1_700_000_000_000_000_000 + ns;
        let mut body = interface.to_le_bytes().to_vec();
        body.extend(u32::try_from(time >> 32).unwrap().to_le_bytes());
        body.extend(u32::try_from(time & 0xffff_ffff).unwrap().to_le_bytes());
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        body.extend([length, length].concat());
        body.extend(frame);
        body.resize(body.len().next_multiple_of(4), 0);
        if *direction != 0 {
            body.extend(option(2, &direction.to_le_bytes()));
            body.extend(option(0, &[]));
        }
        file.extend(block(6, &body));
    }
    file
}

/// A connection of a pod to the outside, as seen on the pod's side: SYN, SYN-ACK, ACK, data, FIN, FIN.
fn connection() -> Vec<Vec<u8>> {
    let (a, b) = ((POD, 40_000), (OUTSIDE, 443));
    vec![
        tcp(a, b, SYN, (100, 1), 0),
        tcp(b, a, SYN | ACK, (900, 51), 0),
        tcp(a, b, ACK, (101, 2), 0),
        tcp(a, b, ACK, (101, 3), 60),
        tcp(b, a, ACK | FIN, (901, 52), 0),
        tcp(a, b, ACK | FIN, (161, 4), 0),
    ]
}

fn timed(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<(u64, Vec<u8>)> {
    (0..).step_by(1_000).zip(frames).collect()
}

struct Case(TempDir);

impl Case {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn replay(path: &Path, args: &[&str]) -> Output {
        privilege::unprivileged()
            .arg("replay")
            .arg(path)
            .args(args)
            .env_remove("AKSNET_CONFIG")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

/// The records and the summary of a replay with `--json`.
fn json(output: &Output) -> (Vec<Value>, Value) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let summary = lines.pop().unwrap_or_else(|| panic!("{output:?}"));
    (lines, summary["summary"].clone())
}

fn with_plan<'a>(more: &[&'a str]) -> Vec<&'a str> {
    PLAN.iter().copied().chain(more.iter().copied()).collect()
}

fn is_the_connection(record: &Value) {
    assert_eq!(record["class"], "pod_to_external");
    assert_eq!(record["outcome"], "finished");
    assert_eq!(record["end"], "agent_end");
    assert_eq!(record["before"]["src"], "10.244.0.5");
    assert_eq!(record["before"]["dst_port"], 443);
    assert_eq!(record["forward"]["packets"], 4);
    assert_eq!(record["forward"]["bytes"], 4 * 40 + 60);
    assert_eq!(record["reply"]["packets"], 2);
    assert_eq!(record["forward"]["tcp_flags"], "FSA");
    assert_eq!(record["start_ms"], 1_700_000_000_000_u64);
}

#[test]
fn every_link_type_byte_order_and_precision_reads_the_same() {
    let case = Case::new();
    let raw = timed(connection());
    let of = |frame: fn(&[u8]) -> Vec<u8>| timed(connection().iter().map(|packet| frame(packet)));
    let plain = |link_type| Pcap::of(link_type);
    let files = [
        ("ethernet", plain(1).file(&of(ethernet))),
        ("raw", plain(101).file(&raw)),
        ("raw12", plain(12).file(&raw)),
        ("raw14", plain(14).file(&raw)),
        ("ipv4", plain(228).file(&raw)),
        ("sll", plain(113).file(&of(|packet| sll(packet, 0)))),
        ("sll2", plain(276).file(&of(|packet| sll2(packet, 3, 0)))),
        (
            "big",
            Pcap {
                big: true,
                ..plain(1)
            }
            .file(&of(ethernet)),
        ),
        (
            "nano",
            Pcap {
                nanoseconds: true,
                ..plain(1)
            }
            .file(&of(ethernet)),
        ),
    ];
    for (name, bytes) in files {
        let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
        zipped.write_all(&bytes).unwrap();
        for bytes in [bytes, zipped.finish().unwrap()] {
            let output = Case::replay(&case.write(name, &bytes), &with_plan(&["--json"]));
            assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
            let (records, summary) = json(&output);
            assert_eq!(records.len(), 1, "{name}: {records:?}");
            is_the_connection(&records[0]);
            assert_eq!(summary["capture"]["counted"], 6, "{name}");
            assert_eq!(summary["class"]["pod_to_external"]["packets"], 6, "{name}");
        }
    }
    let ipv6 = plain(229).file(&timed([udp6(1, 2, b"a question"), udp6(1, 2, b"another")]));
    let (records, _) = json(&Case::replay(&case.write("ipv6", &ipv6), &["--json"]));
    assert_eq!(
        (&records[0]["outcome"], &records[0]["forward"]["packets"]),
        (&"unanswered".into(), &2.into())
    );
}

#[test]
fn both_sides_of_nat_make_one_flow_with_its_translation_and_time() {
    // A pod dials a service: DNAT to an endpoint on another veth, seen on both. And egress, SNATed on eth0.
    let dialled = ((POD, 40_000), (SERVICE, 80));
    let reached = ((POD, 40_000), (WEB, 8080));
    let mut packets = Vec::new();
    let mut add = |us: u64, interface: u32, direction: u32, packet: Vec<u8>| {
        packets.push((us * 1_000, interface, direction, ethernet(&packet)));
    };
    add(0, 0, 1, tcp(dialled.0, dialled.1, SYN, (5, 1), 0));
    add(90, 1, 2, tcp(reached.0, reached.1, SYN, (5, 1), 0));
    add(200, 1, 1, tcp(reached.1, reached.0, SYN | ACK, (80, 31), 0));
    add(204, 0, 2, tcp(dialled.1, dialled.0, SYN | ACK, (80, 31), 0));
    add(
        300,
        0,
        1,
        tcp((POD, 41_000), (OUTSIDE, 443), SYN, (50, 2), 0),
    );
    add(
        370,
        2,
        2,
        tcp((NODE, 61_000), (OUTSIDE, 443), SYN, (50, 2), 0),
    );
    // The node itself.
    add(
        400,
        2,
        2,
        tcp((NODE, 50_000), (OUTSIDE, 443), SYN, (70, 3), 0),
    );
    let case = Case::new();
    for (name, with_direction) in [("told", true), ("not-told", false)] {
        let packets: Vec<_> = packets
            .iter()
            .map(|(ns, interface, direction, frame)| {
                (
                    *ns,
                    *interface,
                    direction * u32::from(with_direction),
                    frame.clone(),
                )
            })
            .collect();
        let file = pcapng(&["vetha", "vethb", "eth0"], &packets);
        let output = Case::replay(
            &case.write(name, &file),
            &with_plan(&["--json", "--uplink", "eth0"]),
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let (records, summary) = json(&output);
        let find = |class: &str| {
            let found: Vec<&Value> = records
                .iter()
                .filter(|record| record["class"] == class)
                .collect();
            assert_eq!(found.len(), 1, "{class}: {records:?}");
            found[0].clone()
        };
        let service = find("pod_to_service");
        assert_eq!(service["nat"], "dnat");
        assert_eq!(service["after"]["dst"], "10.244.0.7");
        assert_eq!(service["after"]["dst_port"], 8080);
        assert_eq!(
            (&service["in_interface"], &service["out_interface"]),
            (&"vetha".into(), &"vethb".into())
        );
        assert_eq!(service["reply"]["packets"], 1);
        assert_eq!(service["outcome"], "established");
        assert_eq!(service["first"]["samples"], 1);
        let ns = service["first"]["p50_ns"].as_f64().unwrap();
        assert!(
            (65_536.0..=131_072.0).contains(&ns),
            "90 us lie in that bucket: {ns}"
        );
        let egress = find("pod_to_external");
        assert_eq!(
            (&egress["nat"], &egress["after"]["src_port"]),
            (&"snat".into(), &61_000.into())
        );
        let own = find("node_to_external");
        assert_eq!(own["forward"]["packets"], 1);
        if with_direction {
            assert_eq!(own["in_interface"], "");
        }
        assert_eq!(
            (
                &summary["capture"]["counted"],
                &summary["capture"]["seen_again"]
            ),
            (&4.into(), &3.into())
        );
        assert_eq!(summary["all"]["packets"], 4);
    }
}

#[test]
fn names_and_policies_come_from_manifests() {
    let manifests = r"
apiVersion: v1
kind: Pod
metadata: {name: frontend-1, namespace: shop, labels: {app: frontend}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.244.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: batch-1, namespace: shop, labels: {app: batch}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.244.0.6}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.244.0.7}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-policy, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: frontend}}}]}]
";
    let case = Case::new();
    let manifests = case.write("shop.yaml", manifests.as_bytes());
    let packets = timed([
        tcp((POD, 1_000), (WEB, 8080), SYN, (1, 1), 0),
        tcp(([10, 244, 0, 6], 1_001), (WEB, 8080), SYN, (2, 2), 0),
    ]);
    let file = case.write("a.pcap", &Pcap::of(101).file(&packets));
    let manifests = manifests.display().to_string();
    let args = with_plan(&["--json", "--node-name", "n1", "-f", &manifests]);
    let (records, summary) = json(&Case::replay(&file, &args));
    let verdict = |pod: &str| {
        records
            .iter()
            .find(|r| r["from"]["pod"] == pod)
            .unwrap()
            .clone()
    };
    assert_eq!(verdict("frontend-1")["verdict"], "allowed");
    let denied = verdict("batch-1");
    assert_eq!(denied["verdict"], "denied");
    assert_eq!(denied["policies"], serde_json::json!(["shop/web-policy"]));
    assert_eq!(
        (&denied["to"]["pod"], &denied["scope"]),
        (&"web-0".into(), &"same_node".into())
    );
    assert_eq!(summary["verdict"]["denied"]["flows"], 1);
    let text = Case::replay(&file, &with_plan(&["--node-name", "n1", "-f", &manifests]));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("policies: denied") && text.contains("by policies:\n"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_read_is_said_and_what_can_is_shown() {
    let case = Case::new();
    let frames = timed(connection().iter().map(|packet| ethernet(packet)));
    let whole = Pcap::of(1).file(&frames);
    let check = |name: &str, bytes: &[u8], code: i32, said: &str, records: usize| {
        let output = Case::replay(&case.write(name, bytes), &with_plan(&["--json"]));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{name}: {error}");
        assert!(error.contains(said), "{name}: {error}");
        assert!(error.lines().count() <= 1, "{name}: {error}");
        assert_eq!(json(&output).0.len(), records, "{name}");
    };
    check(
        "cut",
        &whole[..whole.len() - 10],
        65,
        "the file ends within a block",
        1,
    );
    let mut bad = whole.clone();
    // The second packet's length.
    let at = 24 + 16 + frames[0].1.len() + 8;
    bad[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    check(
        "bad",
        &bad,
        65,
        "at byte 94: the file ends within a block",
        1,
    );
    check(
        "no-capture",
        b"hello, this is no capture at all",
        65,
        "neither a pcap nor a pcapng file",
        0,
    );
    check("empty", b"", 65, "the file is empty", 0);
    check("short", &whole[..10], 65, "the file ends within a block", 0);
    let wifi = Pcap::of(105).file(&frames);
    check("wifi", &wifi, 65, "6 packets have link type 105", 0);
    let headers = Pcap {
        snaplen: 60,
        ..Pcap::of(1)
    }
    .file(&frames);
    check("headers", &headers, 0, "", 1);
    let beheaded = Pcap {
        snaplen: 30,
        ..Pcap::of(1)
    }
    .file(&frames);
    check(
        "beheaded",
        &beheaded,
        65,
        "6 packets are cut off within their headers",
        0,
    );
    let strays = pcapng(
        &["eth0"],
        &[
            (0, 0, 0, frames[0].1.clone()),
            (1, 7, 0, frames[1].1.clone()),
        ],
    );
    check(
        "strays",
        &strays,
        65,
        "1 packets are of interfaces that it does not describe",
        1,
    );
    let mut short = pcapng(&["eth0"], &[(0, 0, 0, frames[0].1.clone())]);
    // Process information, as macOS writes it, of eight bytes: its type and its length.
    let process = [0x8000_0001_u32.to_le_bytes(), 8_u32.to_le_bytes()];
    short.extend(process.concat());
    short.extend([0; 24]);
    check(
        "short-block",
        &short,
        65,
        "a block claims to be shorter than its own head",
        1,
    );
    let missing = Case::replay(&case.0.path().join("none"), &[]);
    assert_eq!(missing.status.code(), Some(66), "{missing:?}");
    let directory = Case::replay(case.0.path(), &[]);
    assert_eq!(directory.status.code(), Some(66), "{directory:?}");
}

#[test]
fn a_long_silence_ends_what_is_idle_and_a_long_connection_has_several_records() {
    let (a, b) = ((POD, 40_000), (OUTSIDE, 443));
    let day = 86_400_000_000;
    let mut frames: Vec<(u64, Vec<u8>)> = (0..150_u16)
        .map(|n| {
            (
                u64::from(n) * 1_000_000,
                tcp(a, b, ACK, (u32::from(n) * 10, n), 10),
            )
        })
        .collect();
    frames.push((9_000 * day / 100, tcp(a, b, SYN, (1, 999), 0)));
    let case = Case::new();
    let file = case.write("long.pcap", &Pcap::of(101).file(&frames));
    let (records, _) = json(&Case::replay(&file, &with_plan(&["--json"])));
    let ends: Vec<&str> = records.iter().map(|r| r["end"].as_str().unwrap()).collect();
    assert_eq!(
        ends,
        ["active", "active", "idle", "agent_end"],
        "{records:?}"
    );
    let packets: u64 = records[..3]
        .iter()
        .map(|r| r["forward"]["packets"].as_u64().unwrap())
        .sum();
    assert_eq!(
        (packets, &records[2]["forward"]["total_packets"]),
        (150, &150.into())
    );
    let seconds =
        (records[2]["end_ms"].as_u64().unwrap() - records[2]["start_ms"].as_u64().unwrap()) / 1_000;
    assert!((149..=150).contains(&seconds), "{seconds}");
}

#[test]
fn tcpdump_on_any_counts_a_bridged_packet_once() {
    // kubenet: the pod's port, the bridge, and the uplink behind SNAT.
    let sent = tcp((POD, 40_000), (OUTSIDE, 443), SYN, (1, 1), 0);
    let left = tcp((NODE, 61_000), (OUTSIDE, 443), SYN, (1, 1), 0);
    let case = Case::new();
    let two = Pcap::of(276).file(&[
        (0, sll2(&sent, 9, 0)),
        (3, sll2(&sent, 4, 0)),
        (40, sll2(&left, 2, 4)),
    ]);
    let one = Pcap::of(113).file(&[(0, sll(&sent, 0)), (3, sll(&sent, 0)), (40, sll(&left, 4))]);
    for (name, bytes) in [("sll2", two), ("sll", one)] {
        let (records, summary) = json(&Case::replay(
            &case.write(name, &bytes),
            &with_plan(&["--json"]),
        ));
        assert_eq!(records.len(), 1, "{name}: {records:?}");
        assert_eq!(
            (&records[0]["nat"], &records[0]["forward"]["packets"]),
            (&"snat".into(), &1.into()),
            "{name}"
        );
        assert_eq!(summary["capture"]["seen_again"], 2, "{name}");
    }
}
