//! What policies cost at the size of the largest clusters: an evaluation, and a change.
//!
//! `cargo bench -p aksnet-agent --bench policy` prints how long it takes to judge a flow between two pods at random
//! among 150,000, with 10,000 policies, where it is allowed and where it is denied; to say why; and to put another
//! version of a policy into the index. Once more with all 10,000 policies in one namespace, which finds the pods' by
//! their labels.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers of a benchmark are small and printed with three digits"
)]

#[expect(unreachable_pub, reason = "one benchmark: `pub` says what it uses")]
#[expect(dead_code, reason = "the index's own parts are not needed here")]
mod cluster;

use std::{hint::black_box, net::IpAddr, time::Instant};

use aksnet_agent::{
    identify::object::Pod,
    policy::{
        engine::Engine,
        evaluate::Outcome,
        flow::{End, Flow, Pod as PolicyPod, Who},
        index::{Policies, When},
        model::{NetworkPolicy, Peers, Rule},
    },
};
use cluster::{PODS, S, needs, pod, policy, random, resident};
use criterion::Criterion;
use xtask::bench::{
    figure::{self, Figure, Table},
    row,
};

const POLICIES: u32 = 10_000;
const ROUNDS: usize = 9;
const FLOWS: u32 = 100_000;

fn figure(row: &str, rounds: Vec<f64>) {
    Figure::range(Table::Agent, row, "-", rounds).print();
}

fn index(one_namespace: bool) -> Policies {
    let mut policies = Policies::default();
    for service in 0..POLICIES {
        policies.apply(policy(service, one_namespace), S);
    }
    policies
}

fn end(pod: &Pod) -> End<'_> {
    End {
        address: IpAddr::from(pod.addresses[0]),
        who: Who::Pod(PolicyPod {
            namespace: &pod.namespace,
            name: &pod.name,
            labels: &pod.labels,
            namespace_labels: None,
            named_ports: Some(&pod.named_ports),
        }),
    }
}

/// Flows whose client is a neighbour of its server, which is allowed, or anybody, which is not.
fn flows(pods: &[Pod], allowed: bool) -> Vec<Flow<'_>> {
    let mut state = 1;
    (0..FLOWS)
        .map(|_| {
            // The service 900 further is of the same namespace, unless it wraps.
            let further = 900 * (PODS / POLICIES);
            let dst = random(&mut state) % (PODS - further);
            let src = dst + if allowed { further } else { 7 };
            let port = if allowed { 8080 } else { 9090 };
            Flow {
                src: end(&pods[src as usize]),
                dst: end(&pods[dst as usize]),
                protocol: 6,
                port,
                by_node_port: false,
            }
        })
        .collect()
}

fn evaluate(policies: &Policies, flow: &Flow<'_>) -> Outcome {
    policies
        .evaluate(black_box(flow), When::At(2 * S), Engine::AzureNpm)
        .outcome()
}

fn evaluations(policies: &Policies, flows: &[Flow<'_>], outcome: Outcome, row: &str) {
    let right = flows
        .iter()
        .filter(|flow| evaluate(policies, flow) == outcome);
    assert_eq!(
        right.count(),
        flows.len(),
        "what is measured is what is named"
    );
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        for flow in flows {
            black_box(evaluate(policies, flow));
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(FLOWS)
    });
    figure(row, rounds.collect());
}

fn explanations(policies: &Policies, flows: &[Flow<'_>]) {
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        for flow in &flows[..10_000] {
            let explanation = policies.explain(flow, When::At(2 * S), Engine::AzureNpm);
            black_box(explanation.ingress.to_string());
        }
        start.elapsed().as_secs_f64() * 1e6 / 10_000.0
    });
    figure(row::POLICY_EXPLAINED, rounds.collect());
}

/// Policies that change their content, one after the other.
fn changes(policies: &mut Policies) {
    let mut now = 2 * S;
    let rounds = (0..ROUNDS as u32).map(|round| {
        let changed = (0..1_000).map(|n| {
            let mut policy = policy(n * 7 % POLICIES, false);
            policy.egress = round.is_multiple_of(2).then(Box::default);
            policy
        });
        let changed: Vec<NetworkPolicy> = changed.collect();
        let start = Instant::now();
        for policy in changed {
            now += S / 1_000;
            assert!(policies.apply(policy, now), "each is news");
        }
        start.elapsed().as_secs_f64() * 1e3 / 1_000.0
    });
    figure(row::POLICY_CHANGED, rounds.collect());
}

fn main() {
    // One after another, so that pods lie in memory as a cluster's do: not in the order in which they are asked for.
    let pods: Vec<Pod> = (0..PODS).map(|n| pod(n, 10)).collect();
    let before = resident();
    let start = Instant::now();
    let mut policies = index(false);
    println!(
        "{POLICIES} policies: indexed in {:.1} ms, {:.1} MiB more",
        start.elapsed().as_secs_f64() * 1e3,
        resident() - before,
    );
    let (allowed, denied) = (flows(&pods, true), flows(&pods, false));
    evaluations(&policies, &allowed, Outcome::Allowed, row::POLICY_ALLOWED);
    evaluations(&policies, &denied, Outcome::Denied, row::POLICY_DENIED);
    explanations(&policies, &denied);
    changes(&mut policies);
    // `cargo xtask bench` wants figures only; what follows is for people.
    if std::env::args().any(|argument| argument == figure::JSON) {
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    let policies = index(true);
    let crowded: Vec<Pod> = pods
        .iter()
        .map(|pod| Pod {
            namespace: "team-000".into(),
            ..pod.clone()
        })
        .collect();
    for (name, wanted) in [("allowed", true), ("denied", false)] {
        let flows = flows(&crowded, wanted);
        let mut turn = 0;
        let title = format!("{name}, all policies in one namespace");
        criterion.bench_function(&title, |bench| {
            bench.iter(|| {
                turn = (turn + 1) % flows.len();
                evaluate(&policies, &flows[turn])
            });
        });
    }
    let long = NetworkPolicy {
        ingress: Some(
            (0..10_000u32)
                .map(|n| Rule {
                    peers: Box::new([Peers::Pods {
                        namespaces: None,
                        pods: Some(needs(&[("app", n.to_string())])),
                    }]),
                    ports: Box::default(),
                })
                .collect(),
        ),
        ..policy(0, true)
    };
    let mut policies = Policies::default();
    policies.apply(long, S);
    let flow = Flow {
        src: end(&crowded[100]),
        dst: end(&crowded[0]),
        protocol: 6,
        port: 80,
        by_node_port: false,
    };
    assert_eq!(evaluate(&policies, &flow), Outcome::Denied);
    criterion.bench_function("denied by a policy of 10,000 rules", |bench| {
        bench.iter(|| evaluate(&policies, &flow));
    });
    criterion.final_summary();
}
