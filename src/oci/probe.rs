//! What the runtime can do that not every runtime can, told by its own help text.

use std::time::Duration;

use super::{LaunchError, Runtime};
use crate::process::exec_cgroup::CgroupOption;
use bytes::BytesMut;

/// How long the help text may take. Without it nothing fails: the runtime is taken for one that knows nothing special.
const HELP_LIMIT: Duration = Duration::from_secs(5);
/// More than any help text.
const HELP_SIZE: usize = 64 * 1024;

impl Runtime {
    /// What `exec --cgroup` takes; the runtime is asked until it has run once.
    pub(crate) async fn cgroup_option(&self) -> CgroupOption {
        let ask = async {
            let help = self.help().await;
            let option = help.as_deref().map_or(CgroupOption::None, cgroup_option);
            let error = help.err();
            tracing::debug!(
                ?option,
                error = error.as_ref().map(ToString::to_string),
                "asked the runtime for exec --cgroup"
            );
            match error {
                // What is short now says nothing about later: execs would go without a cgroup for ever.
                Some(error) if !error.has_run() || matches!(error, LaunchError::Blocking(_)) => Err(error),
                _ => Ok(option),
            }
        };
        self.cgroup_option.get_or_try_init(|| ask).await.copied().unwrap_or(CgroupOption::None)
    }

    async fn help(&self) -> Result<String, LaunchError> {
        let ran = self.plain_call(["exec", "--help"].map(Into::into).into(), HELP_LIMIT).await?;
        let mut text = BytesMut::new();
        for chunk in ran.capture.into_chunks() {
            text.extend_from_slice(&chunk.bytes);
        }
        for rest in [&ran.stdout, &ran.stderr] {
            // What came last; the runtime has ended, and nobody else writes here.
            while text.len() < HELP_SIZE && matches!(rest.read_now(&mut text, HELP_SIZE), Ok(Some(1..))) {}
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// runc says `--cgroup value   … Format is [<controller>:]<cgroup>.`, crun `--cgroup=PATH   sub-cgroup …`.
fn cgroup_option(help: &str) -> CgroupOption {
    let mut options = help.lines().filter_map(|line| line.trim_start().strip_prefix("--cgroup"));
    match options.find(|rest| rest.starts_with([' ', '=', '\t'])) {
        Some(line) if line.contains("<controller>") => CgroupOption::ControllerAndName,
        Some(_) => CgroupOption::Name,
        None => CgroupOption::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_known_by_the_runtimes_help() {
        for (help, expected) in [
            (
                "OPTIONS:\n   --cap value  add\n   --cgroup value   run the process in an (existing) sub-cgroup(s). \
                 Format is [<controller>:]<cgroup>.\n",
                CgroupOption::ControllerAndName,
            ),
            (
                "      --apparmor=VALUE  x\n      --cgroup=PATH          sub-cgroup in the container\n",
                CgroupOption::Name,
            ),
            ("   --console-socket value\n   --cgroup-manager value   <controller>\n", CgroupOption::None),
            ("see also runc --cgroup\n", CgroupOption::None),
            ("", CgroupOption::None),
        ] {
            assert_eq!(cgroup_option(help), expected, "{help}");
        }
    }
}
