//! A CNI *configuration*: the file in `/etc/cni/net.d` that the container runtime takes, which is the first
//! by name. Pure and total; what is of no interest is not read.
//!
//! Format: the CNI specification, section 1; the plugins' own keys in containernetworking/plugins and
//! Azure/azure-container-networking (`cni/*.conflist`).

use serde::Deserialize;

/// A network configuration list; a single plugin's file is read as a list of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflist {
    /// The file's name.
    pub file: String,
    /// The network's name, by which host-local keeps its addresses.
    pub name: String,
    /// The plugins in order.
    pub plugins: Vec<Plugin>,
}

/// A plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Plugin {
    /// The program.
    #[serde(rename = "type")]
    pub kind: String,
    /// The bridge of plugin `bridge`.
    pub bridge: String,
    /// Who hands out addresses.
    pub ipam: Ipam,
}

/// Address management.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ipam {
    /// The program.
    #[serde(rename = "type")]
    pub kind: String,
    /// azure-cns: `v4overlay`, `dualStackOverlay`, `overlay`, or empty.
    pub mode: String,
    /// host-local: where it keeps what it has handed out.
    #[serde(rename = "dataDir")]
    pub data_dir: String,
    /// host-local: alternatives of each range set.
    pub ranges: Vec<Vec<Range>>,
    /// host-local, the older form: one range.
    #[serde(flatten)]
    pub range: Range,
}

/// A range of host-local.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Range {
    /// The subnet.
    pub subnet: String,
    /// The first address; else the first of the subnet.
    #[serde(rename = "rangeStart")]
    pub start: String,
    /// The last address; else the last of the subnet.
    #[serde(rename = "rangeEnd")]
    pub end: String,
    /// Never handed out; else the first of the subnet.
    pub gateway: String,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    name: String,
    #[serde(default)]
    plugins: Option<Vec<Plugin>>,
    #[serde(flatten)]
    single: Plugin,
}

impl Conflist {
    /// Reads a file's text.
    ///
    /// # Errors
    /// When it is no CNI configuration.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, String> {
        let parsed: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let plugins = parsed.plugins.unwrap_or_else(|| vec![parsed.single]);
        if plugins.iter().all(|p| p.kind.is_empty()) {
            return Err("it names no plugin".to_owned());
        }
        Ok(Self {
            file: file.to_owned(),
            name: parsed.name,
            plugins,
        })
    }

    /// Whether a runtime would take a file of this name.
    #[must_use]
    pub fn is_file(name: &str) -> bool {
        [".conf", ".conflist", ".json"]
            .iter()
            .any(|end| name.len() > end.len() && name.ends_with(end))
    }

    /// The plugin of this type.
    #[must_use]
    pub fn plugin(&self, kind: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|p| p.kind == kind)
    }

    /// The address management that the list has.
    #[must_use]
    pub fn ipam(&self) -> Option<&Ipam> {
        self.plugins
            .iter()
            .map(|p| &p.ipam)
            .find(|i| !i.kind.is_empty())
    }

    /// In one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let types: Vec<&str> = self.plugins.iter().map(|p| p.kind.as_str()).collect();
        let ipam = self.ipam().map_or(String::new(), |i| {
            let mode = if i.mode.is_empty() { "" } else { " " };
            format!(", ipam {}{mode}{}", i.kind, i.mode)
        });
        format!("{}: plugins {}{ipam}", self.file, types.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_has_its_plugins_in_order() {
        let text = br#"{"name": "azure", "plugins": [
            {"type": "azure-vnet", "mode": "transparent", "ipam": {"mode": "v4overlay", "type": "azure-cns"}},
            {"type": "portmap"}]}"#;
        let list = Conflist::parse("15-azure.conflist", text).unwrap();
        assert_eq!(
            list.describe(),
            "15-azure.conflist: plugins azure-vnet, portmap, ipam azure-cns v4overlay"
        );
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let text = br#"{"name": "old", "type": "bridge", "bridge": "cni0",
            "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}}"#;
        let list = Conflist::parse("10-old.conf", text).unwrap();
        assert_eq!(list.plugins.len(), 1);
        assert_eq!(list.ipam().unwrap().range.subnet, "10.1.0.0/24");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["", "[]", "{}", "{\"plugins\": []}", "{\"plugins\": 3}"] {
            assert!(Conflist::parse("x", text.as_bytes()).is_err(), "{text}");
        }
        assert!(!Conflist::is_file("10-azure.conflist.bak"));
        assert!(!Conflist::is_file(".conf"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Conflist::parse("x", &bytes);
        }
    }
}
