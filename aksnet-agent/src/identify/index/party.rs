//! A *party*: who is at an address as network policies see it, and since when that is so.

use aksnet_common::flow::Addr;

use super::{Index, Kept, Moment, Name, tenure};
use crate::policy::{
    flow::{Pod, Who},
    index::{Policies, When},
    model::Side,
};

/// After all that was told, and before a version ends that has not.
const NOW: When = When::At(Moment::MAX - 1);

impl Index {
    /// The network policies, with those that ended lately.
    #[must_use]
    pub const fn policies(&self) -> &Policies {
        &self.policies
    }

    /// A number that changes when policies may say something else of flows that were judged already: a policy, the
    /// labels of a namespace or of a pod of this node came, went or changed, or one of their sources has listed in
    /// full. Pods that come and go do not change it, nor do labels of other nodes' pods, of which there may be 150,000.
    #[must_use]
    pub const fn policy_generation(&self) -> u64 {
        self.policy_generation
    }

    /// Who was at an address at a moment, as network policies see it. `None`: nobody is known to have been, as in
    /// [`lookup`](Self::lookup).
    ///
    /// A pod that held the address then has the labels that it has now, or had last: [`settled`](Self::settled) tells
    /// since when. It is a [`Who::UnknownPod`] if its object is gone, or if only an endpoint slice told of it.
    #[must_use]
    pub fn party(&self, address: Addr, at: Moment) -> Option<Who<'_>> {
        let tenures = self.ledger.of(address);
        let (tenure, _) = tenure::at(tenures, at)?;
        Some(match tenure.who.what {
            super::What::Node => Who::Node {
                this: tenure.who.node == self.this_node,
            },
            super::What::Service | super::What::LoadBalancer | super::What::ExternalIp => {
                Who::Service
            }
            super::What::Pod => match self.account(tenures, tenure) {
                Some(kept) => Who::Pod(self.party_of(kept)),
                None => Who::UnknownPod,
            },
        })
    }

    /// Since when policies say the same of connections from one address to another: the last change of any policy that
    /// selects, or selected, one of the pods that held them at a moment, of these pods' labels, or of their
    /// namespaces'; as far as was heard, and by the time at which it was. [`Moment::MAX`]: not all policies are known
    /// yet.
    ///
    /// A connection that began later was met by the policies as they are, if whoever enforces them had time to. An end
    /// that is no known pod adds nothing: no policy selects it, and what a policy says of it does not depend on labels.
    #[must_use]
    pub fn settled(&self, src: Addr, dst: Addr, at: Moment) -> Moment {
        if !self.listed_policies.synced {
            return Moment::MAX;
        }
        let ends = [(src, Side::Egress), (dst, Side::Ingress)];
        ends.into_iter()
            .filter_map(|(address, side)| self.end_settled(address, side, at))
            .fold(self.policies_since, Moment::max)
    }

    fn end_settled(&self, address: Addr, side: Side, at: Moment) -> Option<Moment> {
        let tenures = self.ledger.of(address);
        let (tenure, _) = tenure::at(tenures, at)?;
        let kept = self.account(tenures, tenure)?;
        let pod = self.party_of(kept);
        let isolating = self.policies.isolating(&pod, side, NOW);
        let policies = isolating.map(|version| version.since).max();
        let namespace = self.namespaces.get((Name::EMPTY, kept.namespace));
        let moments = [
            kept.labels_since,
            namespace.map_or(0, |entry| entry.object.since),
            policies.unwrap_or(0),
            self.ends.last(pod.namespace, pod.labels),
        ];
        moments.into_iter().max()
    }

    /// The best account of the pod whose tenure it is, if there is one with labels. Other tenures of the pod's name are
    /// this pod's only if they were at the same time: a stateful set makes the next pod under the same name.
    fn account(&self, tenures: &[tenure::Tenure], of: &tenure::Tenure) -> Option<&Kept> {
        let mut best: Option<(tenure::Rank, &Kept)> = None;
        for tenure in tenures {
            let (who, rank) = (&tenure.who, tenure.who.rank);
            let better = best.is_none_or(|(known, _)| rank < known);
            let together = tenure.from < of.until && of.from < tenure.until;
            if better
                && together
                && who.is_pod_of(&of.who)
                && let Some(kept) = self.kept_of(tenure)
            {
                best = Some((rank, kept));
            }
        }
        best.map(|(_, kept)| kept)
    }

    /// The object of a tenure, if it is still there.
    fn kept_of(&self, tenure: &tenure::Tenure) -> Option<&Kept> {
        let slot = match tenure.who.rank {
            tenure::Rank::LocalPod => 0,
            tenure::Rank::RemotePod => 1,
            // Of which there are no more than fit on a node.
            tenure::Rank::Sandbox => return self.pods[2].owned_by(tenure.owner),
            _ => return None,
        };
        let entry = self.pods[slot].get((tenure.who.namespace, tenure.who.pod))?;
        (entry.owner == tenure.owner).then_some(&entry.object)
    }

    fn party_of<'a>(&'a self, kept: &'a Kept) -> Pod<'a> {
        let namespace = self.namespaces.get((Name::EMPTY, kept.namespace));
        Pod {
            namespace: self.names.text(kept.namespace),
            name: self.names.text(kept.pod),
            labels: &kept.shape.labels,
            namespace_labels: namespace.map(|entry| &*entry.object.namespace.labels),
            named_ports: kept.shape.named_ports.as_deref(),
        }
    }
}
