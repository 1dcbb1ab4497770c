//! `aksnet-agent explain`: whether policies let a pod reach another, and why, from manifests or from the API.

use serde_json::Value;

use crate::{
    cli::Explain,
    commands::{print, runtime},
    exit::{Exit, Failure, OrExit as _},
    explain::{manifest, report::Report, scene::Scene},
    identify::kube::{Access, once},
    policy::{evaluate::Outcome, index::When},
};

/// Prints the verdict and why, and gives it.
///
/// # Errors
/// See `docs/exit-codes.md`.
pub fn explain(args: &Explain) -> Result<Outcome, Failure> {
    let mut scene = Scene::new(&args.namespace);
    if args.files.is_empty() {
        from_api(args, &mut scene)?;
    } else {
        for path in &args.files {
            for document in manifest::read(path)? {
                scene.take(document.value, &document.place)?;
            }
        }
    }
    for warning in scene.warnings() {
        eprintln!("aksnet-agent: warning: {warning}");
    }
    let cases = scene.cases(&args.from, &args.to, &args.port, args.by_node_port)?;
    let flow = cases.common(args.engine)?.flow();
    let explanation = scene.policies().explain(&flow, When::At(0), args.engine);
    let report = Report {
        flow: &flow,
        explanation: &explanation,
        engine: args.engine,
        notes: &cases.notes,
    };
    let text = if args.json {
        format!("{:#}\n", report.json())
    } else {
        report.text()
    };
    print(text.as_bytes())?;
    Ok(explanation.outcome())
}

fn from_api(args: &Explain, scene: &mut Scene) -> Result<(), Failure> {
    let path = args.kubeconfig.clone().unwrap_or_default();
    let access = Access::auto(&path, args.kube_context.as_deref().unwrap_or_default());
    let mut taken = Ok(());
    runtime()?.block_on(once::list(&access, |resource, json| {
        let api = match resource.group {
            "" => resource.version.to_owned(),
            group => format!("{group}/{}", resource.version),
        };
        let kind = once::kind(resource);
        let value = serde_json::from_slice::<Value>(json).or_exit(Exit::Unavailable);
        let place = format!("Kubernetes API, {}", resource.plural);
        let took = value.and_then(|value| scene.take_as(value, &place, &api, kind));
        if taken.is_ok() {
            taken = took;
        }
    }))?;
    taken
}
