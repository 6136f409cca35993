//! `evenkeel image`: what is in the store, what needs it, and bringing and removing by hand. Works beside a controller.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;

use super::connect::{self, Connection, Lock, Start};
use super::{Context, Failure, progress};
use crate::config::Settings;
use crate::controller::{self, Error};
use crate::desired::BootTime;
use crate::engine::{Engine, Found};
use crate::image::Archives;
use crate::observed::{Came, Image, ObservedState, StoredImage};
use crate::plan::{Action, Cause, ImageUse, ImageUses, Step, image_uses, import_lease, pull_lease};
use crate::rundir::{HeldImages, Holder, ImageHold};
use crate::runtime::{Mark, Runtime as _};
use crate::source;
use crate::status::{Chain, Exit};
use crate::workload::{API_VERSION, ImageName, Span};

/// Compressed archives have to be unpacked to their end before anything is known of them.
const READING: Duration = Duration::from_mins(30);

/// A controller that brings the same image may be in the way: it has the lease, or a blob.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List the images in the store, and what needs them
    List,
    /// Bring images from their registries, or what their names stand for now
    Pull(PullArgs),
    /// Bring images out of archives
    Import(ImportArgs),
    /// Remove images that nothing needs, without waiting for their time
    ///
    /// What a manifest names, a container was made from, an archive in the state directory has, or a person has pinned
    /// stays, and so does what somebody else has put there.
    Prune(PruneArgs),
    /// Keep images, whether anything needs them or not
    Pin(PinArgs),
    /// Keep images no longer than anything needs them
    Unpin(PinArgs),
}

#[derive(Debug, Args)]
struct PullArgs {
    /// Images, as manifests name them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<ImageName>,
    /// Keep them, whether anything needs them or not
    #[arg(long)]
    pin: bool,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// Archives: OCI layouts, or what `docker save` writes
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only this one of the images in them; repeatable
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<ImageName>,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Say what would be removed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also what only manifests name, or archives have: all but what containers were made from, and what is pinned
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
struct PinArgs {
    /// Images, as manifests name them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<ImageName>,
}

/// What `image list` and `image prune` print with `--output json`: what is there, or was or would be removed.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImageReport {
    api_version: String,
    /// `Images`.
    kind: String,
    images: Vec<ImageItem>,
    /// Why no image is removed now although nothing needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<String>,
}

/// An image in the store.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImageItem {
    name: String,
    /// Of what the name points at.
    digest: String,
    /// Bytes as they are stored, compressed; 0 when that is not known.
    size: u64,
    /// How it came; absent when somebody else has put it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    came: Option<Came>,
    /// Workloads that a container was made for from it.
    containers: Vec<String>,
    /// Workloads whose manifests name it.
    manifests: Vec<String>,
    pinned: bool,
    /// An archive in the state directory has it; not looked for while a manifest names it.
    archived: bool,
    /// It is being brought now.
    coming: bool,
    /// Seconds for which nothing has needed it, in this boot, as far as that was noticed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unused_for: Option<u64>,
}

pub(super) fn image(context: &mut Context<'_>, args: ImageArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    connect::run_directory(&settings)?;
    match args.command {
        ImageCommand::List => list(context, &settings),
        ImageCommand::Pull(args) => pull(context, &settings, &args),
        ImageCommand::Import(args) => import(context, &settings, &args),
        ImageCommand::Prune(args) => prune(context, &settings, &args),
        ImageCommand::Pin(args) => pin(context, &settings, &args.names, &Mark::Pinned),
        ImageCommand::Unpin(args) => pin(context, &settings, &args.names, &Mark::Unpinned),
    }
}

/// What is there, and who needs it.
struct Store {
    observed: ObservedState,
    needs: ImageUses,
    now: BootTime,
}

impl Store {
    async fn look(settings: &Settings, connection: &Connection) -> Result<Self, Failure> {
        // A controller may have been given others than the configured ones.
        let run = connect::run_directory(settings)?;
        let sources = match connect::watched(&run)? {
            Some(sources) => sources,
            None => connect::sources(&settings.manifests)?,
        };
        let desired = source::read_once(sources, settings.allow_empty).await;
        let found = if connection.is_absent {
            controller::observe_nothing(&connection.edge, &desired, None).await
        } else {
            controller::observe_once(&connection.edge, Some(&desired), None).await
        };
        let (observed, now) = found.map_err(|error| Failure::environment(&error))?;
        let needs = image_uses(&desired, &observed);
        Ok(Self { observed, needs, now })
    }

    fn item(&self, name: &str, image: &StoredImage) -> ImageItem {
        let none = BTreeSet::new();
        let uses = self.needs.uses.get(name).unwrap_or(&none);
        let (mut containers, mut manifests) = (Vec::new(), Vec::new());
        for it in uses {
            match it {
                ImageUse::Container(name) => containers.push(name.to_string()),
                ImageUse::Manifest(name) => manifests.push(name.to_string()),
                ImageUse::Pinned | ImageUse::Archive | ImageUse::Coming | ImageUse::Foreign => {}
            }
        }
        let since = image.unused.as_ref().filter(|it| it.boot == self.observed.boot_id);
        ImageItem {
            name: name.to_owned(),
            digest: image.digest.clone(),
            size: image.size,
            came: image.came,
            containers,
            manifests,
            pinned: image.pinned,
            archived: uses.contains(&ImageUse::Archive),
            coming: uses.contains(&ImageUse::Coming),
            unused_for: since.filter(|_| uses.is_empty()).map(|it| self.now.since(it.at).as_secs()),
        }
    }

    fn items(&self) -> Vec<ImageItem> {
        self.observed.stored_images.iter().map(|(name, it)| self.item(name, it)).collect()
    }

    /// Those that go.
    fn removable(&self, all: bool) -> Vec<ImageItem> {
        if self.needs.unknown.is_some() && !all {
            return Vec::new();
        }
        let goes = |it: &ImageItem| {
            let is_needed = !it.containers.is_empty() || it.pinned || it.coming;
            let is_wanted = !it.manifests.is_empty() || it.archived;
            it.came.is_some() && !is_needed && (all || !is_wanted)
        };
        self.items().into_iter().filter(goes).collect()
    }

    fn report(&self, images: Vec<ImageItem>) -> ImageReport {
        let held = self.needs.unknown.clone();
        ImageReport { api_version: API_VERSION.to_owned(), kind: "Images".to_owned(), images, held }
    }
}

impl ImageItem {
    /// Who needs it, or for how long nobody has.
    fn needed_by(&self) -> String {
        let workloads: BTreeSet<&str> =
            self.containers.iter().chain(&self.manifests).map(String::as_str).collect();
        let mut words: Vec<String> = workloads.into_iter().map(str::to_owned).collect();
        let more = [
            (self.pinned, "(pinned)"),
            (self.archived, "(archive)"),
            (self.coming, "(being brought)"),
            (self.came.is_none(), "(somebody else's)"),
        ];
        words.extend(more.into_iter().filter(|it| it.0).map(|it| it.1.to_owned()));
        match self.unused_for {
            _ if !words.is_empty() => words.join(", "),
            Some(seconds) => format!("unused for {}", Span(rounded(seconds))),
            None => "unused".to_owned(),
        }
    }
}

/// To whole minutes once there are some, and to whole hours after a day.
fn rounded(seconds: u64) -> Duration {
    let unit = match seconds {
        0..60 => 1,
        60..86_400 => 60,
        _ => 3600,
    };
    Duration::from_secs(seconds / unit * unit)
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        1..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// The beginning of a digest.
fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |it| it.1);
    hex.get(..12).unwrap_or(hex)
}

fn list(context: &mut Context<'_>, settings: &Settings) -> Result<Exit, Failure> {
    let store = connect::block_on(async {
        let found = async {
            let connection = connect::connect(settings, Start::Nothing, false).await?;
            Store::look(settings, &connection).await
        };
        connect::patiently(settings, found).await
    })??;
    let items = store.items();
    if context.is_json() {
        context.json(&store.report(items))?;
        return Ok(Exit::Success);
    }
    if items.is_empty() {
        writeln!(context.out, "no images")?;
        return Ok(Exit::Success);
    }
    let width = items.iter().map(|it| it.name.len()).max().unwrap_or(0).max(4);
    writeln!(context.out, "{:<width$}  {:<12}  {:>9}  USED BY", "NAME", "DIGEST", "SIZE")?;
    for it in &items {
        let (digest, size, by) = (short(&it.digest), size(it.size), it.needed_by());
        writeln!(context.out, "{:<width$}  {digest:<12}  {size:>9}  {by}", it.name)?;
    }
    if let Some(why) = &store.needs.unknown {
        let why = super::one_line(why);
        writeln!(context.out, "no image is removed by itself now: {why}")?;
    }
    Ok(Exit::Success)
}

/// An engine that is started for this is started by nobody else meanwhile; what is returned says whether it was, and keeps
/// others out.
fn start_alone(settings: &Settings) -> Result<Option<crate::rundir::Lock>, Failure> {
    let decided = connect::decide(settings)?;
    if decided.decision.engine == Engine::System
        || matches!(decided.embedded.find(), Found::Running { .. })
    {
        return Ok(None);
    }
    match connect::lock(&connect::run_directory(settings)?, settings)? {
        Lock::Held(lock) => Ok(Some(lock)),
        Lock::Taken(by) => {
            let message = format!(
                "{}; the embedded containerd does not answer yet: try again in a moment",
                by.message()
            );
            Err(Failure::new(Exit::Environment, message))
        }
    }
}

/// Keeps a controller from removing what is brought, and the lease under which that is done.
fn hold(connection: &Connection, image: &str, lease: String) -> Result<HeldImages, Failure> {
    let holder = Holder::this()?;
    let hold = ImageHold { holder, names: [image.to_owned()].into(), leases: [lease].into() };
    connection.edge.run.hold_images(&hold).map_err(|error| Failure::environment(&error))
}

/// What the store has under that name, ready for a container.
async fn in_store(connection: &Connection, name: &str) -> Result<Option<Image>, Failure> {
    let found = connection.edge.runtime.observe(&[name.to_owned()].into()).await;
    Ok(found.map_err(|error| Failure::environment(&error))?.images.remove(name))
}

fn failed(error: &Error) -> Failure {
    let exit = if error.is_unreachable() { Exit::Environment } else { Exit::NotConverged };
    Failure::new(exit, Chain(error))
}

fn pull(context: &mut Context<'_>, settings: &Settings, args: &PullArgs) -> Result<Exit, Failure> {
    super::start_tracing(context.verbose, false)?;
    connect::block_on(async {
        let lock = start_alone(settings)?;
        let connection = connect::connect(settings, Start::Engine, false).await?;
        drop(lock);
        if connection.edge.registry.is_none() {
            let message = "no registry can be asked: this box has images from archives only";
            return Err(Failure::new(Exit::Environment, message));
        }
        for name in &args.names {
            let name = name.full();
            let digest = Box::pin(pull_one(&connection, &name)).await?;
            if args.pin {
                mark(&connection, &name, &digest, &Mark::Pinned).await?;
            }
            let pinned = if args.pin { ", pinned" } else { "" };
            writeln!(context.out, "{name}: {digest}{pinned}")?;
            context.out.flush()?;
        }
        Ok(Exit::Success)
    })?
}

/// Brings an image, or makes sure that it is what its name stands for now; its digest.
async fn pull_one(connection: &Connection, name: &str) -> Result<String, Failure> {
    let edge = &connection.edge;
    let _held = hold(connection, name, pull_lease(name))?;
    for tried in 1.. {
        let known = in_store(connection, name).await?.map(|it| it.digest);
        let step = Step {
            name: None,
            action: Action::Pull { image: name.to_owned(), known },
            cause: Cause::Asked,
            requires: Vec::new(),
            pause: Duration::ZERO,
        };
        let done = Box::pin(edge.carry_out_alone(&step));
        let result = tokio::select! {
            biased;
            result = done => result,
            never = progress::tell(Arc::clone(edge)) => match never {},
        };
        // Somebody else may have ended it, or taken away what was there.
        let there = in_store(connection, name).await?;
        match (result, there) {
            (Ok(()), Some(image)) => return Ok(image.digest),
            (Err(error), _) if tried >= TRIES || !matches!(error, Error::Runtime(_)) => {
                return Err(failed(&error));
            }
            (Ok(()), None) if tried >= TRIES => break,
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
    let message = format!("`{name}` was brought, and somebody removes it each time");
    Err(Failure::new(Exit::NotConverged, message))
}

fn import(
    context: &mut Context<'_>,
    settings: &Settings,
    args: &ImportArgs,
) -> Result<Exit, Failure> {
    super::start_tracing(context.verbose, false)?;
    let mut files = Vec::new();
    for file in &args.files {
        let path = std::path::absolute(file)?;
        if let Err(error) = std::fs::metadata(&path) {
            return Err(Failure::new(Exit::Usage, format_args!("`{}`: {error}", file.display())));
        }
        files.push(path);
    }
    let mut archives = Archives::of_files(files).with_patience(READING);
    let found = archives.all();
    let mut exit = Exit::Success;
    for problem in &found.problems {
        writeln!(context.err, "error: {problem}")?;
        exit = Exit::NotConverged;
    }
    let wanted: BTreeSet<String> = args.names.iter().map(ImageName::full).collect();
    if let Some(name) = wanted.iter().find(|it| !found.images.contains_key(*it)) {
        let there: Vec<&str> = found.images.keys().map(String::as_str).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let message = format!("no archive has `{name}`; they have: {there}");
        return Err(Failure::new(Exit::NotConverged, message));
    }
    if found.images.is_empty() && exit == Exit::Success {
        return Err(Failure::new(Exit::NotConverged, "no image in it has a name"));
    }
    let is_wanted = |it: &Image| wanted.is_empty() || wanted.contains(&it.name);
    connect::block_on(async {
        let lock = start_alone(settings)?;
        let connection = connect::connect(settings, Start::Engine, false).await?;
        drop(lock);
        if let Ok(mut own) = connection.edge.archives.lock() {
            *own = archives;
        }
        for image in found.images.into_values().filter(is_wanted) {
            Box::pin(import_one(&connection, &image)).await?;
            writeln!(context.out, "{}: {}", image.name, image.digest)?;
            context.out.flush()?;
        }
        Ok(exit)
    })?
}

async fn import_one(connection: &Connection, image: &Image) -> Result<(), Failure> {
    let _held = hold(connection, &image.name, import_lease(&image.digest))?;
    for tried in 1.. {
        let step = Step {
            name: None,
            action: Action::Import { image: image.clone() },
            cause: Cause::Asked,
            requires: Vec::new(),
            pause: Duration::ZERO,
        };
        match Box::pin(connection.edge.carry_out_alone(&step)).await {
            Ok(()) => break,
            Err(error) if tried >= TRIES || !matches!(error, Error::Runtime(_)) => {
                return Err(failed(&error));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    Ok(())
}

async fn mark(
    connection: &Connection,
    name: &str,
    digest: &str,
    mark: &Mark,
) -> Result<(), Failure> {
    let marked = connection.edge.runtime.mark_image(name, digest, mark).await;
    marked.map_err(|error| failed(&error.into()))
}

fn pin(
    context: &mut Context<'_>,
    settings: &Settings,
    names: &[ImageName],
    as_what: &Mark,
) -> Result<Exit, Failure> {
    let is_pinned = *as_what == Mark::Pinned;
    connect::block_on(async {
        let connection = connect::connect(settings, Start::Nothing, false).await?;
        let stored = if connection.is_absent {
            BTreeMap::new()
        } else {
            let found = connection.edge.runtime.observe(&BTreeSet::new()).await;
            found.map_err(|error| Failure::environment(&error))?.stored_images
        };
        // All of them or none.
        let mut images = Vec::new();
        for name in names.iter().map(ImageName::full) {
            match stored.get(&name) {
                Some(image) if image.came.is_some() => images.push((name, image)),
                Some(_) => {
                    let message = format!("`{name}` is somebody else's, and is left alone anyway");
                    return Err(Failure::new(Exit::Usage, message));
                }
                None => {
                    let message = format!(
                        "no image is called `{name}`; `evenkeel image list` lists what there is"
                    );
                    return Err(Failure::new(Exit::Usage, message));
                }
            }
        }
        for (name, image) in images {
            if image.pinned != is_pinned {
                mark(&connection, &name, &image.digest, as_what).await?;
            }
            let word = if is_pinned { "pinned" } else { "not pinned" };
            writeln!(context.out, "{name}: {word}")?;
        }
        Ok(Exit::Success)
    })?
}

fn prune(
    context: &mut Context<'_>,
    settings: &Settings,
    args: &PruneArgs,
) -> Result<Exit, Failure> {
    super::start_tracing(context.verbose, false)?;
    let (store, removed, failure) = connect::block_on(async {
        let lock = if args.dry_run { None } else { start_alone(settings)? };
        let start = if args.dry_run { Start::Nothing } else { Start::IfItHasState };
        let connection = connect::connect(settings, start, false).await?;
        let store = Store::look(settings, &connection).await?;
        let mut removed = Vec::new();
        let mut failure = None;
        for item in store.removable(args.all) {
            let step = Step {
                name: None,
                action: Action::RemoveImage {
                    name: item.name.clone(),
                    digest: item.digest.clone(),
                },
                cause: Cause::Asked,
                requires: Vec::new(),
                pause: Duration::ZERO,
            };
            let result = if args.dry_run {
                Ok(())
            } else {
                Box::pin(connection.edge.carry_out_alone(&step)).await
            };
            match result {
                Ok(()) => removed.push(item),
                Err(error) => failure = Some(failed(&error)),
            }
        }
        // What was started for this alone ends with it.
        if let (Some(_lock), Some(keeper)) = (&lock, connection.keeper) {
            let stopped = tokio::task::spawn_blocking(move || keeper.stop()).await;
            if let Ok(Err(error)) = stopped {
                return Err(Failure::environment(&error));
            }
        }
        Ok((store, removed, failure))
    })??;
    let held = store.needs.unknown.clone().filter(|_| !args.all);
    if context.is_json() {
        context.json(&store.report(removed))?;
    } else {
        let word = if args.dry_run { "would remove" } else { "removed" };
        for it in &removed {
            writeln!(context.out, "{word} {} ({}, {})", it.name, short(&it.digest), size(it.size))?;
        }
        let total = removed.iter().map(|it| it.size).sum();
        match removed.len() {
            0 if held.is_none() => writeln!(context.out, "nothing to remove")?,
            0 => {}
            1 => writeln!(context.out, "1 image, {}", size(total))?,
            n => writeln!(context.out, "{n} images, {}", size(total))?,
        }
    }
    match (failure, held) {
        (Some(failure), _) => Err(failure),
        (None, Some(why)) => {
            let message = format!("nothing is removed, as more may be needed than is known: {why}");
            Err(Failure::new(Exit::NotConverged, message))
        }
        (None, None) => Ok(Exit::Success),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!([0, 10_239, 10_240, 10_485_760].map(size), ["-", "10239 B", "10 KiB", "10 MiB"]);
        let shown = |it| Span(rounded(it)).to_string();
        assert_eq!([59, 3_725, 90_061].map(shown), ["59s", "1h2m", "25h"]);
    }
}
