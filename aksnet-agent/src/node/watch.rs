//! Follows the node's links, addresses and routes.
//!
//! Level-triggered: a notification only says *that* something changed; what is so now is always read by a
//! dump. So no message format, order or loss can leave a wrong picture: after an overrun, an error, and
//! every [`RECONCILE`] all of it is read again. A rollout changes hundreds of links in a second, so changes
//! that follow each other within [`DEBOUNCE`] are read together, and dumps take at most a tenth of the time, unless
//! that would keep a new pod waiting for longer than [`LONGEST_PAUSE`].

use std::time::Duration;

use futures::{Stream, StreamExt};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    sys::AsyncSocket,
};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};

use super::{Snapshot, netlink::Netlink};

/// Changes this close together are read together.
pub const DEBOUNCE: Duration = Duration::from_millis(20);
/// Between two dumps, at the most: what is left of the second in which a new pod is to be watched has to do for the
/// attachments.
pub const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Everything is read again this often, whatever was or was not notified.
pub const RECONCILE: Duration = Duration::from_secs(30);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Room for the notifications of a rollout while a dump is being read.
const RECEIVE_BUFFER: usize = 1 << 20;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// The running watch. Ends when it is dropped.
pub struct Watch {
    snapshots: mpsc::Receiver<Snapshot>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Subscribes, and only then reads everything once, so that nothing falls in between.
    ///
    /// # Errors
    /// When the kernel refuses the sockets or the first dump.
    pub async fn start() -> anyhow::Result<(Snapshot, Self)> {
        let mut follower = Follower::new()?;
        follower.read().await?;
        let first = follower.last.clone();
        let (sender, snapshots) = mpsc::channel(4);
        let task = tokio::spawn(follower.run(sender));
        Ok((first, Self { snapshots, task }))
    }

    /// The next snapshot that differs from the one before. Never returns `None` while the watch lives.
    /// Nothing is lost when it is cancelled.
    pub async fn next(&mut self) -> Option<Snapshot> {
        self.snapshots.recv().await
    }
}

/// What has to be read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Dirty {
    links: bool,
    addresses: bool,
    routes: bool,
}

impl Dirty {
    const ALL: Self = Self {
        links: true,
        addresses: true,
        routes: true,
    };
}

type Message = NetlinkMessage<RouteNetlinkMessage>;
type Events = Box<dyn Stream<Item = Message> + Send + Unpin>;

struct Follower {
    events: Events,
    netlink: Netlink,
    connection: JoinHandle<()>,
    last: Snapshot,
    dirty: Dirty,
    /// Not before then.
    due: Instant,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Follower {
    fn new() -> std::io::Result<Self> {
        let (events, connection) = subscribe()?;
        Ok(Self {
            events,
            netlink: Netlink::open()?,
            connection,
            last: Snapshot::default(),
            dirty: Dirty::ALL,
            due: Instant::now(),
        })
    }

    async fn run(mut self, snapshots: mpsc::Sender<Snapshot>) {
        let mut reconcile = tokio::time::interval(RECONCILE);
        reconcile.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        reconcile.tick().await;
        loop {
            tokio::select! {
                event = self.events.next() => match event {
                    Some(message) => self.note(&message),
                    None => self.resubscribe().await,
                },
                _ = reconcile.tick() => self.dirty = Dirty::ALL,
                () = tokio::time::sleep_until(self.due), if self.dirty != Dirty::default() => {
                    match self.read().await {
                        Ok(false) => {}
                        Ok(true) => {
                            let snapshot = self.last.clone();
                            self.last.deleted.clear();
                            if snapshots.send(snapshot).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => {
                            tracing::warn!("reading interfaces failed, trying again: {error:#}");
                            self.resubscribe().await;
                        }
                    }
                }
            }
        }
    }

    /// Takes note of what a notification says has changed.
    fn note(&mut self, message: &Message) {
        if self.dirty == Dirty::default() {
            self.due = self.due.max(Instant::now() + DEBOUNCE);
        }
        match &message.payload {
            NetlinkPayload::InnerMessage(inner) => match inner {
                RouteNetlinkMessage::NewLink(_) => self.dirty.links = true,
                RouteNetlinkMessage::DelLink(link) => {
                    self.dirty.links = true;
                    // AF_BRIDGE: it only left its bridge.
                    if link.header.interface_family == AddressFamily::Unspec {
                        self.last.deleted.insert(link.header.index);
                    }
                }
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                    self.dirty.addresses = true;
                }
                RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => {
                    self.dirty.routes = true;
                }
                _ => {}
            },
            // Notifications were lost (ENOBUFS), or the kernel said something unexpected.
            _ => self.dirty = Dirty::ALL,
        }
    }

    /// Reads what is dirty. True if anything differs from before.
    async fn read(&mut self) -> Result<bool, rtnetlink::Error> {
        let begun = Instant::now();
        let dirty = std::mem::take(&mut self.dirty);
        let read = self.read_parts(dirty).await;
        if read.is_err() {
            self.dirty = Dirty::ALL;
        }
        self.due = Instant::now() + pause_after(begun.elapsed());
        read
    }

    async fn read_parts(&mut self, dirty: Dirty) -> Result<bool, rtnetlink::Error> {
        let mut changed = !self.last.deleted.is_empty();
        if dirty.links {
            changed |= replace(&mut self.last.links, self.netlink.links().await?);
        }
        if dirty.addresses {
            changed |= replace(&mut self.last.addresses, self.netlink.addresses().await?);
        }
        if dirty.routes {
            changed |= replace(&mut self.last.routes, self.netlink.routes().await?);
        }
        Ok(changed)
    }

    /// Starts over with new sockets, for as long as it takes.
    async fn resubscribe(&mut self) {
        self.dirty = Dirty::ALL;
        loop {
            tokio::time::sleep(RETRY).await;
            match (subscribe(), Netlink::open()) {
                (Ok((events, connection)), Ok(netlink)) => {
                    self.connection.abort();
                    self.connection = connection;
                    self.events = events;
                    self.netlink = netlink;
                    return;
                }
                (Err(error), _) | (_, Err(error)) => {
                    tracing::warn!("following interfaces failed, trying again: {error}");
                }
            }
        }
    }
}

/// At most a tenth of the time is spent on dumps, but nothing waits for long: on a busy machine, a dump can take much of
/// a second for want of a processor.
fn pause_after(dump: Duration) -> Duration {
    (9 * dump).min(LONGEST_PAUSE)
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let differs = *old != new;
    *old = new;
    differs
}

fn subscribe() -> std::io::Result<(Events, JoinHandle<()>)> {
    let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
    connection
        .socket_mut()
        .socket_mut()
        .set_rx_buf_sz(RECEIVE_BUFFER)?;
    let events = Box::new(messages.map(|(message, _)| message));
    Ok((events, tokio::spawn(connection)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        node::{Node, tests::netns},
    };
    use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};

    async fn index(netlink: &Netlink, name: &str) -> u32 {
        let links = netlink.links().await.unwrap();
        links.iter().find(|l| l.name == name).unwrap().index
    }

    /// Waits until the node looks as it should, or fails with what it looks like.
    async fn until(watch: &mut Watch, mut fits: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        let mut last = Snapshot::default();
        let found = tokio::time::timeout(Duration::from_secs(5), async {
            loop {
                last = watch.next().await.unwrap();
                if fits(&last) {
                    return;
                }
            }
        });
        let found = found.await;
        assert!(found.is_ok(), "not seen within 5 s; last: {last:#?}");
        last
    }

    fn watched(snapshot: &Snapshot) -> Vec<String> {
        Node::describe(
            snapshot,
            &Config::default(),
            "n",
            &crate::node::Context::default(),
        )
        .interfaces()
        .map(|i| i.name.clone())
        .collect()
    }

    #[test]
    fn a_slow_dump_does_not_keep_new_pods_waiting() {
        assert_eq!(
            pause_after(Duration::from_millis(2)),
            Duration::from_millis(18)
        );
        assert_eq!(pause_after(Duration::from_secs(2)), LONGEST_PAUSE);
    }

    #[test]
    fn veths_are_seen_as_they_come_and_go() {
        netns::run(|pod| async move {
            let (first, mut watch) = Watch::start().await.unwrap();
            assert_eq!(watched(&first), Vec::<String>::new());
            let netlink = Netlink::open().unwrap();
            let handle = netlink.handle();
            handle
                .link()
                .add(LinkBridge::new("cbr0").build())
                .execute()
                .await
                .unwrap();
            let bridge = index(&netlink, "cbr0").await;
            for n in 0..20 {
                let (host, inside) = (format!("veth{n}"), format!("p{n}"));
                handle
                    .link()
                    .add(LinkVeth::new(&host, &inside).build())
                    .execute()
                    .await
                    .unwrap();
                let inside = LinkUnspec::new_with_name(&inside).setns_by_fd(pod).build();
                handle.link().set(inside).execute().await.unwrap();
                let host = LinkUnspec::new_with_name(&host)
                    .controller(bridge)
                    .up()
                    .build();
                handle.link().set(host).execute().await.unwrap();
            }
            until(&mut watch, |s| watched(s).len() == 20).await;
            let gone = index(&netlink, "veth7").await;
            handle.link().del(gone).execute().await.unwrap();
            let mut deleted = std::collections::BTreeSet::new();
            let now = until(&mut watch, |s| {
                deleted.extend(s.deleted.iter().copied());
                watched(s).len() == 19
            })
            .await;
            assert!(deleted.contains(&gone));
            assert!(!watched(&now).contains(&"veth7".to_owned()));
        });
    }

    #[test]
    fn an_uplink_is_found_by_its_default_route() {
        netns::run(|pod| async move {
            let (_, mut watch) = Watch::start().await.unwrap();
            let netlink = Netlink::open().unwrap();
            let handle = netlink.handle();
            handle
                .link()
                .add(LinkVeth::new("eth0", "far").build())
                .execute()
                .await
                .unwrap();
            let far = LinkUnspec::new_with_name("far").setns_by_fd(pod).build();
            handle.link().set(far).execute().await.unwrap();
            let eth0 = index(&netlink, "eth0").await;
            handle
                .link()
                .set(LinkUnspec::new_with_index(eth0).up().build())
                .execute()
                .await
                .unwrap();
            let own = "172.18.0.2".parse().unwrap();
            handle.address().add(eth0, own, 16).execute().await.unwrap();
            let route = rtnetlink::RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .output_interface(eth0)
                .gateway([172, 18, 0, 1].into())
                .build();
            handle.route().add(route).execute().await.unwrap();
            let now = until(&mut watch, |s| watched(s) == ["eth0"]).await;
            let node = Node::describe(
                &now,
                &Config::default(),
                "n",
                &crate::node::Context::default(),
            );
            let facts: Vec<String> = node
                .facts
                .iter()
                .map(|f| format!("{} {}", f.what.name(), f.net))
                .collect();
            assert!(
                facts.contains(&"vnet_cidr 172.18.0.0/16".to_owned()),
                "{facts:?}"
            );
            assert!(
                facts.contains(&"node_address 172.18.0.2/32".to_owned()),
                "{facts:?}"
            );
        });
    }

    #[test]
    fn lost_notifications_mean_reading_everything() {
        use rtnetlink::{packet_core::NetlinkHeader, packet_route::link::LinkMessage};
        netns::run(|_| async {
            let mut follower = Follower::new().unwrap();
            follower.read().await.unwrap();
            assert_eq!(follower.dirty, Dirty::default());
            // What netlink-proto makes of ENOBUFS.
            let overrun = NetlinkPayload::Overrun(vec![]);
            follower.note(&Message::new(NetlinkHeader::default(), overrun));
            assert_eq!(follower.dirty, Dirty::ALL);
            follower.read().await.unwrap();

            let mut link = LinkMessage::default();
            link.header.index = 9;
            link.header.interface_family = AddressFamily::Bridge;
            follower.note(&RouteNetlinkMessage::DelLink(link.clone()).into());
            assert!(follower.last.deleted.is_empty(), "it only left its bridge");
            assert!(follower.dirty.links && !follower.dirty.routes);
            link.header.interface_family = AddressFamily::Unspec;
            follower.note(&RouteNetlinkMessage::DelLink(link).into());
            assert!(follower.last.deleted.contains(&9));
        });
    }

    #[test]
    fn a_lost_subscription_is_renewed() {
        netns::run(|_| async {
            let mut follower = Follower::new().unwrap();
            follower.read().await.unwrap();
            // As after an unrecoverable error on the socket: the stream ends.
            follower.events = Box::new(futures::stream::empty());
            let (sender, mut snapshots) = mpsc::channel(4);
            let task = tokio::spawn(follower.run(sender));
            let netlink = Netlink::open().unwrap();
            let bridge = LinkBridge::new("cni0").build();
            netlink.handle().link().add(bridge).execute().await.unwrap();
            let seen = async {
                while let Some(s) = snapshots.recv().await {
                    if s.links.iter().any(|l| l.name == "cni0") {
                        return;
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(5), seen)
                .await
                .unwrap();
            task.abort();
        });
    }
}
