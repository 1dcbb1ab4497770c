//! *Applying*: what an engine renders is brought to a node, and what was denied is read back from the counters of rules,
//! or from the verdict program. Rules change at once, with all their sets there; but a set in use is emptied and
//! filled anew member by member, so that no packets should be on their way meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Once;

use anyhow::{Context as _, Result, bail, ensure};

use super::verdict::VerdictProgram;
use super::{DenyAction, Isolation, Selected, Side, calico, npm, queue};
use crate::testbed::engine::Engine;
use crate::testbed::iptables::{self, Backend};
use crate::testbed::netns::Netns;
use crate::testbed::nftables;
use crate::testbed::plan::{Family, Flavour};

/// Whether this process has told that the kernel cannot queue from nftables.
static TOLD: Once = Once::new();

/// What an engine in iptables writes in one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Its sets by name, each as `ipset restore` input.
    pub sets: BTreeMap<String, String>,
    /// The chains of the filter table that are its own.
    pub chains: BTreeSet<String>,
    /// The rules in these chains.
    pub lines: Vec<String>,
    /// The rules whose counters tell what was denied.
    pub counted: Vec<Counted>,
}

impl Rules {
    pub(super) fn set(&mut self, name: &str, text: impl FnOnce(&str) -> String) {
        self.sets.insert(name.to_owned(), text(name));
    }

    /// All sets as one `ipset restore` input.
    #[must_use]
    pub fn set_text(&self) -> String {
        self.sets.values().map(String::as_str).collect()
    }

    /// The `iptables-restore --noflush` input for a table that leads here from where these chains were there.
    #[must_use]
    pub fn restore_text(&self, table: &str, before: &BTreeSet<String>) -> String {
        let stale: Vec<&String> = before.difference(&self.chains).collect();
        let mut text = format!("*{table}\n");
        for chain in self.chains.iter().chain(stale.iter().copied()) {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        for chain in stale {
            let _ = writeln!(text, "-X {chain}");
        }
        text + "COMMIT\n"
    }
}

/// A rule that counts denied packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Its chain.
    pub chain: String,
    /// What of it tells it from the chain's other rules.
    pub contains: String,
    /// The side it counts.
    pub side: Side,
    /// The policy it counts for, as `namespace/policy`; all when none.
    pub policy: Option<String>,
}

/// What a node is, as far as engines write rules by it.
#[derive(Debug)]
pub struct Ground<'a> {
    /// The node's namespace.
    pub netns: &'a Netns,
    /// Where iptables keeps its rules.
    pub backend: Backend,
    /// The families of the cluster.
    pub families: Vec<Family>,
    /// How its pods are wired.
    pub flavour: Flavour,
    /// The engine.
    pub engine: Engine,
    /// What it does with what it denies.
    pub deny: DenyAction,
    /// Its own pods.
    pub pods: Vec<Selected>,
}

/// What is enforced on a node.
#[derive(Debug, Default)]
pub struct Engaged {
    rules: BTreeMap<Family, Rules>,
    program: Option<VerdictProgram>,
    enforcing: bool,
}

impl Engaged {
    /// Enforces these policies in place of those before. All counters begin anew.
    ///
    /// # Errors
    /// When there is no engine, two policies are the same, or the node refuses the rules.
    pub fn enforce(&mut self, ground: &Ground<'_>, isolations: &[Isolation]) -> Result<()> {
        let mut seen = BTreeSet::new();
        for isolation in isolations {
            ensure!(
                seen.insert((isolation.key(), isolation.side)),
                "policy {} is given twice for {}: put all it allows in one",
                isolation.key(),
                isolation.side
            );
        }
        match ground.engine {
            Engine::None => bail!("no policy engine: choose one with Builder::engine"),
            Engine::AzureNpm if isolations.is_empty() => {
                self.write(ground, Family::V4, npm::idle())?;
            }
            Engine::AzureNpm => self.write(ground, Family::V4, npm::render(isolations))?,
            Engine::Calico => {
                ensure!(
                    ground.flavour != Flavour::Kubenet,
                    "Calico knows pods by their interfaces, which kubenet's bridge hides: use another flavour"
                );
                for family in &ground.families {
                    let rules = calico::render(*family, ground.deny, &ground.pods, isolations);
                    self.write(ground, *family, rules)?;
                }
            }
            Engine::Kindnet => self.queue(ground, queue::KINDNET, isolations)?,
            Engine::KubeNetworkPolicies => self.queue(ground, queue::STANDALONE, isolations)?,
        }
        self.enforcing = true;
        Ok(())
    }

    /// Stops enforcing, as when the engine is gone: nothing is denied any more. What else it has on the node stays:
    /// chains that let everything pass, or a table that queues to nobody and is bypassed.
    ///
    /// # Errors
    /// When the node refuses the rules.
    pub fn stop(&mut self, ground: &Ground<'_>) -> Result<()> {
        self.enforcing = false;
        self.program = None;
        for family in self.rules.keys().copied().collect::<Vec<_>>() {
            let rules = match ground.engine {
                Engine::AzureNpm => npm::idle(),
                Engine::Calico => Rules {
                    chains: ["cali-from-wl-dispatch", "cali-to-wl-dispatch"]
                        .map(str::to_owned)
                        .into(),
                    ..Rules::default()
                },
                // Its table stays, and is bypassed now.
                Engine::None | Engine::Kindnet | Engine::KubeNetworkPolicies => continue,
            };
            self.write(ground, family, rules)?;
        }
        Ok(())
    }

    /// The packets denied on a side since these policies were enforced: of pods that this policy (`namespace/policy`)
    /// selects, or in all. With Azure NPM a policy's number has also the packets that it does not allow but another
    /// one that selects the same pod does.
    ///
    /// # Errors
    /// When nothing is enforced, or the counters cannot be read.
    pub fn denied(&self, ground: &Ground<'_>, policy: Option<&str>, side: Side) -> Result<u64> {
        ensure!(self.enforcing, "nothing is enforced");
        if let Some(program) = &self.program {
            return Ok(program.denied(policy, side));
        }
        let mut sum = 0;
        for (family, rules) in &self.rules {
            let there = iptables::rules(ground.netns, ground.backend, *family)?;
            let counted = rules
                .counted
                .iter()
                .filter(|counted| counted.side == side && counted.policy.as_deref() == policy);
            for counted in counted {
                let rule = there
                    .iter()
                    .find(|rule| {
                        rule.chain == counted.chain && rule.spec.contains(&counted.contains)
                    })
                    .with_context(|| {
                        format!("no {} in chain {}", counted.contains, counted.chain)
                    })?;
                sum += rule.packets;
            }
        }
        Ok(sum)
    }

    /// Sets first, rules then, and last the sets that no rule is left to use.
    fn write(&mut self, ground: &Ground<'_>, family: Family, rules: Rules) -> Result<()> {
        let none = Rules::default();
        let before = self.rules.get(&family).unwrap_or(&none);
        if !rules.sets.is_empty() {
            ground
                .netns
                .output_with_input("ipset", ["restore", "-exist"], &rules.set_text())?;
        }
        let table = match ground.engine {
            Engine::Kindnet | Engine::KubeNetworkPolicies => "mangle",
            _ => "filter",
        };
        let text = rules.restore_text(table, &before.chains);
        iptables::restore(ground.netns, ground.backend, family, &text)?;
        let mut stale = String::new();
        for name in before.sets.keys() {
            if !rules.sets.contains_key(name) {
                let _ = writeln!(stale, "destroy {name}");
            }
        }
        if !stale.is_empty() {
            ground
                .netns
                .output_with_input("ipset", ["restore"], &stale)?;
        }
        self.rules.insert(family, rules);
        Ok(())
    }

    fn queue(
        &mut self,
        ground: &Ground<'_>,
        queue: queue::Queue,
        isolations: &[Isolation],
    ) -> Result<()> {
        // The program knows of all pods, and judges its node's.
        let local: Vec<Isolation> = isolations
            .iter()
            .map(|isolation| Isolation {
                pods: isolation
                    .pods
                    .iter()
                    .filter(|pod| ground.pods.iter().any(|local| local.address == pod.address))
                    .cloned()
                    .collect(),
                ..isolation.clone()
            })
            .collect();
        let program = match self.program.take() {
            Some(program) => program,
            None => VerdictProgram::start(ground.netns, queue)?,
        };
        program.decide_by(local.clone());
        self.program = Some(program);
        if load_table(ground.netns, &queue::render(queue, &local))? == Queueing::Itself {
            return Ok(());
        }
        if local.iter().any(|isolation| !isolation.pods.is_empty()) {
            TOLD.call_once(|| {
                println!(
                    "skipped: nftables cannot queue here, iptables' NFQUEUE stands in: the rules of table {} that queue",
                    queue.table
                );
            });
        }
        for family in &ground.families {
            if !self.rules.contains_key(family) {
                let (chain, none) = (queue::STAND_IN, BTreeSet::new());
                let jump = Rules {
                    chains: BTreeSet::from([chain.to_owned()]),
                    lines: vec![format!("-A POSTROUTING -j {chain}")],
                    ..Rules::default()
                };
                let text = jump.restore_text("mangle", &none);
                iptables::restore(ground.netns, ground.backend, *family, &text)?;
            }
            self.write(ground, *family, queue::stand_in(queue, *family, &local))?;
        }
        Ok(())
    }
}

/// Who queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queueing {
    /// The table itself.
    Itself,
    /// Nobody, as the kernel has no `queue` in nftables: the table lets pass what it would queue.
    Nobody,
}

/// Loads an engine's table, on kernels that cannot queue from it in a form that does not.
///
/// # Errors
/// When nft refuses it for another reason, or that form too.
pub fn load_table(netns: &Netns, table: &str) -> Result<Queueing> {
    let refused = match nftables::load(netns, table) {
        Ok(()) => return Ok(Queueing::Itself),
        Err(refused) => refused,
    };
    // nft's words for what the kernel refuses, other than what it does not understand itself.
    let by_kernel = format!("{refused:#}").contains("Could not process rule");
    if !by_kernel || !cannot_queue(netns)? {
        return Err(refused);
    }
    nftables::load(netns, &queue::without_queue(table))?;
    Ok(Queueing::Nobody)
}

/// Whether it is `queue` that nft is refused here: it is not without it. Nothing is loaded.
fn cannot_queue(netns: &Netns) -> Result<bool> {
    let check = |rule: &str| {
        let table = format!("table inet queue-probe {{ chain probe {{ {rule}; }}; }}");
        netns.output("nft", ["-c", &table])
    };
    check("accept").context("nft is refused any table")?;
    Ok(check("queue flags bypass to 1").is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_are_no_longer_needed_are_flushed_and_removed() {
        let rules = Rules {
            chains: BTreeSet::from(["A".to_owned()]),
            lines: vec!["-A A -j RETURN".to_owned()],
            ..Rules::default()
        };
        let before = BTreeSet::from(["A".to_owned(), "B".to_owned()]);
        assert_eq!(
            rules.restore_text("filter", &before),
            "*filter\n:A - [0:0]\n:B - [0:0]\n-A A -j RETURN\n-X B\nCOMMIT\n"
        );
    }
}
