//! The config file: TOML, whose keys are those of [`super::settings`]. Every error names file and line.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::{
    merge::{ConfigError, Given, Place},
    settings::{Arity, SETTINGS, by_key},
    suggest,
};

/// Reads a file's text into raw values, in the order of its lines. `name` is how messages call the file.
///
/// # Errors
/// When it is not TOML, has an unknown key, or a value of a kind that the key does not take.
pub fn read(name: &str, text: &str) -> Result<Vec<Given>, ConfigError> {
    let place = |span: Range<usize>| Place::File {
        file: name.to_owned(),
        line: line_of(text, span.start),
    };
    let table = DeTable::parse(text).map_err(|e| {
        let span = e.span().unwrap_or(0..0);
        let line = text.lines().nth(line_of(text, span.start) - 1);
        ConfigError {
            key: None,
            message: format!(
                "{} in '{}'",
                e.message().replace('\n', ", "),
                line.unwrap_or_default().trim()
            ),
            place: place(span),
        }
    })?;
    let mut given = Vec::new();
    for (key, value) in table.get_ref() {
        let here = place(key.span());
        let name = key.get_ref().as_ref();
        let Some(setting) = by_key(name) else {
            return Err(ConfigError {
                place: here,
                key: None,
                message: format!(
                    "unknown key '{name}'{}",
                    suggest::hint(name, SETTINGS.iter().map(|s| s.key))
                ),
            });
        };
        let error = |message: String, span: Range<usize>| ConfigError {
            place: place(span),
            key: Some(setting.key),
            message,
        };
        let values = match value.get_ref() {
            DeValue::Array(items) if setting.arity == Arity::Many => items
                .iter()
                .map(|item| {
                    let text = scalar(item.get_ref()).map_err(|m| error(m, item.span()))?;
                    Ok((text, place(item.span())))
                })
                .collect::<Result<_, ConfigError>>()?,
            // Ranges by name read best as a table of their own.
            DeValue::Table(names) if setting.key == "named_cidr" => {
                let mut all = Vec::new();
                for (name, nets) in names {
                    let one = std::slice::from_ref(nets);
                    let nets = match nets.get_ref() {
                        DeValue::Array(nets) => nets.iter().as_slice(),
                        _ => one,
                    };
                    for net in nets {
                        let text = scalar(net.get_ref()).map_err(|m| error(m, net.span()))?;
                        all.push((format!("{}={text}", name.get_ref()), place(net.span())));
                    }
                }
                all
            }
            DeValue::Array(_) => {
                return Err(error(
                    "takes one value, not a list".to_owned(),
                    value.span(),
                ));
            }
            DeValue::Table(_) => {
                return Err(error(
                    "is no section; write key = value".to_owned(),
                    key.span(),
                ));
            }
            single => {
                let text = scalar(single).map_err(|m| error(m, value.span()))?;
                vec![(text, place(value.span()))]
            }
        };
        given.push(Given {
            setting,
            place: here,
            values,
        });
    }
    given.sort_by_key(|g| match g.place {
        Place::File { line, .. } => line,
        _ => 0,
    });
    Ok(given)
}

fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(s) => Ok(s.to_string()),
        DeValue::Integer(n) if n.radix() == 10 => Ok(n.as_str().to_owned()),
        DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix())
            .map(|n| n.to_string())
            .map_err(|_| format!("{n} is too large")),
        DeValue::Float(f) => Ok(f.as_str().to_owned()),
        DeValue::Boolean(b) => Ok(b.to_string()),
        _ => Err("takes a string, a number, true or false".to_owned()),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read("agent.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
        assert_eq!(
            error("listen = \"[::]:9435\"\n\n# cells\nflowcells = 1024\n"),
            "agent.toml:4: unknown key 'flowcells'; did you mean 'flow_cells'?"
        );
    }

    #[test]
    fn broken_toml_is_named_with_its_line() {
        assert!(error("listen = \"x\nsample = 4").starts_with("agent.toml:1: "));
        assert!(error("sample = 4\nsample = 8\n").starts_with("agent.toml:2: "));
    }

    #[test]
    fn kinds_of_values_are_checked() {
        assert_eq!(
            error("\nsample = [4]\n"),
            "agent.toml:2: sample: takes one value, not a list"
        );
        assert_eq!(
            error("[sample]\nn = 4\n"),
            "agent.toml:1: sample: is no section; write key = value"
        );
        assert_eq!(
            error("pod_cidr = [\n \"10.0.0.0/8\",\n [1]]\n"),
            "agent.toml:3: pod_cidr: takes a string, a number, true or false"
        );
    }

    #[test]
    fn a_refused_value_is_quoted_in_one_line_without_control_characters() {
        let text = "node_name = \"n\"\nlisten = \"\"\"a\nb\\u001b[2Jc\"\"\"\n";
        let given = read("agent.toml", text).unwrap();
        let error = crate::config::merge::merge(vec![given])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("agent.toml:2: listen: 'a\\nb\\u{1b}[2Jc' is not ADDRESS:PORT"),
            "{error}"
        );
    }

    #[test]
    fn lists_single_values_and_named_tables_are_read() {
        let given = read(
            "f",
            "pod_cidr = \"10.244.0.0/16\"\nuplink = ['a', 'b']\nflow_cells = 0x400\nbpf_stats = true\n\
             [named_cidr]\nonprem = [\"10.50.0.0/16\", \"10.51.0.0/16\"]\nhub = \"10.60.0.0/16\"\n",
        )
        .unwrap();
        let values: Vec<(&str, Vec<&str>)> = given
            .iter()
            .map(|g| {
                (
                    g.setting.key,
                    g.values.iter().map(|(text, _)| text.as_str()).collect(),
                )
            })
            .collect();
        assert_eq!(
            values,
            [
                ("pod_cidr", vec!["10.244.0.0/16"]),
                ("uplink", vec!["a", "b"]),
                ("flow_cells", vec!["1024"]),
                ("bpf_stats", vec!["true"]),
                (
                    "named_cidr",
                    vec![
                        "hub=10.60.0.0/16",
                        "onprem=10.50.0.0/16",
                        "onprem=10.51.0.0/16"
                    ]
                ),
            ]
        );
    }
}
