use super::*;

#[test]
fn probe() {
    let yaml = "apiVersion: evenkeel/v1\nkind: Contaner\nmetadata:\n  name: a\nspec:\n  image: docker.io/library/busybox:1.35\n  ipc: Private\n  ipcMode: Private\n  shm_size: 64m\n  shmSize: 64m\n  restart: unless-stopped\n  args:\n  env: [FOO=bar, {name: x, value: 5}]\n  mounts:\n  - /a:/b:ro\n  user: 1000:1000\n---\n# x\n---\nfoo: [\n---\napiVersion: evenkeel/v1\nkind: Container\nmetadata: {name: b}\nspec:\n  image: busybox\n";
    let reading = read(Path::new("x.yaml"), yaml.as_bytes());
    for p in &reading.problems {
        println!("{}", render::text(p, render::Style::default()));
    }
    println!("{:#?}", reading.documents);
}
