//! What somebody else does behind the program's back: a person with containerd's own client, a cleaning script.

use std::path::PathBuf;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, DeleteImageRequest,
    ListImagesRequest, PauseTaskRequest,
};
use rustix::mount::UnmountFlags;
use tonic::transport::{Channel, Endpoint};

use crate::program::Site;
use crate::rig::busybox::{self, Packing};
use crate::rig::sweep;

/// A request of a namespace.
pub(crate) fn request<T>(namespace: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
    request
}

/// The instance of a workload.
#[track_caller]
pub(crate) fn id(site: &Site, name: &str) -> String {
    let item = site.item(name);
    item.and_then(|it| it.instance).unwrap_or_else(|| panic!("{name} has no instance")).id
}

/// A bare conversation with the containerd of a site; on a thread of its own, since the caller's may drive tasks.
fn converse<T: Send, F: Future<Output = T>>(
    site: &Site,
    talk: impl FnOnce(Channel) -> F + Send,
) -> T {
    let address = format!("unix://{}", site.socket().display());
    let talk = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(address).unwrap();
        runtime.block_on(async { talk(endpoint.connect_lazy()).await })
    };
    std::thread::scope(|scope| scope.spawn(talk).join()).unwrap()
}

pub(crate) fn pause(site: &Site, name: &str) {
    let message = PauseTaskRequest { container_id: id(site, name) };
    let request = request(site.namespace(), message);
    converse(site, |it| async { TasksClient::new(it).pause(request).await }).unwrap();
}

/// Takes the container object away from under a running task.
pub(crate) fn forget_container(site: &Site, name: &str) {
    let request = request(site.namespace(), DeleteContainerRequest { id: id(site, name) });
    converse(site, |it| async { ContainersClient::new(it).delete(request).await }).unwrap();
}

/// Makes a container of somebody else's, of the ID that an instance is to have; what takes it away again.
pub(crate) fn occupy(site: &Site, id: &str) -> impl FnOnce() {
    let runtime = containerd_client::services::v1::container::Runtime {
        name: "io.containerd.runc.v2".to_owned(),
        ..Default::default()
    };
    let spec = Some(prost_types::Any::default());
    let container =
        Container { id: id.to_owned(), runtime: Some(runtime), spec, ..Default::default() };
    let create = CreateContainerRequest { container: Some(container) };
    let create = request(site.namespace(), create);
    converse(site, |it| async { ContainersClient::new(it).create(create).await }).unwrap();
    let delete = request(site.namespace(), DeleteContainerRequest { id: id.to_owned() });
    move || {
        converse(site, |it| async { ContainersClient::new(it).delete(delete).await }).unwrap();
    }
}

/// Takes all images away, but for what containers have of them.
pub(crate) fn forget_images(site: &Site) {
    let namespace = site.namespace();
    converse(site, |it| async {
        let mut images = ImagesClient::new(it);
        let list = request(namespace, ListImagesRequest::default());
        for image in images.list(list).await.unwrap().into_inner().images {
            let delete = DeleteImageRequest { name: image.name, sync: true, ..Default::default() };
            match images.delete(request(namespace, delete)).await {
                // What nothing needs goes by itself.
                Err(status) if status.code() == tonic::Code::NotFound => {}
                deleted => drop(deleted.unwrap()),
            }
        }
    });
}

/// Takes away what runc knows of a container that runs: it neither signals nor deletes it any more, nor its cgroups.
pub(crate) fn forget_in_runc(site: &Site, name: &str) {
    let own = site.run_dir().join("runc").join(site.namespace()).join(id(site, name));
    std::fs::remove_dir_all(own).unwrap();
}

/// Takes away the cgroups of what has ended.
pub(crate) fn remove_cgroups(site: &Site) {
    let parent = evenkeel::config::cgroup_parent(&site.run_dir());
    for root in sweep::cgroup_roots() {
        sweep::remove_cgroups(&root.join(parent.trim_start_matches('/')));
    }
}

/// Unmounts the namespace that a donor has published.
pub(crate) fn unpin(site: &Site, name: &str) {
    let pin = site.run_dir().join("ipc").join(id(site, name)).join("ns");
    rustix::mount::unmount(&pin, UnmountFlags::DETACH).unwrap();
}

/// Logs of an instance that nobody knows.
pub(crate) fn leave_logs(site: &Site) -> PathBuf {
    let logs = site.state_dir().join("logs/ghost-0123456789");
    std::fs::create_dir(&logs).unwrap();
    logs
}

/// Brings an image that no manifest names, and that nothing keeps from then on; of another digest than everybody's.
pub(crate) fn bring_unwanted(site: &Site) {
    let path = site.dir().join("unwanted.archive");
    std::fs::write(&path, busybox::saved("unwanted:1", Packing::Gzip)).unwrap();
    site.run(&["image", "import", path.to_str().unwrap()]).exits(0);
}

/// That one has gone.
#[track_caller]
pub(crate) fn assert_nothing_unwanted(site: &Site) {
    let images = site.run(&["image", "list"]).exits(0).out;
    assert!(!images.contains("unwanted:1"), "{images}");
}
