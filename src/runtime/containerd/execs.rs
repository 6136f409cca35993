//! Processes beside a task's own.

use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest,
    StartRequest, WaitRequest,
};
use oci_spec::runtime::Spec;
use prost_types::Any;

use super::link::{Fault, Link, Tolerate as _};
use super::{CREATE_LIMIT, TASK_LIMIT};
use crate::oci::Exec;
use crate::runtime::{ErrorKind, Streams};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Makes and starts one; what was made is taken back when it cannot be started.
pub(super) async fn start(
    link: &Link,
    id: &str,
    key: &str,
    exec: &Exec,
    spec: Option<Any>,
    streams: &Streams,
) -> Result<u32, Fault> {
    let spec: Spec = spec
        .and_then(|it| serde_json::from_slice(&it.value).ok())
        .ok_or_else(|| Fault::refused("its container's spec cannot be read"))?;
    let process = serde_json::to_vec(&crate::oci::exec(&spec, exec))
        .map_err(|error| Fault::refused(format!("the process: {error}")))?;
    let path = |it: &Option<std::path::PathBuf>| match it.as_ref().map(|it| it.to_str()) {
        None => Ok(String::new()),
        Some(Some(text)) => Ok(text.to_owned()),
        Some(None) => Err(Fault::refused("the run directory's path is not UTF-8")),
    };
    let request = ExecProcessRequest {
        container_id: id.to_owned(),
        exec_id: key.to_owned(),
        stdin: path(&streams.stdin)?,
        stdout: path(&streams.stdout)?,
        stderr: path(&streams.stderr)?,
        terminal: exec.terminal.is_some(),
        spec: Some(Any { type_url: PROCESS_TYPE.to_owned(), value: process }),
    };
    link.answer(TASK_LIMIT, link.tasks().exec(request)).await?;
    let request = StartRequest { container_id: id.to_owned(), exec_id: key.to_owned() };
    match link.answer(CREATE_LIMIT, link.tasks().start(request)).await {
        Ok(started) => Ok(started.pid),
        Err(fault) => {
            // The failure of the start is what is told.
            drop(delete(link, id, key).await);
            Err(fault)
        }
    }
}

pub(super) async fn wait(
    link: &Link,
    id: &str,
    key: &str,
    limit: Duration,
) -> Result<Option<u32>, Fault> {
    let request = WaitRequest { container_id: id.to_owned(), exec_id: key.to_owned() };
    let mut client = link.tasks();
    match tokio::time::timeout(limit, client.wait(request)).await {
        Err(_) => Ok(None),
        Ok(Ok(answer)) => Ok(Some(answer.into_inner().exit_status)),
        Ok(Err(status)) => Err(link.fault(&status)),
    }
}

pub(super) async fn kill(link: &Link, id: &str, key: &str, signal: u32) -> Result<(), Fault> {
    let (container_id, exec_id) = (id.to_owned(), key.to_owned());
    let request = KillRequest { container_id, exec_id, signal, all: false };
    link.answer(TASK_LIMIT, link.tasks().kill(request)).await.unless_missing().map(drop)
}

pub(super) async fn resize(
    link: &Link,
    id: &str,
    key: &str,
    (columns, rows): (u16, u16),
) -> Result<(), Fault> {
    let (width, height) = (u32::from(columns), u32::from(rows));
    let (container_id, exec_id) = (id.to_owned(), key.to_owned());
    let request = ResizePtyRequest { container_id, exec_id, width, height };
    link.answer(TASK_LIMIT, link.tasks().resize_pty(request)).await.unless_missing().map(drop)
}

pub(super) async fn close_stdin(link: &Link, id: &str, key: &str) -> Result<(), Fault> {
    let request =
        CloseIoRequest { container_id: id.to_owned(), exec_id: key.to_owned(), stdin: true };
    link.answer(TASK_LIMIT, link.tasks().close_io(request)).await.unless_missing().map(drop)
}

/// Ends it if it still runs.
pub(super) async fn delete(link: &Link, id: &str, key: &str) -> Result<(), Fault> {
    let request = DeleteProcessRequest { container_id: id.to_owned(), exec_id: key.to_owned() };
    let delete = || async {
        let deleted = link.answer(TASK_LIMIT, link.tasks().delete_process(request.clone())).await;
        deleted.unless_missing().map(drop)
    };
    match delete().await {
        Err(fault) if fault.kind == ErrorKind::Refused => {
            kill(link, id, key, 9).await?;
            match wait(link, id, key, TASK_LIMIT).await.unless_missing()? {
                Some(None) => Err(Fault::refused("it does not end")),
                Some(Some(_)) | None => delete().await,
            }
        }
        other => other,
    }
}
