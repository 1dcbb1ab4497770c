//! Any JSON that the Kubernetes API sends, as an object, an event of a watch, an end of a page and a refusal of each kind:
//! what can be read is applied to the index and taken from it again.
//!
//! The first byte says of which kind it is.

use aksnet_agent::identify::{
    index::Index,
    object::Kind,
    reduce::{Event, Reducer, page_end, problem},
};

const KINDS: [Kind; 7] = [
    Kind::LocalPod,
    Kind::RemotePod,
    Kind::Service,
    Kind::Slice,
    Kind::Node,
    Kind::Namespace,
    Kind::Policy,
];

pub(crate) fn run(bytes: &[u8]) {
    let Some((first, json)) = bytes.split_first() else {
        return;
    };
    let kind = KINDS[usize::from(*first) % KINDS.len()];
    let mut reducer = Reducer::default();
    let mut index = Index::new("node");
    let mut objects = Vec::new();
    objects.extend(reducer.object(kind, json).ok().and_then(|one| one.object));
    if let Ok(Event::Applied(one) | Event::Deleted(one)) = reducer.event(kind, json) {
        objects.extend(one.object);
    }
    let _either = page_end(json);
    let _whatever = problem(json);
    for (object, now) in objects.into_iter().zip(1..) {
        index.apply(object, now);
    }
    index.settle(kind, 9);
    assert!(index.pods().count() <= 1);
    let _names = aksnet_agent::session::of_index(&index);
}
