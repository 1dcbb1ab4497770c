//! Lays the sources of settings over each other: flag > environment > file > default. Pure: takes raw
//! values, returns a [`Config`] and where each value came from.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use toml_writer::ToTomlValue as _;

use super::{
    Config, Kubernetes, MetricsAuth,
    settings::{Arity, SETTINGS, Setting},
    suggest,
};
use crate::escaped::Escaped;

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the command line.
    Flag,
    /// In the environment.
    Env,
    /// In the config file.
    File {
        /// The file as it was named.
        file: String,
        /// From 1.
        line: usize,
    },
}

/// What one source says about one setting, not read yet.
#[derive(Debug)]
pub struct Given {
    /// Which.
    pub setting: &'static Setting,
    /// Where.
    pub place: Place,
    /// The raw values, each with its own place: a list in a file can span lines.
    pub values: Vec<(String, Place)>,
}

/// A setting that cannot be taken, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it stands.
    pub place: Place,
    /// The key, unless the message names it.
    pub key: Option<&'static str>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = self.key.and_then(super::settings::by_key);
        match (&self.place, setting) {
            (Place::File { file, line }, _) => {
                write!(f, "{file}:{line}: ")?;
                if let Some(key) = self.key {
                    write!(f, "{key}: ")?;
                }
            }
            (Place::Flag, Some(setting)) => write!(f, "--{}: ", setting.flag())?,
            (Place::Env, Some(setting)) => write!(f, "{}: ", setting.env())?,
            (_, None) => {}
        }
        // It quotes what was given.
        Escaped(&self.message).fmt(f)
    }
}

impl std::error::Error for ConfigError {}

/// Where an effective value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said otherwise.
    Default,
    /// Somebody said so here.
    Given(Place),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Given(Place::Flag) => f.write_str("flag"),
            Self::Given(Place::Env) => f.write_str("environment"),
            Self::Given(Place::File { file, line }) => write!(f, "{file}:{line}"),
        }
    }
}

/// The config the agent runs with, and where each value came from.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The values.
    pub config: Config,
    /// By key; what is not in here is the default.
    origins: BTreeMap<&'static str, Origin>,
}

impl Effective {
    /// Where the value of a key came from.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// As a config file that says the same, each line with its origin.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        for setting in SETTINGS {
            let values = (setting.get)(&self.config);
            let plain = |v: &str| v.parse::<u64>().is_ok() || v.parse::<bool>().is_ok();
            let value = match setting.arity {
                Arity::Many => values.to_toml_value(),
                _ if plain(&values[0]) => values[0].clone(),
                _ => values[0].to_toml_value(),
            };
            lines.push(format!(
                "{} = {value}  # {}\n",
                setting.key,
                self.origin(setting.key)
            ));
        }
        lines.concat()
    }

    /// In one line, for the log.
    #[must_use]
    pub fn to_line(&self) -> String {
        SETTINGS
            .iter()
            .map(|setting| {
                let values = (setting.get)(&self.config).join(",");
                format!("{}={values} ({})", setting.key, self.origin(setting.key))
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// For `/status`: `{key: {value, origin}}`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        SETTINGS
            .iter()
            .map(|setting| {
                let values = (setting.get)(&self.config);
                let value = if setting.arity == Arity::Many {
                    serde_json::json!(values)
                } else {
                    serde_json::json!(values[0])
                };
                let origin = self.origin(setting.key).to_string();
                (
                    setting.key.to_owned(),
                    serde_json::json!({"value": value, "origin": origin}),
                )
            })
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

/// What the environment says. Empty variables say nothing, so that a manifest can leave one blank.
pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Vec<Given> {
    SETTINGS
        .iter()
        .filter_map(|setting| {
            let text = variable(&setting.env()).filter(|text| !text.is_empty())?;
            Some(given(setting, &Place::Env, &[text]))
        })
        .collect()
}

/// A setting's raw values from one place; list items may be comma-separated.
#[must_use]
pub fn given(setting: &'static Setting, place: &Place, texts: &[String]) -> Given {
    let values = texts
        .iter()
        .flat_map(|text| match setting.arity {
            Arity::Many => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(str::to_owned)
                .collect(),
            Arity::One | Arity::Switch => vec![text.clone()],
        })
        .map(|text| (text, place.clone()))
        .collect();
    Given {
        setting,
        place: place.clone(),
        values,
    }
}

/// Variables that look as if they were meant for the agent, but are not: a typing error would otherwise be
/// silent. Kubernetes sets variables of its own for a service named `aksnet`, so they are no errors.
pub fn unknown_env<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let known: Vec<String> = SETTINGS.iter().map(Setting::env).collect();
    names
        .into_iter()
        .filter(|name| name.starts_with("AKSNET_") && *name != "AKSNET_CONFIG")
        .filter(|name| !known.iter().any(|k| k == name))
        .filter_map(|name| {
            let meant = suggest::nearest(name, known.iter().map(String::as_str))?;
            Some(format!("{name} is not a setting; did you mean {meant}?"))
        })
        .collect()
}

/// Reads the raw values, later layers over earlier ones, into the effective config.
///
/// # Errors
/// The first value that cannot be taken. Values that a higher layer replaces are read as well: a mistake in
/// the file does not wait for the day when the flag is gone.
pub fn merge(layers: Vec<Vec<Given>>) -> Result<Effective, ConfigError> {
    let mut effective = Effective {
        config: Config::default(),
        origins: BTreeMap::new(),
    };
    // Of each setting what its highest layer says.
    let mut values: BTreeMap<&'static str, Values> = BTreeMap::new();
    for given in layers.into_iter().flatten() {
        let key = given.setting.key;
        let error = |message: String, place: &Place| ConfigError {
            place: place.clone(),
            key: Some(key),
            message,
        };
        let texts: Vec<String> = given.values.iter().map(|(text, _)| text.clone()).collect();
        if let Err(message) = (given.setting.set)(&mut effective.config, &texts) {
            // Which item of a list it was: the first that is refused alone.
            let place = given
                .values
                .iter()
                .find(|(text, _)| {
                    let alone = std::slice::from_ref(text);
                    (given.setting.set)(&mut Config::default(), alone).is_err()
                })
                .map_or(&given.place, |(_, place)| place);
            return Err(error(message, place));
        }
        effective
            .origins
            .insert(key, Origin::Given(given.place.clone()));
        values.insert(key, given.values);
    }
    one_meaning_per_range(&values)?;
    what_goes_together(&effective.config, &values)?;
    Ok(effective)
}

/// Settings that mean nothing, or something dangerous, without another.
fn what_goes_together(
    config: &Config,
    values: &BTreeMap<&'static str, Values>,
) -> Result<(), ConfigError> {
    let (cert, key) = (config.tls_cert.is_some(), config.tls_key.is_some());
    let token = config.metrics_auth == MetricsAuth::Token;
    let api = config.kubernetes != Kubernetes::Off;
    for (wrong, key, message) in [
        (
            cert && !key,
            "tls_cert",
            "takes its private key, too: tls_key",
        ),
        (
            key && !cert,
            "tls_key",
            "takes its certificate, too: tls_cert",
        ),
        (
            config.tls_client_ca.is_some() && !cert,
            "tls_client_ca",
            "clients show certificates over TLS only: set tls_cert and tls_key",
        ),
        (
            token && !cert,
            "metrics_auth",
            "tokens would cross the network for all to read: set tls_cert and tls_key",
        ),
        (
            token && !api,
            "metrics_auth",
            "tokens are reviewed by the API server, and kubernetes is off",
        ),
    ] {
        if wrong {
            let given = values.get(key).and_then(|values| values.first());
            return Err(ConfigError {
                place: given.map_or(Place::Flag, |(_, place)| place.clone()),
                key: Some(key),
                message: message.to_owned(),
            });
        }
    }
    Ok(())
}

/// The same range cannot be two things. A range within another is fine: the narrower one wins. Nodes may have the
/// whole virtual network, as they do on small clusters: they win there.
fn one_meaning_per_range(values: &BTreeMap<&'static str, Values>) -> Result<(), ConfigError> {
    let mut seen: BTreeMap<IpNet, Vec<Meaning>> = BTreeMap::new();
    for key in RANGES {
        for (text, place) in values.get(key).into_iter().flatten() {
            let (name, net) = match text.split_once('=') {
                Some((name, net)) => (name, net),
                None => ("", text.as_str()),
            };
            // What is no range was refused before; an address is a range of one.
            let Ok(net) = net
                .parse::<IpNet>()
                .or_else(|_| net.parse::<IpAddr>().map(IpNet::from))
            else {
                continue;
            };
            let meaning = Meaning { key, name, place };
            let others = seen.entry(net).or_default();
            if let Some(other) = others.iter().find(|other| !meaning.goes_with(other)) {
                return Err(ConfigError {
                    place: place.clone(),
                    key: Some(key),
                    message: format!(
                        "{net} is {} here and {} at {}; it can only be one of them",
                        meaning.text(),
                        other.text(),
                        Origin::Given(other.place.clone()),
                    ),
                });
            }
            others.push(meaning);
        }
    }
    Ok(())
}

/// The raw values of a setting, each with its place.
type Values = Vec<(String, Place)>;

/// The settings that say what a range is.
const RANGES: [&str; 7] = [
    "pod_cidr",
    "service_cidr",
    "node_cidr",
    "vnet_cidr",
    "private_endpoint_cidr",
    "named_cidr",
    "load_balancer",
];

/// What a range is said to be.
struct Meaning<'a> {
    key: &'static str,
    name: &'a str,
    place: &'a Place,
}

impl Meaning<'_> {
    fn goes_with(&self, other: &Self) -> bool {
        let keys = [self.key, other.key];
        (self.key == other.key && self.name == other.name)
            || keys == ["vnet_cidr", "node_cidr"]
            || keys == ["node_cidr", "vnet_cidr"]
    }

    fn text(&self) -> String {
        if self.name.is_empty() {
            self.key.to_owned()
        } else {
            format!("'{}' of {}", self.name, self.key)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{file, settings::by_key};

    fn flag(key: &str, text: &str) -> Vec<Given> {
        vec![given(
            by_key(key).unwrap(),
            &Place::Flag,
            &[text.to_owned()],
        )]
    }

    fn env(name: &'static str, text: &'static str) -> Vec<Given> {
        from_env(move |n| (n == name).then(|| text.to_owned()))
    }

    #[test]
    fn flag_wins_over_environment_over_file_over_default() {
        let file =
            || file::read("f.toml", "sample = 2\nfirst_packets = 9\nspill_entries = 7").unwrap();
        let e = merge(vec![file(), env("AKSNET_SAMPLE", "4"), flag("sample", "8")]).unwrap();
        assert_eq!(
            (e.config.sample, e.origin("sample").to_string()),
            (8, "flag".into())
        );
        let e = merge(vec![file(), env("AKSNET_SAMPLE", "4")]).unwrap();
        assert_eq!(
            (e.config.sample, e.origin("sample").to_string()),
            (4, "environment".into())
        );
        let e = merge(vec![file()]).unwrap();
        assert_eq!(
            (e.config.sample, e.origin("sample").to_string()),
            (2, "f.toml:1".into())
        );
        assert_eq!(e.origin("first_packets").to_string(), "f.toml:2");
        assert_eq!(e.origin("listen"), &Origin::Default);
    }

    #[test]
    fn a_higher_layer_replaces_a_whole_list() {
        let file = file::read("f", "pod_cidr = ['10.1.0.0/16', '10.2.0.0/16']").unwrap();
        let e = merge(vec![
            file,
            env("AKSNET_POD_CIDR", "10.3.0.0/16, 10.4.0.0/16"),
        ])
        .unwrap();
        assert_eq!(
            (by_key("pod_cidr").unwrap().get)(&e.config),
            ["10.3.0.0/16", "10.4.0.0/16"]
        );
    }

    #[test]
    fn an_empty_variable_says_nothing() {
        assert!(env("AKSNET_POD_CIDR", "").is_empty());
    }

    #[test]
    fn errors_name_the_place_in_the_words_of_the_place() {
        let text = |layers| merge(layers).unwrap_err().to_string();
        assert_eq!(
            text(vec![flag("pod_cidr", "10.0.0.1/8")]),
            "--pod-cidr: '10.0.0.1/8' has bits set beyond its prefix; write 10.0.0.0/8"
        );
        assert!(
            text(vec![env("AKSNET_ATTACH", "xdp")]).starts_with("AKSNET_ATTACH: 'xdp' is none of")
        );
        let file = file::read("f.toml", "pod_cidr = [\n'10.0.0.0/8',\n'pods',\n]").unwrap();
        assert!(text(vec![file]).starts_with("f.toml:3: pod_cidr: 'pods' is not a CIDR"));
    }

    #[test]
    fn a_mistake_in_the_file_shows_even_under_a_flag() {
        let file = file::read("f.toml", "flow_cells = 1000").unwrap();
        let e = merge(vec![file, flag("flow_cells", "1024")]).unwrap_err();
        assert!(
            e.to_string()
                .starts_with("f.toml:1: flow_cells: 1000 is not a power of two")
        );
    }

    #[test]
    fn what_means_nothing_without_another_is_refused_with_the_other() {
        let said =
            |text: &str| merge(vec![file::read("f", text).unwrap()]).map_err(|e| e.to_string());
        let both = "tls_cert='c'\ntls_key='k'\n";
        assert!(said(both).is_ok());
        assert!(said(&format!("{both}metrics_auth='token'\ntls_client_ca='a'")).is_ok());
        for (text, place, other) in [
            ("tls_cert='c'", "f:1: tls_cert: ", "tls_key"),
            ("\ntls_key='k'", "f:2: tls_key: ", "tls_cert"),
            ("tls_client_ca='a'", "f:1: tls_client_ca: ", "tls_cert"),
            ("metrics_auth='token'", "f:1: metrics_auth: ", "tls_cert"),
            (
                &format!("{both}metrics_auth='token'\nkubernetes='off'"),
                "f:3: metrics_auth: ",
                "kubernetes is off",
            ),
        ] {
            let error = said(text).unwrap_err();
            assert!(error.starts_with(place) && error.contains(other), "{error}");
        }
    }

    #[test]
    fn one_range_has_one_meaning_and_both_places_are_named() {
        let said = |layers| merge(layers).unwrap_err().to_string();
        assert_eq!(
            said(vec![
                flag("pod_cidr", "10.0.0.0/16"),
                flag("service_cidr", "10.0.0.0/16"),
            ]),
            "--service-cidr: 10.0.0.0/16 is service_cidr here and pod_cidr at flag; it can only be one of them"
        );
        // Each value of a list has its own line.
        let text = "vnet_cidr = [\n'10.1.0.0/16',\n'fd00:1::/48',\n]\n\
                    named_cidr = [\n'onprem=10.50.0.0/16',\n'lab=fd00:1::/48',\n]";
        assert_eq!(
            said(vec![file::read("f.toml", text).unwrap()]),
            "f.toml:7: named_cidr: fd00:1::/48 is 'lab' of named_cidr here and vnet_cidr at f.toml:3; \
             it can only be one of them"
        );
        let text = "named_cidr = [\n'onprem=10.50.0.0/16',\n'lab=10.50.0.0/16',\n]";
        assert_eq!(
            said(vec![file::read("f.toml", text).unwrap()]),
            "f.toml:3: named_cidr: 10.50.0.0/16 is 'lab' of named_cidr here and 'onprem' of named_cidr at f.toml:2; \
             it can only be one of them"
        );
        assert_eq!(
            said(vec![
                file::read("f.toml", "private_endpoint_cidr = ['10.9.9.9/32']").unwrap(),
                flag("load_balancer", "10.9.9.9"),
            ]),
            "--load-balancer: 10.9.9.9/32 is load_balancer here and private_endpoint_cidr at f.toml:1; \
             it can only be one of them"
        );
    }

    #[test]
    fn ranges_that_lie_within_each_other_or_mean_the_same_are_fine() {
        for layers in [
            vec![
                flag("vnet_cidr", "10.0.0.0/8"),
                flag("pod_cidr", "10.244.0.0/16"),
                flag("named_cidr", "lab=10.9.0.0/16"),
            ],
            // Nodes may have the whole network.
            vec![
                flag("vnet_cidr", "10.224.0.0/16"),
                flag("node_cidr", "10.224.0.0/16"),
            ],
            // Said twice.
            vec![flag("pod_cidr", "10.244.0.0/16,10.244.0.0/16")],
            // The flag replaces what the file says.
            vec![
                file::read("f.toml", "pod_cidr = ['10.0.0.0/16']").unwrap(),
                flag("pod_cidr", "10.244.0.0/16"),
                flag("service_cidr", "10.0.0.0/16"),
            ],
        ] {
            assert!(merge(layers).is_ok());
        }
    }

    #[test]
    fn the_printed_config_is_a_config_file_that_says_the_same() {
        let e = merge(vec![
            flag("pod_cidr", "10.244.0.0/16,fd00::/56"),
            flag("named_cidr", "onprem=10.50.0.0/16"),
            flag("bpf_stats", "true"),
            flag("interval", "250ms"),
        ])
        .unwrap();
        let again = merge(vec![file::read("printed", &e.to_toml()).unwrap()]).unwrap();
        assert_eq!(again.config, e.config);
        assert!(e.to_toml().contains("interval = \"250ms\"  # flag\n"));
    }

    #[test]
    fn what_toml_has_to_escape_is_escaped_as_toml_does() {
        for strange in ["/run/\0\u{1}\u{7f}.sock", "/a\"b\\c\n'd\u{200b}é"] {
            let e = merge(vec![flag("socket", strange)]).unwrap();
            let written = e.to_toml();
            let again = merge(vec![file::read("printed", &written).unwrap()]).unwrap();
            assert_eq!(again.config, e.config, "{written}");
        }
    }

    #[test]
    fn a_mistyped_variable_is_noticed() {
        assert_eq!(
            unknown_env(["AKSNET_POD_CIDRS", "AKSNET_CONFIG", "AKSNET_SAMPLE", "HOME"]),
            ["AKSNET_POD_CIDRS is not a setting; did you mean AKSNET_POD_CIDR?"]
        );
        assert!(unknown_env(["AKSNET_SERVICE_HOST_IN_KUBERNETES"]).is_empty());
    }
}
