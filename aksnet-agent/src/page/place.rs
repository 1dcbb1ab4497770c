//! The *place* where the page is served: a listener of its own, or the admin server's, or none.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;

use crate::admin::{self, Door, Limits};

/// Where the page is.
pub enum Place {
    /// Nowhere, and why.
    Nowhere(String),
    /// Beside `/metrics`, on the same listener.
    Beside,
    /// On a listener of its own, at this address.
    Own(TcpListener, SocketAddr),
}

impl Place {
    /// Takes the page's address. Where it cannot be had, the agent goes on without: its accounts matter more.
    pub async fn take(page: Option<SocketAddr>, listen: SocketAddr) -> Self {
        let Some(page) = page else {
            return Self::Nowhere("switched off (--page off)".to_owned());
        };
        if page == listen {
            return Self::Beside;
        }
        let taken = admin::bind(page).await;
        match taken.and_then(|listener| match listener.local_addr() {
            Ok(address) => Ok((listener, address)),
            Err(error) => Err(crate::exit::Failure::new(crate::exit::Exit::Os, error)),
        }) {
            Ok((listener, address)) => Self::Own(listener, address),
            Err(failure) => {
                let why = failure.to_string().replace("--listen", "--page");
                tracing::warn!("the page is not served: {why}");
                Self::Nowhere(why)
            }
        }
    }

    /// A line for those who look for it where it is not.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Nowhere(why) => format!("The page for people is not served: {why}\n"),
            Self::Beside => "The page for people is here: /\n".to_owned(),
            Self::Own(_, address) => format!(
                "The page for people is at http://{address}/, as the node sees it; from elsewhere:\n  \
                 kubectl port-forward POD {port}:{port}\n",
                port = address.port()
            ),
        }
    }
}

/// Serves the page on a listener of its own until `stop`.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (door, limits) = (Door::default(), Limits::default());
    admin::serve_router(listener, router, door, limits, stop).await
}
