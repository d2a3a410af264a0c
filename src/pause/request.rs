//! What a pod's namespaces are asked for with; as checked values, as a command line, and as paths.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::sched::CloneFlags;

/// A kind of namespace that a pod may have of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ipc,
    Pid,
    Net,
    User,
    Uts,
}

impl Kind {
    /// In the order of the answer (control-api 4.7).
    pub(crate) const ALL: [Self; 5] = [Self::Ipc, Self::Pid, Self::Net, Self::User, Self::Uts];

    /// As in /proc/PID/ns.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ipc => "ipc",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }

    pub(super) fn flag(self) -> CloneFlags {
        match self {
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
            Self::Pid => CloneFlags::CLONE_NEWPID,
            Self::Net => CloneFlags::CLONE_NEWNET,
            Self::User => CloneFlags::CLONE_NEWUSER,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
        }
    }
}

/// A range of ids of a user namespace and what they are outside (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    container: u32,
    host: u32,
    size: u32,
}

/// What is wrong with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidMapping {
    #[error("it is not of the form \"CONTAINER_ID HOST_ID SIZE\", three numbers below 2^32")]
    Form,
    #[error("the size is 0")]
    Empty,
    #[error("the range goes beyond the last id")]
    Beyond,
}

impl FromStr for Mapping {
    type Err = InvalidMapping;

    fn from_str(text: &str) -> Result<Self, InvalidMapping> {
        let mut numbers = text.split_ascii_whitespace().map(|word| match word.as_bytes() {
            // Rust would take a sign, the kernel does not.
            [b'0'..=b'9', ..] => word.parse().map_err(|_| InvalidMapping::Form),
            _ => Err(InvalidMapping::Form),
        });
        let mut next = || numbers.next().unwrap_or(Err(InvalidMapping::Form));
        let mapping = Self { container: next()?, host: next()?, size: next()? };
        if numbers.next().is_some() {
            return Err(InvalidMapping::Form);
        }
        if mapping.size == 0 {
            return Err(InvalidMapping::Empty);
        }
        let fits = |first: u32| first.checked_add(mapping.size).is_some();
        if fits(mapping.container) && fits(mapping.host) { Ok(mapping) } else { Err(InvalidMapping::Beyond) }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.container, self.host, self.size)
    }
}

/// The id that a process in the namespace becomes: root where the mapping has one. `None` without mappings.
pub(super) fn lowest_id(mappings: &[Mapping]) -> Option<u32> {
    mappings.iter().map(|mapping| mapping.container).min()
}

/// Which namespaces a pod gets, and where they are pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// Not empty, and a file name.
    pub(crate) pod_id: String,
    /// Absolute.
    pub(crate) base: PathBuf,
    /// Those to be made, in the order of [`Kind::ALL`]; the others stay the host's.
    pub(crate) kinds: Vec<Kind>,
    /// Both not empty if [`Kind::User`] is among the kinds, else both empty.
    pub(crate) uid_mappings: Vec<Mapping>,
    pub(crate) gid_mappings: Vec<Mapping>,
}

impl Request {
    /// Where the pod's namespace of this kind is pinned.
    pub(crate) fn path(&self, kind: Kind) -> PathBuf {
        self.base.join(format!("{}ns", kind.name())).join(&self.pod_id)
    }

    /// Where the number of the pause process is written down.
    pub(super) fn claim(&self) -> PathBuf {
        self.base.join("holdfast").join(&self.pod_id)
    }

    pub(super) fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    /// The arguments of the pause process. The same for the same request: a later daemon knows by them what an earlier
    /// one's pause process was started for.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let option = |name: &str, value: &Path| {
            let mut word = OsString::from(name);
            word.push(value);
            word
        };
        let mut words = vec!["pause".into(), option("--base-path=", &self.base)];
        words.push(option("--pod-id=", Path::new(&self.pod_id)));
        words.extend(self.kinds.iter().map(|kind| format!("--{}", kind.name()).into()));
        words.extend(self.uid_mappings.iter().map(|mapping| format!("--uid-mappings={mapping}").into()));
        words.extend(self.gid_mappings.iter().map(|mapping| format!("--gid-mappings={mapping}").into()));
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_three_numbers_that_make_a_range() {
        for good in ["0 0 1", "0 100000 65536", " 1  2\t3 ", "0 0 4294967295"] {
            let mapping: Mapping = good.parse().unwrap();
            assert_eq!(mapping.to_string(), good.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        }
        for (bad, why) in [
            ("", InvalidMapping::Form),
            ("0 0", InvalidMapping::Form),
            ("0 0 1 2", InvalidMapping::Form),
            ("a 0 1", InvalidMapping::Form),
            ("0 -1 1", InvalidMapping::Form),
            ("0 +1 1", InvalidMapping::Form),
            ("0 4294967296 1", InvalidMapping::Form),
            ("0 0 0", InvalidMapping::Empty),
            ("0 4294967295 1", InvalidMapping::Beyond),
            ("1 0 4294967295", InvalidMapping::Beyond),
        ] {
            assert_eq!(bad.parse::<Mapping>(), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn a_process_in_the_namespace_becomes_the_lowest_id_there_is() {
        let mappings = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(lowest_id(&mappings(&["1000 1000 1", "0 100000 1000"])), Some(0));
        assert_eq!(lowest_id(&mappings(&["7 100000 1000"])), Some(7));
        assert_eq!(lowest_id(&[]), None);
    }

    #[test]
    fn a_request_names_paths_and_a_command_line() {
        let request = Request {
            pod_id: "-p.1".to_owned(),
            base: "/b".into(),
            kinds: vec![Kind::Pid, Kind::User],
            uid_mappings: vec!["0 1 2".parse().unwrap()],
            gid_mappings: vec!["0 3 4".parse().unwrap()],
        };
        assert_eq!(request.path(Kind::User), Path::new("/b/userns/-p.1"));
        let words = ["pause", "--base-path=/b", "--pod-id=-p.1", "--pid", "--user"];
        let mappings = ["--uid-mappings=0 1 2", "--gid-mappings=0 3 4"];
        assert_eq!(request.arguments(), words.into_iter().chain(mappings).map(OsString::from).collect::<Vec<_>>());
    }
}
