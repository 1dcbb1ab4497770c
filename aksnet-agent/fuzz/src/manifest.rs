//! Any text that `explain -f` reads: refused in one line, or documents whose policies judge a pair of its pods.

use aksnet_agent::{
    explain::{manifest, question::Asked, report::Report, scene::Scene},
    policy::{engine::Engine, index::When},
};

pub(crate) fn run(bytes: &[u8]) {
    let documents = match manifest::documents("f.yaml", &String::from_utf8_lossy(bytes)) {
        Ok(documents) => documents,
        Err(failure) => return one_line(&failure.to_string()),
    };
    let mut scene = Scene::new("shop");
    for document in documents {
        if let Err(failure) = scene.take(document.value, &document.place) {
            one_line(&failure.to_string());
        }
    }
    for warning in scene.warnings() {
        one_line(warning);
    }
    for asked in ["8080", "http", "53/udp", "icmp"] {
        let asked: Asked = asked.parse().expect("a port");
        judge(&scene, &asked);
    }
}

fn judge(scene: &Scene, asked: &Asked) {
    for (from, to) in [
        ("shop/frontend", "shop/web"),
        ("shop/web", "10.0.0.1"),
        ("203.0.113.9", "shop/web"),
    ] {
        let cases = match scene.cases(from, to, asked, false) {
            Ok(cases) => cases,
            Err(failure) => {
                one_line(&failure.to_string());
                continue;
            }
        };
        for engine in Engine::ALL {
            let case = match cases.common(engine) {
                Ok(case) => case,
                Err(failure) => {
                    assert!(!failure.to_string().is_empty());
                    continue;
                }
            };
            let flow = case.flow();
            let explanation = scene.policies().explain(&flow, When::At(0), engine);
            let verdict = scene.policies().evaluate(&flow, When::At(0), engine);
            assert_eq!(explanation.outcome(), verdict.outcome());
            let report = Report {
                flow: &flow,
                explanation: &explanation,
                engine,
                notes: &cases.notes,
            };
            assert!(!report.text().is_empty());
            assert!(report.json().is_object());
        }
    }
}

fn one_line(text: &str) {
    assert_eq!(text.lines().count(), 1, "{text}");
}
