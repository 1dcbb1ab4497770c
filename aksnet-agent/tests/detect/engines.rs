//! The traces of policy engines, proxies and masquerade agents, put there as each of them does, smallest form.

use aksnet_agent::node::found::Found;
use anyhow::Result;
use xtask::testbed::{Backend, Engine, Family, Isolation, Netns, Side, Testbed, iptables};

use crate::rig::{bare, detect, turn};

fn find(netns: &Netns) -> Result<Found> {
    detect(netns, tempfile::tempdir()?.path(), None)
}

fn restore(netns: &Netns, backend: Backend, text: &str) -> Result<()> {
    iptables::restore(netns, backend, Family::V4, text)
}

fn nft(netns: &Netns, text: &str) -> Result<()> {
    netns.output_with_input("nft", ["-f", "-"], text)?;
    Ok(())
}

#[test]
fn a_namespace_without_rules_has_none() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let netns = bare()?;
    let found = find(&netns)?;
    assert_eq!(found.cni.value, Some("none"));
    assert_eq!(found.proxy_mode.value, Some("none"));
    assert_eq!(found.policy_engine.value, Some("none"));
    assert_eq!(found.masquerade.value, Some(None));
    // Asking has made no table.
    assert_eq!(netns.read("/proc/net/ip_tables_names")?, "");
    assert_eq!(netns.output("nft", ["list", "tables"])?, "");
    Ok(())
}

#[test]
fn engines_in_iptables_are_found_in_either_backend() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        for (chain, engine) in [
            ("AZURE-NPM", "azure_npm"),
            ("cali-FORWARD", "calico"),
            ("CILIUM_FORWARD", "cilium"),
        ] {
            let netns = bare()?;
            let text = format!("*filter\n:{chain} - [0:0]\n-A FORWARD -j {chain}\nCOMMIT\n");
            restore(&netns, backend, &text)?;
            let found = find(&netns)?;
            assert_eq!(found.policy_engine.value, Some(engine), "{backend:?}");
        }
    }
    Ok(())
}

#[test]
fn engines_with_tables_of_their_own_are_found() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    // They queue to user space where this accepts, which not every kernel can.
    for (table, engine) in [
        ("kindnet-network-policies", "kindnet"),
        ("kube-network-policies", "kube_network_policies"),
    ] {
        let netns = bare()?;
        let text = format!(
            "table inet {table} {{ set podips-v4 {{ type ipv4_addr; }}\n\
             chain postrouting {{ type filter hook postrouting priority srcnat - 5; policy accept;\n\
             ct state established,related accept\n ip saddr @podips-v4 accept\n }}\n}}\n"
        );
        nft(&netns, &text)?;
        let policy = find(&netns)?.policy_engine;
        assert_eq!(policy.value, Some(engine));
        assert_eq!(
            policy.evidence,
            [format!("nft table inet {table} with podips-v4")]
        );
    }
    Ok(())
}

#[test]
fn kube_proxy_is_found_in_each_mode() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let netns = bare()?;
    nft(
        &netns,
        "table ip kube-proxy { map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }\n\
         chain services { ip daddr . meta l4proto . th dport vmap @service-ips\n }\n}\n",
    )?;
    assert_eq!(find(&netns)?.proxy_mode.value, Some("nftables"));
    let netns = bare()?;
    // A dummy on real nodes, which not every kernel has; the name is what tells.
    netns.ip(["link add kube-ipvs0 type bridge"])?;
    restore(
        &netns,
        Backend::Nft,
        "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n",
    )?;
    assert_eq!(find(&netns)?.proxy_mode.value, Some("ipvs"));
    Ok(())
}

#[test]
fn agents_differ_in_ranges_ports_and_link_local() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        let netns = bare()?;
        restore(
            &netns,
            backend,
            "*nat\n:IP-MASQ-AGENT - [0:0]\n\
             -A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT\n\
             -A IP-MASQ-AGENT -d 169.254.0.0/16 -j RETURN\n\
             -A IP-MASQ-AGENT -d 10.0.0.0/8 -m comment --comment \"local traffic\" -j RETURN\n\
             -A IP-MASQ-AGENT -d 172.16.0.0/12 -j RETURN\n\
             -A IP-MASQ-AGENT -d 192.0.2.1/32 -j RETURN\n\
             -A IP-MASQ-AGENT -d 198.51.100.0/24 -p tcp -j RETURN\n\
             -A IP-MASQ-AGENT -j MASQUERADE --random-fully\nCOMMIT\n",
        )?;
        let found = find(&netns)?;
        let agent = found.masquerade.value.flatten().expect("an agent");
        let spared: Vec<String> = agent.spared.iter().map(ToString::to_string).collect();
        // Not the range that is spared for TCP only.
        assert_eq!(
            spared,
            [
                "10.0.0.0/8",
                "169.254.0.0/16",
                "172.16.0.0/12",
                "192.0.2.1/32"
            ],
            "{backend:?}"
        );
        assert_eq!((agent.link_local, agent.random_fully), (Some(false), true));
        assert_eq!(
            found.masquerade.evidence.len(),
            1,
            "POSTROUTING jumps there: {:?}",
            found.masquerade.evidence
        );
    }
    Ok(())
}

#[test]
fn the_backend_that_kubelet_uses_is_told_from_left_overs() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let netns = bare()?;
    let hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    restore(&netns, Backend::Nft, hint)?;
    restore(
        &netns,
        Backend::Legacy,
        "*filter\n:AZURE-NPM - [0:0]\nCOMMIT\n",
    )?;
    let policy = find(&netns)?.policy_engine;
    assert_eq!(policy.value, Some("azure_npm"));
    assert!(
        policy.evidence[0].contains("x_tables for IPv4, which kubelet does not use"),
        "{policy:?}"
    );
    Ok(())
}

#[test]
fn an_agents_left_overs_in_the_other_backend_do_not_count() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let netns = bare()?;
    let agent = |net: &str| {
        format!(
            "*mangle\n:MANGLED - [0:0]\nCOMMIT\n*nat\n:IP-MASQ-AGENT - [0:0]\n-A POSTROUTING -j IP-MASQ-AGENT\n\
             -A IP-MASQ-AGENT -d {net} -j RETURN\n-A IP-MASQ-AGENT -j MASQUERADE\nCOMMIT\n"
        )
    };
    restore(&netns, Backend::Nft, &agent("10.0.0.0/8"))?;
    let current = agent("10.244.0.0/16").replace("MANGLED", "KUBE-IPTABLES-HINT");
    restore(&netns, Backend::Legacy, &current)?;
    let masquerade = find(&netns)?.masquerade;
    assert_eq!(
        masquerade.evidence[0],
        "nat chain IP-MASQ-AGENT (ip, x_tables for IPv4; left over in nf_tables, which kubelet does not use)"
    );
    let agent = masquerade.value.flatten().expect("an agent");
    assert_eq!(agent.spared, ["10.244.0.0/16".parse()?]);
    Ok(())
}

#[test]
fn what_cns_translates_for_a_pod_subnet_is_no_agent_for_everything() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        let netns = bare()?;
        restore(
            &netns,
            backend,
            "*nat\n:SWIFT-POSTROUTING - [0:0]\n-A POSTROUTING -j SWIFT-POSTROUTING\n\
             -A SWIFT-POSTROUTING -s 10.241.0.0/16 -d 168.63.129.16/32 -p udp --dport 53 -j SNAT --to-source 10.224.0.4\n\
             COMMIT\n",
        )?;
        let agent = find(&netns)?.masquerade.value.flatten().expect("an agent");
        assert_eq!((agent.agent, agent.link_local), ("azure-cns", None));
        assert_eq!(agent.spared, []);
        assert_eq!(agent.to_string(), "azure-cns for what its rules name");
    }
    Ok(())
}

#[test]
fn engines_are_found_while_they_enforce_and_when_they_have_stopped() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for (builder, engine, name) in [
        (Testbed::kubenet(), Engine::AzureNpm, "azure_npm"),
        (Testbed::azure_overlay(), Engine::Calico, "calico"),
        (Testbed::kind(), Engine::Kindnet, "kindnet"),
        (
            Testbed::kind(),
            Engine::KubeNetworkPolicies,
            "kube_network_policies",
        ),
    ] {
        for backend in [Backend::Nft, Backend::Legacy] {
            let bed = builder.clone().engine(engine).backend(backend).build()?;
            let found = || -> Result<_> { Ok(find(bed.node().netns())?.policy_engine.value) };
            anyhow::ensure!(found()? == Some(name), "{name} without a policy");
            let policy = Isolation::new("shop", "web", Side::Ingress).select(&bed.pod(1));
            bed.enforce(&[policy])?;
            anyhow::ensure!(found()? == Some(name), "{name} with a policy");
            bed.stop_enforcing()?;
            anyhow::ensure!(found()? == Some(name), "{name} after it has stopped");
        }
    }
    Ok(())
}
