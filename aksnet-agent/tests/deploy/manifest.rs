//! The DaemonSet of a rendered overlay, as values.

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Capabilities, Container, PodSpec, SecurityContext},
};
use serde_json::Value;
use xtask::deploy;

/// A DaemonSet, whose pods have one container.
#[derive(Clone)]
pub struct Manifest(DaemonSet);

impl Manifest {
    /// As `kubectl kustomize` renders it from a directory below `deploy/`.
    pub fn rendered(path: &str) -> Result<Self> {
        Self::read(&deploy::kustomize(path)?)
    }

    /// The same with components.
    pub fn with(path: &str, components: &[&str]) -> Result<Self> {
        Self::read(&deploy::kustomize_with(path, components)?)
    }

    fn read(text: &str) -> Result<Self> {
        let documents = text.split("\n---\n").map(serde_saphyr::from_str::<Value>);
        for document in documents {
            let document = document?;
            if document["kind"] == "DaemonSet" {
                return Ok(Self(serde_json::from_value(document)?));
            }
        }
        anyhow::bail!("no DaemonSet in {text}")
    }

    pub fn pod(&self) -> &PodSpec {
        let spec = self.0.spec.as_ref().and_then(|s| s.template.spec.as_ref());
        spec.expect("a DaemonSet has a pod")
    }

    pub fn container(&self) -> &Container {
        &self.pod().containers[0]
    }

    pub fn container_mut(&mut self) -> &mut Container {
        let spec = self.0.spec.as_mut().and_then(|s| s.template.spec.as_mut());
        &mut spec.expect("a DaemonSet has a pod").containers[0]
    }

    pub fn security(&self) -> Result<&SecurityContext> {
        self.container()
            .security_context
            .as_ref()
            .context("the container has a security context")
    }

    pub fn capabilities(&self) -> Result<&Capabilities> {
        self.security()?
            .capabilities
            .as_ref()
            .context("it names capabilities")
    }

    /// Takes a capability away.
    pub fn without(mut self, capability: &str) -> Result<Self> {
        let added = self
            .container_mut()
            .security_context
            .as_mut()
            .and_then(|security| security.capabilities.as_mut())
            .and_then(|capabilities| capabilities.add.as_mut())
            .context("it adds capabilities")?;
        let before = added.len();
        added.retain(|name| name != capability);
        anyhow::ensure!(added.len() + 1 == before, "{capability} is not added");
        Ok(self)
    }
}
