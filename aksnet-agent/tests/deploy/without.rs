//! What is lost without each of the things that the manifest gives: what docs/permissions.md says.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::SeccompProfile;
use xtask::testbed::{Engine, Testbed};

use crate::{
    manifest::Manifest,
    node::{Node, can_run},
    shop::Shop,
    suffices::counts_are_right,
};

/// What the page says of a capability, in the column on being without.
fn documented(capability: &str) -> Result<String> {
    let page = xtask::cargo::workspace().join("docs/permissions.md");
    let text = fs::read_to_string(page)?;
    let row = text
        .lines()
        .find(|line| line.starts_with(&format!("| `{capability}` |")));
    let cells = row.map(|row| row.split(" | ").collect::<Vec<_>>());
    let last = cells.and_then(|cells| cells.last().map(|cell| (*cell).to_owned()));
    last.ok_or_else(|| anyhow::anyhow!("docs/permissions.md has no row for {capability}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_each_capability_it_is_as_documented() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let shop = Shop::open(Testbed::kind().engine(Engine::Kindnet))?;
    let mut node = Node::new(&shop.bed).await?;
    let root = Manifest::rendered("overlays/kind")?;
    let other = Manifest::with("overlays/kind", &["nonroot"])?;
    let names = root.capabilities()?.add.clone().unwrap_or_default();
    for (whole, capability) in names.iter().map(|name| (&root, name)).chain(
        names
            .iter()
            .filter(|name| *name != "SYSLOG")
            .map(|name| (&other, name)),
    ) {
        let manifest = whole.clone().without(capability)?;
        let agent = node
            .run(&manifest, &Shop::settings(), Some(shop.files()))
            .await?;
        if capability == "SYSLOG" {
            ensure!(documented(capability)?.contains("`other`"));
            node.ready(&manifest, &agent).await?;
            shop.trade()?;
            counts_are_right(|| node.scrape(&agent), &shop, "other")?;
            ensure!(
                agent.said().contains("they need CAP_SYSLOG"),
                "{}",
                agent.said()
            );
            assert_eq!(node.stop(&manifest, &agent).await?, 0, "{}", agent.said());
            continue;
        }
        ensure!(
            documented(capability)?.contains("exit code 77"),
            "{capability}"
        );
        assert_eq!(
            node.ended(&agent).await?,
            77,
            "{capability}: {}",
            agent.said()
        );
        let said = agent.said();
        ensure!(
            said.contains(&format!("CAP_{capability} missing: ")),
            "{said}"
        );
        node.cri.remove(&agent.id).await?;
    }
    Ok(())
}

/// As runtimes do that are too old to know of `CAP_BPF`, whatever the container is granted.
const NO_BPF: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_filter_that_denies_bpf_it_ends_and_the_page_says_how() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let shop = Shop::open(Testbed::kind().engine(Engine::Kindnet))?;
    let mut node = Node::new(&shop.bed).await?;
    fs::write(
        shop.bed
            .node()
            .root()
            .join(shop.files())
            .join("no-bpf.json"),
        NO_BPF,
    )?;
    let mut manifest = Manifest::rendered("overlays/kind")?;
    let file = node.file(&shop.files().join("no-bpf.json"));
    let security = manifest.container_mut().security_context.as_mut();
    security.context("a security context")?.seccomp_profile = Some(SeccompProfile {
        type_: "Localhost".to_owned(),
        localhost_profile: Some(file.display().to_string()),
    });
    let agent = node
        .run(&manifest, &Shop::settings(), Some(shop.files()))
        .await?;
    assert_eq!(node.ended(&agent).await?, 70, "{}", agent.said());
    let page = fs::read_to_string(xtask::cargo::workspace().join("docs/permissions.md"))?;
    ensure!(page.contains("exit code 70"));
    Ok(())
}
