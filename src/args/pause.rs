//! `holdfast pause`: the process that holds a pod's namespaces open.

use std::path::PathBuf;

/// Which namespaces to hold open (control-api 2.3).
#[derive(Debug, clap::Args)]
pub struct Pause {
    /// The root of the pinned namespaces
    #[arg(short = 'p', long, env = "CONMON_PAUSE_BASE_PATH", value_name = "DIR", default_value = "/var/run")]
    pub base_path: PathBuf,
    /// The pod's id
    #[arg(long, env = "CONMON_PAUSE_POD_ID", value_name = "ID")]
    pub pod_id: String,
    /// Unshare the IPC namespace
    #[arg(long)]
    pub ipc: bool,
    /// Unshare the PID namespace
    #[arg(long)]
    pub pid: bool,
    /// Unshare the network namespace
    #[arg(long)]
    pub net: bool,
    /// Unshare the user namespace
    #[arg(long, requires_all = ["uid_mappings", "gid_mappings"])]
    pub user: bool,
    /// Unshare the UTS namespace
    #[arg(long)]
    pub uts: bool,
    /// "CONTAINER_ID HOST_ID SIZE" of user ids
    #[arg(short, long, value_name = "MAPPING")]
    pub uid_mappings: Vec<String>,
    /// "CONTAINER_ID HOST_ID SIZE" of group ids
    #[arg(short, long, value_name = "MAPPING")]
    pub gid_mappings: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;
    use crate::args::{Command, tests::parse};

    #[test]
    fn pause_needs_a_pod_id_and_a_user_namespace_needs_both_mappings() {
        assert_eq!(parse(&["pause"]).unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
        let user = ["pause", "--pod-id", "p", "--user", "-u", "0 0 1", "-g", "0 0 1"];
        assert!(parse(&user[..6]).is_err());
        let Some(Command::Pause(pause)) = parse(&user).unwrap().command else { panic!("no subcommand") };
        assert_eq!((pause.pod_id.as_str(), pause.user, pause.net), ("p", true, false));
        assert_eq!((pause.base_path, pause.uid_mappings), (PathBuf::from("/var/run"), vec!["0 0 1".to_owned()]));
    }
}
