//! The *door*: who is let in to what is served, and whether that is said over TLS.
//!
//! Without settings it stands open. With `--tls-client-ca` whoever shows a certificate of such a CA's is let in, with
//! `--metrics-auth token` whoever shows a token that may `get` the path, as the API server says. With both, either does.
//! `/live` and `/ready` are open always: kubelet has nothing to show, and they say nothing.

use std::{path::PathBuf, sync::Arc};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use tokio_rustls::TlsAcceptor;

use super::{
    review::{Reviewer, Verdict},
    tls::{Files, Tls},
};
use crate::{
    config::{Config, MetricsAuth},
    exit::Failure,
    identify::kube::KubeConfig,
};

/// The door of one listener.
#[derive(Clone, Default)]
pub struct Door {
    tls: Option<Arc<Tls>>,
    reviewer: Option<Arc<Reviewer>>,
}

impl Door {
    /// As the settings say.
    ///
    /// # Errors
    /// When the files for TLS cannot be used, or tokens are to be reviewed and there is no way to the API server.
    pub async fn of(config: &Config) -> Result<Self, Failure> {
        let tls = match (&config.tls_cert, &config.tls_key) {
            (Some(cert), Some(key)) => Some(Arc::new(Tls::open(Files {
                cert: cert.clone(),
                key: key.clone(),
                client_ca: config.tls_client_ca.clone(),
            })?)),
            _ => None,
        };
        let reviewer = match config.metrics_auth {
            MetricsAuth::Off => None,
            MetricsAuth::Token => {
                let access = KubeConfig::of(config, "").access;
                Some(Arc::new(Reviewer::connect(&access).await?))
            }
        };
        Ok(Self { tls, reviewer })
    }

    /// With these parts.
    #[must_use]
    pub fn new(tls: Option<Tls>, reviewer: Option<Reviewer>) -> Self {
        Self {
            tls: tls.map(Arc::new),
            reviewer: reviewer.map(Arc::new),
        }
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Looks at the files again.
    pub(super) fn look(&self) {
        if let Some(tls) = &self.tls {
            tls.look();
        }
    }

    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.tls.as_ref().map(|tls| tls.acceptor())
    }

    /// Whether this request is let in; `certified`: over a connection with a certificate that was believed.
    pub(super) async fn admits(
        &self,
        path: &str,
        headers: &HeaderMap,
        certified: bool,
    ) -> Result<(), Refusal> {
        let by_certificate = self.tls.as_ref().is_some_and(|tls| tls.knows_clients());
        if by_certificate && certified {
            return Ok(());
        }
        let Some(reviewer) = &self.reviewer else {
            return if by_certificate {
                Err(Refusal::NoCertificate)
            } else {
                Ok(())
            };
        };
        let Some(token) = token(headers) else {
            return Err(Refusal::NoToken);
        };
        match reviewer.review(token, path).await {
            Verdict::Allowed => Ok(()),
            Verdict::Unknown => Err(Refusal::UnknownToken),
            Verdict::Forbidden(user) => Err(Refusal::Forbidden(user, path.to_owned())),
            Verdict::Unreviewable(why) => Err(Refusal::Unreviewable(why)),
        }
    }
}

/// The token of a request; its scheme is written in any case (RFC 9110, 11.1).
fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Why somebody is not let in.
#[derive(Debug)]
pub(super) enum Refusal {
    NoCertificate,
    NoToken,
    UnknownToken,
    /// Who, and from what.
    Forbidden(String, String),
    Unreviewable(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        match self {
            Self::NoCertificate => {
                let text = "a client certificate of a CA in --tls-client-ca is needed\n";
                (StatusCode::FORBIDDEN, text).into_response()
            }
            Self::NoToken => {
                let text = "a bearer token is needed\n";
                (StatusCode::UNAUTHORIZED, challenge, text).into_response()
            }
            Self::UnknownToken => {
                let text = "the API server does not know this token\n";
                (StatusCode::UNAUTHORIZED, challenge, text).into_response()
            }
            Self::Forbidden(user, path) => {
                let text = format!(
                    "{user} may not get {path}; grant it by a ClusterRole with nonResourceURLs\n"
                );
                (StatusCode::FORBIDDEN, text).into_response()
            }
            Self::Unreviewable(why) => {
                let text = format!("the token cannot be reviewed: {why}\n");
                (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
            }
        }
    }
}

/// A path, or none where it is empty.
pub(crate) fn named(path: &str) -> Option<PathBuf> {
    (!path.is_empty()).then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_follows_bearer() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            token(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").as_deref(), Some("abc"));
        for none in ["Bearer", "Bearer ", "Basic abc", "abc"] {
            assert_eq!(of(none), None, "{none:?}");
        }
        assert_eq!(token(&HeaderMap::new()), None);
    }
}
