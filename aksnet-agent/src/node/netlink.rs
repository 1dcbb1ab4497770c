//! What the kernel's route netlink says, as values: the only place that asks it.

use futures::{Stream, StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, IpVersion, RouteMessageBuilder,
    packet_route::{AddressFamily, route::RouteMessage},
};

use super::{Snapshot, address::Address, link::Link, route::Route};

/// A connection for requests.
pub struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// The connection itself, for tests that build a network.
    #[cfg(test)]
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Everything.
    ///
    /// # Errors
    /// When the kernel refuses a dump.
    pub async fn snapshot(&self) -> Result<Snapshot, rtnetlink::Error> {
        Ok(Snapshot {
            links: self.links().await?,
            addresses: self.addresses().await?,
            routes: self.routes().await?,
            ..Snapshot::default()
        })
    }

    /// All links, by index.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn links(&self) -> Result<Vec<Link>, rtnetlink::Error> {
        let messages = self.handle.link().get().execute();
        let mut links: Vec<Link> = collect(messages, |m| Some(Link::from_message(&m))).await?;
        links.sort_by_key(|l| l.index);
        Ok(links)
    }

    /// All addresses, by interface.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn addresses(&self) -> Result<Vec<Address>, rtnetlink::Error> {
        let messages = self.handle.address().get().execute();
        let mut addresses = collect(messages, |m| Address::from_message(&m)).await?;
        addresses.sort_by_key(|a| (a.index, a.net));
        Ok(addresses)
    }

    /// The main table's routes, both families.
    ///
    /// # Errors
    /// When the kernel refuses a dump.
    pub async fn routes(&self) -> Result<Vec<Route>, rtnetlink::Error> {
        let mut routes = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let messages = self.handle.route().get(all(&version)).execute();
            routes.extend(collect(messages, |m| Route::from_message(&m)).await?);
        }
        routes.sort_by_key(|r| (r.to, r.hops.clone()));
        Ok(routes)
    }
}

fn all(version: &IpVersion) -> RouteMessage {
    let mut message = RouteMessageBuilder::<std::net::IpAddr>::new().build();
    message.header.address_family = match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    };
    message
}

async fn collect<M, T>(
    messages: impl Stream<Item = Result<M, rtnetlink::Error>>,
    value: impl Fn(M) -> Option<T>,
) -> Result<Vec<T>, rtnetlink::Error> {
    messages
        .map(|m| m.map(&value))
        .try_filter_map(|v| std::future::ready(Ok(v)))
        .try_collect()
        .await
}
