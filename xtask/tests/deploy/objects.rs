//! The *objects* of a rendering, by what they are.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::deploy;

/// Group with version, kind, name.
pub(crate) type Key = (String, String, String);

/// By key.
pub(crate) type Objects = BTreeMap<Key, Value>;

/// All documents of a text; two of one key are an error.
pub(crate) fn parse(text: &str) -> Result<Objects> {
    let mut objects = Objects::new();
    for part in format!("\n{text}").split("\n---") {
        if part
            .lines()
            .all(|line| line.trim().is_empty() || line.starts_with('#'))
        {
            continue;
        }
        let value: Value = serde_saphyr::from_str(part).with_context(|| part.to_owned())?;
        let text = |at: &str| {
            value
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let key = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        ensure!(!key.1.is_empty() && !key.2.is_empty(), "no object: {part}");
        ensure!(
            objects.insert(key.clone(), value).is_none(),
            "{key:?} is there twice"
        );
    }
    Ok(objects)
}

/// Of a directory below `deploy/`.
pub(crate) fn of_kustomize(path: &str) -> Result<Objects> {
    parse(&deploy::kustomize(path)?)
}

/// Of an overlay that users would write: the base with components of these names.
pub(crate) fn of_components(base: &str, components: &[&str]) -> Result<Objects> {
    parse(&deploy::kustomize_with(base, components)?)
}

/// Of the chart; values files are named relative to it.
pub(crate) fn of_chart(arguments: &[&str]) -> Result<Objects> {
    parse(&deploy::helm_template(arguments)?)
}

/// Of the chart with one of its values files.
pub(crate) fn of_values(file: &str, arguments: &[&str]) -> Result<Objects> {
    let path = deploy::directory().join("helm/aksnet").join(file);
    let path = path.to_str().context("a name of letters")?;
    of_chart(&[&["--values", path], arguments].concat())
}

/// The one object of a kind.
pub(crate) fn one<'a>(objects: &'a Objects, kind: &str) -> Result<&'a Value> {
    let mut found = objects
        .iter()
        .filter(|(key, _)| key.1 == kind)
        .map(|(_, value)| value);
    let one = found.next().with_context(|| format!("no {kind}"))?;
    ensure!(found.next().is_none(), "two of kind {kind}");
    Ok(one)
}

/// Lists whose order means nothing are put in order: strategic merges put what they add first.
pub(crate) fn in_order(objects: &Objects) -> Objects {
    let mut objects = objects.clone();
    for object in objects.values_mut() {
        for (list, by) in [
            ("/spec/template/spec/volumes", "name"),
            ("/spec/template/spec/containers/0/volumeMounts", "mountPath"),
        ] {
            if let Some(list) = object.pointer_mut(list).and_then(Value::as_array_mut) {
                list.sort_by_key(|item| item[by].to_string());
            }
        }
    }
    objects
}
