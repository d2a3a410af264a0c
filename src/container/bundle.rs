//! What of a bundle's `config.json` matters here; the rest is the runtime's to judge.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde_json::Value;

/// The largest `config.json` looked into; a larger one only loses what is said here.
const BUNDLE_CONFIG: u64 = 8 * 1024 * 1024;
/// Where CRI-O says that stdin ends with the first attach client.
const STDIN_ONCE: &str = "io.kubernetes.cri-o.StdinOnce";
/// Where the container's name stands: the one CRI-O tells C conmon, else the one in the pod.
const NAMES: [&str; 2] = ["io.kubernetes.cri-o.Name", "io.kubernetes.container.name"];

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BundleFacts {
    /// Stdin ends with the first attach client.
    pub(super) stdin_once: bool,
    /// What people call the container.
    pub(super) name: Option<String>,
    /// `linux.cgroupsPath`.
    pub(super) cgroups_path: Option<String>,
}

#[derive(serde::Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(serde::Deserialize)]
struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

impl BundleFacts {
    /// Reads them; what is missing or makes no sense is as if it were not said.
    pub(super) fn of(config: &[u8]) -> Self {
        let Ok(bundle) = serde_json::from_slice::<Bundle>(config) else { return Self::default() };
        let annotations = bundle.annotations.unwrap_or_default();
        let text = |key: &str| annotations.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        Self {
            stdin_once: text(STDIN_ONCE) == Some("true"),
            name: NAMES.into_iter().find_map(text).map(str::to_owned),
            cgroups_path: bundle.linux.and_then(|linux| linux.cgroups_path).filter(|path| !path.is_empty()),
        }
    }
}

/// Reads a bundle's configuration, as a job of the pool.
pub(super) fn read_config(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // A FIFO would hold this thread, and then the runtime, until somebody writes to it.
    let file = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    file.take(BUNDLE_CONFIG).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdin_once_is_the_annotation_and_nothing_else() {
        let once = |config| BundleFacts::of(config).stdin_once;
        assert!(once(br#"{"annotations":{"io.kubernetes.cri-o.StdinOnce":"true","other":1},"x":[]}"#));
        for no in [&br#"{"annotations":{"io.kubernetes.cri-o.StdinOnce":"false"}}"#[..], b"{}", b"not json", b""] {
            assert!(!once(no));
        }
    }

    #[test]
    fn the_cgroups_path_is_taken_as_it_is_and_may_be_missing() {
        let path = |config| BundleFacts::of(config).cgroups_path;
        assert_eq!(path(br#"{"linux":{"cgroupsPath":"a.slice:crio:id","x":1}}"#).as_deref(), Some("a.slice:crio:id"));
        for none in [&br#"{"linux":{"cgroupsPath":""}}"#[..], br#"{"linux":{}}"#, br#"{"linux":null}"#, b"{}"] {
            assert_eq!(path(none), None);
        }
    }

    #[test]
    fn the_name_is_the_one_of_cri_o_else_the_one_in_the_pod() {
        let name = |config| BundleFacts::of(config).name;
        let both = br#"{"annotations":{"io.kubernetes.container.name":"web","io.kubernetes.cri-o.Name":"k8s_web_1"}}"#;
        assert_eq!(name(both).as_deref(), Some("k8s_web_1"));
        assert_eq!(name(br#"{"annotations":{"io.kubernetes.container.name":"web"}}"#).as_deref(), Some("web"));
        assert_eq!(name(br#"{"annotations":{"io.kubernetes.cri-o.Name":7}}"#), None);
    }
}
