//! The live view of a small node: an egress through SNAT, a DNS query to a service of which one packet passed and one
//! was dropped, a denied connection.

use super::*;
use crate::top::tests::small_node;

fn look(query: &LiveQuery) -> Result<Snapshot, String> {
    small_node(|collector, source, whois, names| {
        let view = View {
            collector,
            source,
            whois,
            names,
            now: 14_000_000_000,
        };
        view.look(query, &Outside::default())
    })
}

fn filtered(change: impl FnOnce(&mut Filter)) -> LiveQuery {
    let mut query = LiveQuery::default();
    change(&mut query.filter);
    query
}

/// Classes of the flows, and who talks to whom.
fn classes(query: &LiveQuery) -> Vec<String> {
    let snapshot = look(query).expect("understood");
    assert_eq!(snapshot.matching, snapshot.flows.len() as u64);
    snapshot.flows.into_iter().map(|row| row.class).collect()
}

#[test]
fn one_look_has_flows_pairs_nat_and_sums() {
    let snapshot = look(&LiveQuery::default()).unwrap();
    let classes: Vec<&str> = snapshot.flows.iter().map(|r| r.class.as_str()).collect();
    assert_eq!(classes, ["pod_to_external", "pod_to_service", "pod_to_pod"]);
    assert_eq!((snapshot.matching, snapshot.pairs), (3, 2));
    assert_eq!((snapshot.unix_ms, snapshot.interval_ms), (1_004_000, 4_000));

    let totals = snapshot.totals;
    assert_eq!((totals.flows, totals.connections, totals.nated), (2, 2, 2));
    assert!((totals.bytes_per_second - 765.0).abs() < 1e-6);

    let pair = &snapshot.workloads[0];
    assert_eq!(pair.from, crate::top::model::Who::default());
    assert_eq!(pair.to.workload, "internet");
    assert_eq!((pair.packets, pair.bytes), (3, 3_000));
    assert!((pair.bytes_out - 750.0).abs() < 1e-6);
    assert_eq!((pair.connections, pair.open, pair.nated), (1, 1, 1));
    assert_eq!(pair.first.unwrap().samples, 1);
    assert_eq!(pair.established.unwrap().samples, 2);
    // The denied connection has no flow, as no packet of it passed: its pair has the drops, with the query's.
    let denied = &snapshot.workloads[1];
    assert_eq!((denied.drops, denied.packets), (3, 1));
    assert_eq!(denied.classes, ["pod_to_service"]);

    let kinds: Vec<(&str, u64)> = snapshot
        .nat
        .kinds
        .iter()
        .map(|kind| (kind.nat.as_str(), kind.connections))
        .collect();
    assert_eq!(kinds, [("none", 0), ("snat", 1), ("dnat", 1), ("both", 0)]);
    assert_eq!(snapshot.nat.kinds[1].established.unwrap().samples, 2);
    // One time makes no median to compare with.
    assert_eq!(snapshot.nat.kinds[1].first_overhead_ns, None);
    assert_eq!(snapshot.nat.classes.len(), 2);
    assert_eq!(snapshot.nat.all_destinations, None);
    assert_eq!(snapshot.node.flow_cells, 2);
}

#[test]
fn a_filter_chooses_flows_and_pairs_and_leaves_the_sums() {
    for (text, chosen) in [
        ("", 3),
        ("93.184", 1),
        ("443", 1),
        (":443", 1),
        ("93.184.216.34:443", 1),
        ("nobody", 0),
        ("65", 0),
        ("INTERNET", 1),
        ("udp", 1),
        ("tcp", 2),
        ("tc", 0),
        // The egress' source after NAT, the service's endpoint.
        ("10.224.0.4", 1),
        ("10.244.1.7", 1),
        ("veth1", 3),
        ("pod_to", 3),
        ("snat veth1", 1),
        ("snat udp", 0),
        ("firewall", 2),
        ("firewall udp", 1),
        ("external", 1),
    ] {
        let query = filtered(|filter| filter.text = text.to_owned());
        let snapshot = look(&query).unwrap();
        assert_eq!(snapshot.flows.len(), chosen, "{text}");
        assert_eq!(snapshot.matching, chosen as u64, "{text}");
        assert_eq!(snapshot.pairs > 0, chosen > 0, "{text}");
        assert_eq!(snapshot.totals.flows, 2, "{text}");
    }
    let kind = filtered(|filter| filter.class = vec!["pod_to_service".to_owned()]);
    assert_eq!(classes(&kind), ["pod_to_service"]);
    let nat = filtered(|filter| filter.nat = vec!["snat".to_owned(), "both".to_owned()]);
    assert_eq!(classes(&nat), ["pod_to_external"]);
    let namespace = filtered(|filter| filter.namespace = Some("shop".to_owned()));
    assert_eq!(classes(&namespace), [""; 0]);
}

#[test]
fn each_word_of_a_row_finds_it() {
    let rows = look(&LiveQuery::default()).unwrap().flows;
    for row in &rows {
        let mut words = vec![&row.class, &row.nat, &row.scope, &row.protocol];
        words.extend([&row.in_interface, &row.out_interface]);
        words.extend([&row.from.workload, &row.to.workload]);
        words.extend(row.drop_cause.iter().chain(&row.drop_reason));
        for word in words {
            let query = filtered(|filter| filter.text.clone_from(word));
            let found = look(&query).unwrap().flows;
            assert!(found.contains(row), "{word:?} does not find {row:?}");
        }
    }
    let query = filtered(|filter| filter.text = "cross_zone".to_owned());
    assert_eq!(classes(&query), [""; 0]);
}

#[test]
fn what_is_not_understood_is_named() {
    let wrong = filtered(|filter| filter.class = vec!["pod_to_servise".to_owned()]);
    let said = look(&wrong).unwrap_err();
    assert!(said.contains("'pod_to_servise'"), "{said}");
    assert!(said.contains("pod_to_service"), "{said}");
    let wrong = filtered(|filter| filter.nat = vec!["SNAT".to_owned()]);
    assert!(look(&wrong).unwrap_err().contains("no NAT 'SNAT'"));
    let wrong = filtered(|filter| filter.text = "a ".repeat(17));
    assert!(look(&wrong).unwrap_err().contains("at most 16 words"));
}

#[test]
fn order_and_limit_are_the_questions() {
    let first = |sort, reverse| {
        let query = LiveQuery {
            sort,
            reverse,
            limit: 1,
            ..LiveQuery::default()
        };
        let snapshot = look(&query).unwrap();
        assert_eq!((snapshot.flows.len(), snapshot.workloads.len()), (1, 1));
        assert_eq!((snapshot.matching, snapshot.pairs), (3, 2));
        snapshot.flows[0].class.clone()
    };
    for sort in Sort::ALL {
        let expected = match sort {
            Sort::Drops => "pod_to_pod",
            _ => "pod_to_external",
        };
        if sort != Sort::Recent {
            assert_eq!(first(sort, false), expected, "{sort:?}");
        }
    }
    // What was never timed is neither fastest nor slowest.
    assert_eq!(first(Sort::First, true), "pod_to_service");
    assert_eq!(first(Sort::Established, true), "pod_to_external");
    assert_ne!(first(Sort::ByteRate, true), "pod_to_external");
    let none = LiveQuery {
        limit: 0,
        ..LiveQuery::default()
    };
    assert_eq!(look(&none).unwrap().flows, []);
}

#[test]
fn a_followed_flow_is_answered_whatever_the_filter_says() {
    let all = look(&LiveQuery::default()).unwrap();
    let id = FlowId::of(&all.flows[1]);
    let query = LiveQuery {
        follow: Some(id.clone()),
        ..filtered(|filter| filter.text = "nobody".to_owned())
    };
    let snapshot = look(&query).unwrap();
    assert_eq!(snapshot.flows, []);
    assert_eq!(snapshot.followed.as_ref(), Some(&all.flows[1]));
    let elsewhere = FlowId {
        in_interface: "veth2".to_owned(),
        ..id
    };
    let query = LiveQuery {
        follow: Some(elsewhere),
        ..query
    };
    assert_eq!(look(&query).unwrap().followed, None);
}

#[test]
fn snapshots_travel_as_json_and_lack_nothing_that_another_version_does_not_send() {
    let snapshot = look(&LiveQuery::default()).unwrap();
    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
    let bare: Snapshot = serde_json::from_str(r#"{"unix_ms": 5, "later": true}"#).unwrap();
    assert_eq!(bare.unix_ms, 5);
}
