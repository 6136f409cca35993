//! A process beside a container's own program: what it has of that one's, and what is its own.

use oci_spec::runtime::{BoxBuilder, Process, Spec};

use crate::workload::User;

/// A process that a person starts in a container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exec {
    /// Not empty; the program is looked up in the container's `PATH`.
    pub args: Vec<String>,
    /// Added to the environment of the container's program; the last of two of one name wins.
    pub env: Vec<(String, String)>,
    /// The container's working directory when absent.
    pub working_dir: Option<String>,
    /// The container's user when absent.
    pub user: Option<User>,
    /// It gets a terminal of that many columns and rows.
    pub terminal: Option<(u16, u16)>,
}

/// Makes the process from the spec that the container was started with: rights and limits are never wider than those
/// of the container's own program.
pub fn exec(spec: &Spec, exec: &Exec) -> Process {
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(exec.args.clone())).set_terminal(Some(exec.terminal.is_some()));
    let mut env = process.env().clone().unwrap_or_default();
    for (name, value) in &exec.env {
        let start = format!("{name}=");
        env.retain(|it| !it.starts_with(&start));
        env.push(format!("{start}{value}"));
    }
    process.set_env(Some(env));
    if let Some(directory) = &exec.working_dir {
        process.set_cwd(directory.into());
    }
    if let Some(user) = &exec.user {
        let User { uid, gid, supplemental_groups } = user;
        process
            .set_user(super::member(*uid, *gid, supplemental_groups))
            .set_capabilities(Some(super::capabilities(*uid)));
    }
    if let Some((columns, rows)) = exec.terminal {
        let size = BoxBuilder::default().width(columns).height(rows).build();
        process.set_console_size(Some(super::built(size)));
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "cwd": "/srv", "args": ["serve"], "user": { "uid": 0, "gid": 0 },
                "env": ["PATH=/bin", "A=1", "AB=2"], "noNewPrivileges": true,
                "capabilities": { "effective": ["CAP_CHOWN"], "bounding": ["CAP_CHOWN"] },
            },
        });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn what_is_not_said_is_as_the_container_has_it() {
        let process = exec(&spec(), &Exec { args: vec!["sh".to_owned()], ..Exec::default() });
        let own = spec().process().clone().unwrap();
        assert_eq!(process.args(), &Some(vec!["sh".to_owned()]));
        assert_eq!(
            (process.env(), process.cwd(), process.user()),
            (own.env(), own.cwd(), own.user())
        );
        assert_eq!(process.capabilities(), own.capabilities());
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!((process.terminal(), process.console_size()), (Some(false), None));
    }

    #[test]
    fn what_is_said_takes_the_place_of_it() {
        let asked = Exec {
            args: vec!["id".to_owned()],
            env: vec![("A".to_owned(), "3".to_owned()), ("B".to_owned(), "x=y".to_owned())],
            working_dir: Some("/tmp".to_owned()),
            user: Some(User { uid: 7, gid: 8, supplemental_groups: vec![9] }),
            terminal: Some((100, 40)),
        };
        let process = exec(&spec(), &asked);
        let env = ["PATH=/bin", "AB=2", "A=3", "B=x=y"].map(str::to_owned).to_vec();
        assert_eq!(process.env(), &Some(env));
        assert_eq!(process.cwd().to_str(), Some("/tmp"));
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        // As the container's own user: a group that is missing from the list could be shed.
        assert_eq!(process.user().additional_gids(), &Some(vec![8, 9]));
        let size = process.console_size().unwrap();
        assert_eq!((process.terminal(), size.width(), size.height()), (Some(true), 100, 40));
        // Somebody without root's rights has none of its capabilities at hand.
        let effective = process.capabilities().as_ref().unwrap().effective().clone();
        assert!(effective.is_none_or(|it| it.is_empty()));
    }
}
