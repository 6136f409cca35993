//! What containerd says about itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::PluginsRequest;

use super::link::{Fault, Link};
use super::record::filter;

/// Both questions are answered from memory: a containerd that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn version(link: &Link) -> Result<String, Fault> {
    Ok(link.answer(LIMIT, link.version().version(())).await?.version)
}

/// Where containerd looks for programs before it follows its `PATH`: its plugin `opt` puts a directory in front,
/// which its environment does not show.
pub(super) async fn directories(link: &Link) -> Result<Vec<PathBuf>, Fault> {
    let filters =
        vec![format!("{},{}", filter("type", "io.containerd.internal.v1"), filter("id", "opt"))];
    let answer =
        link.answer(LIMIT, link.introspection().plugins(PluginsRequest { filters })).await?;
    let mut opt = answer.plugins.into_iter().filter(|it| it.id == "opt");
    Ok(opt
        .find_map(|it| Some(Path::new(it.exports.get("path")?).join("bin")))
        .into_iter()
        .collect())
}

/// Where containerd keeps content; `None`: it does not say.
pub(super) async fn content(link: &Link) -> Result<Option<PathBuf>, Fault> {
    let filters = vec![filter("type", "io.containerd.content.v1")];
    let answer =
        link.answer(LIMIT, link.introspection().plugins(PluginsRequest { filters })).await?;
    let root =
        |it: &containerd_client::services::v1::Plugin| it.exports.get("root").map(PathBuf::from);
    Ok(answer.plugins.iter().find_map(root))
}

/// Why a plugin cannot be used, if it cannot.
pub(super) async fn fault_of_plugin(
    link: &Link,
    kind: &str,
    id: &str,
) -> Result<Option<String>, Fault> {
    let filters = vec![format!("{},{}", filter("type", kind), filter("id", id))];
    let answer =
        link.answer(LIMIT, link.introspection().plugins(PluginsRequest { filters })).await?;
    let plugin = answer.plugins.into_iter().find(|it| it.r#type == kind && it.id == id);
    Ok(match plugin {
        None => Some("containerd does not have it".to_owned()),
        Some(plugin) => plugin.init_err.map(|it| it.message),
    })
}
