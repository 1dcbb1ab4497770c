//! The running kernel's types, and types made up.

use super::*;

#[test]
fn functions_are_read_and_data_and_hidden_addresses_are_not() {
    let read = |line| text_symbol(line);
    assert_eq!(
        read("0000000000001000 T first"),
        Some((0x1000, "first".to_owned()))
    );
    assert_eq!(
        read("0000000000002000 t second [mod]"),
        Some((0x2000, "second".to_owned()))
    );
    assert_eq!(read("0000000000001010 d data"), None);
    assert_eq!(read("0000000000000000 T hidden"), None);
    assert_eq!(read("nonsense"), None);
}

#[test]
fn noise_is_a_bit_for_each_reason_of_the_list() {
    let reasons = BTreeMap::from([
        (1, "consumed".to_owned()),
        (12, "netfilter_drop".to_owned()),
        (70, "otherhost".to_owned()),
    ]);
    assert_eq!(noise(&reasons), [1 << 1, 1 << 6, 0, 0]);
}

#[test]
fn keep_alive_probes_are_noise_under_whatever_reason_the_kernel_has_for_them() {
    let invalid = (42, "tcp_invalid_sequence".to_owned());
    let old = (41, "tcp_old_sequence".to_owned());
    let both = BTreeMap::from([invalid.clone(), old]);
    assert_eq!(noise(&both), [1 << 41, 0, 0, 0]);
    assert_eq!(noise(&BTreeMap::from([invalid])), [1 << 42, 0, 0, 0]);
}

#[test]
fn drops_by_sockets_need_a_kernel_that_tells_tcps_reasons_apart() {
    let kernel = |reasons: &[(u32, &str)]| Kernel {
        offsets: Offsets::default(),
        reasons: reasons
            .iter()
            .map(|(n, name)| (*n, (*name).to_owned()))
            .collect(),
        noise: [0; 4],
        has_drop_tracepoint: true,
        conntrack_unreadable: None,
    };
    assert_eq!(kernel(&[]).not_specified(), u32::MAX);
    assert_eq!(kernel(&[(0, "not_specified")]).not_specified(), u32::MAX);
    let whole = [(2, "not_specified"), (33, "tcp_old_data")];
    assert_eq!(kernel(&whole).not_specified(), 2);
}

#[test]
fn unnamed_reasons_are_named_by_their_number() {
    let kernel = Kernel {
        offsets: Offsets::default(),
        reasons: BTreeMap::from([(12, "netfilter_drop".to_owned())]),
        noise: [0; 4],
        has_drop_tracepoint: true,
        conntrack_unreadable: None,
    };
    assert_eq!(kernel.reason_name(12), "netfilter_drop");
    assert_eq!(kernel.reason_name(200), "reason_200");
    assert_eq!(kernel.reason_name(0x3_0005), "subsystem_3_5");
}

#[test]
fn running_kernel_has_what_the_programs_read() {
    if !Path::new(VMLINUX_BTF).exists() {
        println!("skipped: this kernel has no BTF");
        return;
    }
    let kernel = Kernel::read().expect("offsets");
    assert!(kernel.offsets.skb_head > 0 && kernel.offsets.skb_network_header > 0);
    assert!(kernel.has_drop_tracepoint);
    if kernel.offsets.kfree_skb_reason_arg != 0 {
        assert!(
            kernel.reasons.values().any(|n| n == "netfilter_drop"),
            "{:?}",
            kernel.reasons
        );
    }
    assert!(own_netns().expect("namespace") > 0);
    assert!(kernel.offsets.skb_refdst > 0);
    match &kernel.conntrack_unreadable {
        None => assert!(kernel.offsets.ct_status > 0 && kernel.offsets.ct_original > 0),
        Some(why) => {
            assert_eq!(
                (kernel.offsets.ct_status, kernel.offsets.ct_original),
                (0, 0)
            );
            println!("conntrack's entries: {why}");
        }
    }
}

#[test]
fn without_types_for_conntrack_all_else_is_read_and_the_reason_is_told() {
    let btf = Btf::from_bytes(&base()).expect("BTF");
    let mut offsets = Offsets::default();
    let missing = Path::new("/nonexistent/nf_conntrack");
    let error = conntrack(&btf, missing, &mut offsets).expect_err("no types");
    let text = format!("{error:#}");
    assert!(text.contains("/nonexistent/nf_conntrack"), "{text}");
    assert!(text.contains("modprobe nf_conntrack"), "{text}");
    // Whether a packet has an entry can be told all the same.
    assert_eq!(offsets.skb_nfct, 104);
    assert_eq!((offsets.ct_status, offsets.ct_original), (0, 0));
}

#[test]
fn conntrack_as_a_module_is_read_from_the_modules_own_types() {
    let base = Btf::from_bytes(&base()).expect("BTF");
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("nf_conntrack");
    std::fs::write(&path, module(&base_strings(), 36)).expect("written");
    let mut offsets = Offsets::default();
    conntrack(&base, &path, &mut offsets).expect("entries");
    assert_eq!(
        (offsets.skb_nfct, offsets.ct_status, offsets.ct_original),
        (104, 128, 32)
    );

    // A kernel that lays tuples out differently: the entry is left alone.
    std::fs::write(&path, module(&base_strings(), 40)).expect("written");
    let mut offsets = Offsets::default();
    let error = conntrack(&base, &path, &mut offsets).expect_err("another layout");
    assert!(
        error.to_string().contains("[0, 16, 18, 20, 40, 38]"),
        "{error}"
    );
    assert_eq!((offsets.skb_nfct, offsets.ct_original), (104, 0));

    // What is no BTF at all.
    std::fs::write(&path, b"no types").expect("written");
    let error = conntrack(&base, &path, &mut Offsets::default()).expect_err("no BTF");
    assert!(
        format!("{error:#}").contains("nf_conntrack is a module"),
        "{error:#}"
    );
}

/// A BTF section: structs of members at byte offsets, with the type of each.
struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    first_string: usize,
}

impl Blob {
    /// `base`: the strings of the section that this one extends.
    fn new(base: &[u8]) -> Self {
        Self {
            types: Vec::new(),
            // The empty name is the base section's.
            strings: if base.is_empty() { vec![0] } else { Vec::new() },
            first_string: base.len(),
        }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.first_string + self.strings.len();
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        u32::try_from(at).expect("small")
    }

    fn words(&mut self, words: &[u32]) {
        self.types
            .extend(words.iter().flat_map(|w| w.to_ne_bytes()));
    }

    /// `BTF_KIND_INT`: an unsigned int.
    fn int(&mut self) {
        let name = self.string("unsigned int");
        self.words(&[name, 1 << 24, 4, 32]);
    }

    /// `BTF_KIND_STRUCT`.
    fn structure(&mut self, name: &str, members: &[(&str, u32, u32)]) {
        let name = self.string(name);
        let count = u32::try_from(members.len()).expect("small");
        let members: Vec<u32> = members
            .iter()
            .flat_map(|(name, kind, at)| [self.string(name), *kind, at * 8])
            .collect();
        self.words(&[name, 4 << 24 | count, 256]);
        self.words(&members);
    }

    fn build(self) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("small");
        let (types, strings) = (length(&self.types), length(&self.strings));
        let mut blob = 0xeb9f_u16.to_ne_bytes().to_vec();
        blob.extend([1, 0]);
        blob.extend(
            [24, 0, types, types, strings]
                .iter()
                .flat_map(|w| w.to_ne_bytes()),
        );
        blob.extend(self.types);
        blob.extend(self.strings);
        blob
    }
}

fn base_blob() -> Blob {
    let mut blob = Blob::new(&[]);
    blob.int();
    blob.structure("sk_buff", &[("_nfct", 1, 104)]);
    blob
}

/// A kernel whose conntrack is a module: type 1 is an integer, type 2 a packet.
fn base() -> Vec<u8> {
    base_blob().build()
}

fn base_strings() -> Vec<u8> {
    base_blob().strings
}

/// The module's types, from 3 on; `port` is where the tuple's second port lies.
fn module(base: &[u8], port: u32) -> Vec<u8> {
    let mut blob = Blob::new(base);
    blob.structure(
        "nf_conntrack_man",
        &[("u3", 1, 0), ("u", 1, 16), ("l3num", 1, 18)],
    );
    blob.structure(
        "",
        &[("u3", 1, 0), ("u", 1, port - 20), ("protonum", 1, 18)],
    );
    blob.structure("nf_conntrack_tuple", &[("src", 3, 0), ("dst", 4, 20)]);
    blob.structure(
        "nf_conntrack_tuple_hash",
        &[("hnnode", 1, 0), ("tuple", 5, 16)],
    );
    blob.structure("nf_conn", &[("tuplehash", 6, 16), ("status", 1, 128)]);
    blob.build()
}
