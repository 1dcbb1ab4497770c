//! Kubeconfigs, good and bad, and who the agent is.

use std::path::Path;

use aksnet_agent::{
    config::{Config, Kubernetes},
    exit::Exit,
    identify::{
        index::Index,
        kube::{self, Access, KubeConfig},
        object::Kind,
        shared::Shared,
        sink::Sink,
    },
};
use xtask::testbed::api::{ApiServer, kubeconfig};

use crate::watcher::{FAST, NODE, Watcher};

fn refusal(path: &Path, context: &str) -> (Exit, String) {
    let config = KubeConfig {
        access: Access::auto(path, context),
        node: NODE.to_owned(),
        remote_pods: false,
        timing: FAST,
    };
    let sink: std::sync::Arc<dyn Sink> = std::sync::Arc::new(Shared::new(Index::new(NODE)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let failure = runtime.block_on(kube::start(&config, &sink)).unwrap_err();
    (failure.exit, failure.to_string())
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config");
    let (exit, text) = refusal(&path, "");
    assert_eq!(exit, Exit::NoInput);
    assert!(
        text.contains(&format!("--kubeconfig {}: cannot be read", path.display())),
        "{text}"
    );

    let good = kubeconfig("http://127.0.0.1:1");
    for (content, context, why) in [
        ("{ no yaml".to_owned(), "", "kubectl --kubeconfig"),
        (
            good.clone(),
            "prod",
            "has no context 'prod'; choose with --kube-context among: stand-in",
        ),
        (
            good.replace("http://", "no url: "),
            "",
            "kubectl --kubeconfig",
        ),
        (
            good.replace("    server:", "    proxy-url: http://p:1\n    server:"),
            "",
            "has a proxy-url",
        ),
        (
            good.replace("user: {}", "user: {tokenFile: /nowhere/token}"),
            "",
            "/nowhere/token",
        ),
    ] {
        std::fs::write(&path, content).unwrap();
        let (exit, text) = refusal(&path, context);
        assert_eq!(exit, Exit::Config, "{text}");
        assert!(text.contains(why), "'{text}' does not say '{why}'");
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
}

#[test]
fn a_token_is_sent() {
    let server = ApiServer::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    let user = format!("user: {{tokenFile: {}}}", token.display());
    let watcher = Watcher::with(&server.kubeconfig().replace("user: {}", &user), FAST, false);
    watcher.wait("a list", |w| w.status(Kind::Node).synced);
    let seen = server.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.authorization == "Bearer secret"),
        "{seen:?}"
    );
}

#[test]
fn outside_of_a_pod_and_without_a_kubeconfig_it_is_off() {
    assert!(matches!(Access::auto(Path::new(""), ""), Access::Off(_)));
    let named = Access::auto(Path::new("/x"), "prod");
    let wanted = Access::Kubeconfig {
        path: "/x".into(),
        context: Some("prod".to_owned()),
    };
    assert_eq!(named, wanted);
    let mut config = Config {
        kubeconfig: "/x".into(),
        kube_context: "prod".to_owned(),
        ..Config::default()
    };
    assert_eq!(KubeConfig::of(&config, NODE).access, wanted);
    config.kubernetes = Kubernetes::Off;
    let off = KubeConfig::of(&config, NODE).access;
    assert!(matches!(off, Access::Off(why) if why.contains("--kubernetes")));
}
