//! The label of the containerd namespace that says which evenkeel works in it.

use std::collections::HashMap;

use containerd_client::services::v1::{
    CreateNamespaceRequest, GetNamespaceRequest, Namespace, UpdateNamespaceRequest,
};
use prost_types::FieldMask;

use super::link::{Fault, Link};
use crate::runtime::ErrorKind;

/// Its value is for its writer to know.
const OWNER: &str = "evenkeel/owner";

/// Who the namespace belongs to; `None`: nobody yet.
pub(super) async fn read(link: &Link, namespace: &str) -> Result<Option<String>, Fault> {
    let request = GetNamespaceRequest { name: namespace.to_owned() };
    match link.answer(super::METADATA_LIMIT, link.namespaces().get(request)).await {
        Ok(answer) => Ok(answer.namespace.and_then(|it| it.labels.get(OWNER).cloned())),
        Err(fault) if fault.kind == ErrorKind::Missing => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Makes the namespace if it is missing, and writes who it belongs to.
pub(super) async fn write(link: &Link, namespace: &str, owner: &str) -> Result<(), Fault> {
    let labels = HashMap::from([(OWNER.to_owned(), owner.to_owned())]);
    let wanted = Namespace { name: namespace.to_owned(), labels };
    let create = CreateNamespaceRequest { namespace: Some(wanted.clone()) };
    match link.answer(super::METADATA_LIMIT, link.namespaces().create(create)).await {
        Ok(_) => Ok(()),
        Err(fault) if fault.kind == ErrorKind::Conflict => {
            let mask = FieldMask { paths: vec![format!("labels.{OWNER}")] };
            let update =
                UpdateNamespaceRequest { namespace: Some(wanted), update_mask: Some(mask) };
            link.answer(super::METADATA_LIMIT, link.namespaces().update(update)).await.map(drop)
        }
        Err(fault) => Err(fault),
    }
}
