//! Families about names: how much is known of the cluster, and whether it is all there is.

use std::collections::BTreeMap;

use prometheus::proto::MetricFamily;

use super::describe::{self, Family};

/// The identity index's own series.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdentityFamilies {
    /// Objects known, by kind.
    pub(crate) objects: BTreeMap<&'static str, u64>,
    /// Whether each source has told all it has and tells what changes.
    pub(crate) synced: BTreeMap<&'static str, bool>,
}

impl IdentityFamilies {
    #[expect(
        clippy::cast_precision_loss,
        reason = "exposition is in double precision"
    )]
    pub(super) fn collect(&self, into: &mut Vec<MetricFamily>) {
        let mut objects = Family::new(describe::IDENTITY_OBJECTS);
        for (kind, count) in &self.objects {
            objects.gauge(vec![(*kind).to_owned()], *count as f64);
        }
        let mut synced = Family::new(describe::IDENTITY_SYNCED);
        for (source, is) in &self.synced {
            synced.gauge(vec![(*source).to_owned()], f64::from(u8::from(*is)));
        }
        into.extend([objects.build(), synced.build()]);
    }
}
