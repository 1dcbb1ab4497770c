//! Lists everything once, for a question that is asked once.

use std::time::Duration;

use super::{
    Access, RESOURCES, Resource,
    pages::{LONGEST, Pages},
    request::{self, open, piece, target},
};
use crate::{
    exit::{Exit, Failure},
    identify::{object::Kind, reduce},
};

/// How long the server may take to begin its answer, and to go on with it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Objects of a page.
const PAGE: &str = "500";

/// What is listed.
const KINDS: [Kind; 5] = [
    Kind::LocalPod,
    Kind::Service,
    Kind::Node,
    Kind::Namespace,
    Kind::Policy,
];

/// What objects of a resource call themselves; items of a list do not say it.
#[must_use]
pub fn kind(resource: &Resource) -> &'static str {
    match resource.kind {
        Kind::LocalPod | Kind::RemotePod | Kind::Sandbox => "Pod",
        Kind::Service => "Service",
        Kind::Slice => "EndpointSlice",
        Kind::Node => "Node",
        Kind::Namespace => "Namespace",
        Kind::Policy => "NetworkPolicy",
    }
}

/// Lists pods of all nodes, services, nodes, namespaces and policies, and hands over each object as it is written.
///
/// # Errors
/// When the server is not there, refuses, or stops in the middle; or when it is not known which server.
pub async fn list(access: &Access, mut found: impl FnMut(&Resource, &[u8])) -> Result<(), Failure> {
    let client = match access.client().await? {
        Ok(client) => client,
        Err(why) => {
            return Err(Failure::new(
                Exit::Usage,
                format_args!(
                    "no objects to ask about: {why}; give manifests with -f, or --kubeconfig FILE"
                ),
            ));
        }
    };
    for resource in RESOURCES.iter().filter(|one| KINDS.contains(&one.kind)) {
        let failed = |error: &request::Failure| {
            let (plural, why) = (resource.plural, &error.message);
            Failure::new(
                Exit::Unavailable,
                format_args!(
                    "Kubernetes API: cannot list {plural}: {why}; give manifests with -f instead"
                ),
            )
        };
        let broken = |why: &str| failed(&request::Failure::new(request::Class::Broken, why));
        let no_list = || broken("its answer is no list of objects");
        let mut next = String::new();
        loop {
            let mut query = vec![("limit", PAGE)];
            if !next.is_empty() {
                query.push(("continue", &next));
            }
            let at = target(&resource.path(), &query);
            let mut body = open(&client, &at, PATIENCE).await.map_err(|e| failed(&e))?;
            let mut pages = Pages::new();
            let mut too_long = false;
            while let Some(piece) = piece(&mut body, PATIENCE).await.map_err(|e| failed(&e))? {
                let pushed = pages.push(&piece, |item| match item {
                    Some(item) => found(resource, item),
                    None => too_long = true,
                });
                pushed.map_err(|_| no_list())?;
                // Without it the verdict would be about less than there is.
                if too_long {
                    let longest = LONGEST >> 20;
                    return Err(broken(&format!("one of them is longer than {longest} MiB")));
                }
            }
            let frame = pages.finish().map_err(|_| no_list())?;
            let end = reduce::page_end(&frame).map_err(|_| no_list())?;
            if end.version.is_empty() {
                // An answer of some other kind must not pass for an empty list.
                return Err(no_list());
            }
            next = end.next;
            if next.is_empty() {
                break;
            }
        }
    }
    Ok(())
}
