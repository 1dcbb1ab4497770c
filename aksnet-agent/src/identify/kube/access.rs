//! How the agent gets to the API server, and who it is there.
//!
//! Inside of a cluster a pod has all it needs: the server's address in its environment, a token and the cluster's CA as
//! files. The token is read again every minute, the CA as well (kube-client, `config`), so both may rotate. Proxies in
//! the environment are not used: they are for what leaves the cluster.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::request::chain;
use crate::exit::{Exit, Failure};

/// Where a pod finds its service account's token.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How to get to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Not at all, and why.
    Off(String),
    /// As the service account of this pod.
    InCluster,
    /// As a kubeconfig file says.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Which of its contexts; none: its current one.
        context: Option<String>,
    },
}

impl Access {
    /// What to do when it is left to the agent: as the kubeconfig says if one is named, else as the pod's service
    /// account if it has one.
    #[must_use]
    pub fn auto(kubeconfig: &Path, context: &str) -> Self {
        if !kubeconfig.as_os_str().is_empty() {
            return Self::Kubeconfig {
                path: kubeconfig.to_owned(),
                context: (!context.is_empty()).then(|| context.to_owned()),
            };
        }
        if env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
            return Self::Off("not in a pod, and no --kubeconfig".to_owned());
        }
        if !Path::new(TOKEN).exists() {
            return Self::Off(format!("the pod has no service account token ({TOKEN})"));
        }
        Self::InCluster
    }

    /// A client. None, and why, if there is none to be had. Nothing is asked of the server yet.
    pub(crate) async fn client(&self) -> Result<Result<Client, String>, Failure> {
        let mut config = match self {
            Self::Off(why) => return Ok(Err(why.clone())),
            Self::InCluster => match Config::incluster() {
                Ok(config) => config,
                Err(error) => return Ok(Err(chain(&error))),
            },
            Self::Kubeconfig { path, context } => read(path, context.as_deref()).await?,
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        // The watches have pauses of their own.
        config.default_retry = false;
        match (Client::try_from(config), self) {
            (Ok(client), _) => Ok(Ok(client)),
            (Err(error), Self::Kubeconfig { path, .. }) => Err(unusable(path, &chain(&error))),
            (Err(error), _) => Ok(Err(chain(&error))),
        }
    }
}

fn unusable(path: &Path, why: &str) -> Failure {
    let path = path.display();
    Failure::new(
        Exit::Config,
        format_args!(
            "--kubeconfig {path}: {why}; try it with `kubectl --kubeconfig {path} version`"
        ),
    )
}

async fn read(path: &Path, context: Option<&str>) -> Result<Config, Failure> {
    let file = match Kubeconfig::read_from(path) {
        Ok(file) => file,
        Err(KubeconfigError::ReadConfig(error, _)) => {
            let path = path.display();
            return Err(Failure::new(
                Exit::NoInput,
                format_args!("--kubeconfig {path}: cannot be read: {error}; name a file that can"),
            ));
        }
        Err(error) => return Err(unusable(path, &chain(&error))),
    };
    let current = context.or(file.current_context.as_deref());
    let current = current.unwrap_or_default().to_owned();
    let known: Vec<&str> = file.contexts.iter().map(|c| c.name.as_str()).collect();
    if !known.contains(&current.as_str()) {
        let known = known.join(", ");
        let why = format!("has no context '{current}'; choose with --kube-context among: {known}");
        return Err(unusable(path, &why));
    }
    let cluster = file.contexts.iter().find(|c| c.name == current);
    let cluster = cluster.and_then(|c| Some(c.context.as_ref()?.cluster.clone()));
    let cluster = file
        .clusters
        .iter()
        .find(|c| Some(&c.name) == cluster.as_ref());
    let proxy = cluster.and_then(|c| c.cluster.as_ref()?.proxy_url.clone());
    if proxy.is_some_and(|proxy| !proxy.is_empty()) {
        return Err(unusable(path, "has a proxy-url, which is not supported"));
    }
    let options = KubeConfigOptions {
        context: Some(current),
        ..KubeConfigOptions::default()
    };
    let mut config = Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(|error| unusable(path, &chain(&error)))?;
    // What is left is from the environment.
    config.proxy_url = None;
    Ok(config)
}
