use std::path::Path;

use proptest::prelude::*;

use super::super::Source;
use super::*;
use crate::manifest::{Content, Reading, read};

fn manifest(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: evenkeel/v1\nkind: Container\nmetadata: {{name: {name}}}\nspec: {{image: a, {spec}}}\n---\n"
    )
}

/// Checks the documents of files that are called `0.yaml`, `1.yaml` and so on.
fn checked(files: &[String]) -> Graph {
    let readings: Vec<Reading> = files
        .iter()
        .enumerate()
        .map(|(n, text)| read(Path::new(&format!("{n}.yaml")), text.as_bytes()))
        .collect();
    let mut named = Vec::new();
    for document in readings.iter().flat_map(|it| &it.documents) {
        let Content::Workload { name, workload, places } = &document.content else { continue };
        let origin = Origin {
            source: Source::new(Path::new("/"), Path::new("m")),
            file: document.position.file.clone(),
            document: document.index,
        };
        let workload = workload.as_deref();
        named.push(Named { origin, name, workload, places, position: &document.position });
    }
    check(&named)
}

/// `name: mode` for each, in one file; problems as `line code`, then the invalid names, then the roots.
fn of(workloads: &[(&str, &str)]) -> (Vec<String>, Vec<String>, Vec<String>) {
    let text: String = workloads.iter().map(|(name, spec)| manifest(name, spec)).collect();
    let graph = checked(&[text]);
    let problems =
        graph.problems.iter().map(|it| format!("{} {}", it.position.line, it.code)).collect();
    let invalid = graph.invalid.iter().map(ToString::to_string).collect();
    (problems, invalid, graph.roots.iter().map(|(name, root)| format!("{name}={root}")).collect())
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

#[test]
fn a_chain_is_resolved_to_its_root() {
    let found = of(&[
        ("c", "ipcMode: 'container:b'"),
        ("b", "ipcMode: 'container:a'"),
        ("a", "ipcMode: shareable"),
        ("alone", "ipcMode: shareable"),
    ]);
    assert_eq!(found, (vec![], vec![], strings(&["b=a", "c=a"])));
}

#[test]
fn only_what_says_that_it_can_be_joined_is_joined() {
    for mode in [
        "ipcMode: private",
        "ipcMode: none",
        "ipcMode: host",
        "",
        "ipcMode: shareable, mounts: [{type: tmpfs, target: /dev/shm/}]",
    ] {
        let found =
            of(&[("a", mode), ("b", "ipcMode: 'container:a'"), ("c", "ipcMode: 'container:b'")]);
        // Only the one that says it; what hangs on it has no problem of its own, and no root.
        assert_eq!(
            found,
            (strings(&["9 ipc-donor-not-shareable"]), strings(&["b"]), vec![]),
            "{mode}"
        );
    }
}

#[test]
fn an_own_dev_shm_ends_a_chain() {
    let found = of(&[
        ("a", "ipcMode: shareable"),
        ("b", "ipcMode: 'container:a', mounts: [{type: tmpfs, target: /dev/shm}]"),
        ("c", "ipcMode: 'container:b'"),
    ]);
    assert_eq!(
        found,
        (strings(&["14 ipc-donor-not-shareable"]), strings(&["c"]), strings(&["b=a"]))
    );
}

#[test]
fn a_circle_is_named_from_each_of_its_members() {
    let text: String = [("b", "a"), ("a", "c"), ("c", "b"), ("d", "a")]
        .iter()
        .map(|(name, donor)| manifest(name, &format!("ipcMode: 'container:{donor}'")))
        .collect();
    let graph = checked(&[text]);
    let paths: Vec<&str> =
        graph.problems.iter().map(|it| it.message.rsplit(": ").next().unwrap()).collect();
    assert_eq!(paths, ["`b` → `a` → `c` → `b`", "`a` → `c` → `b` → `a`", "`c` → `b` → `a` → `c`"]);
    assert_eq!(graph.invalid.iter().map(Name::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(graph.roots.is_empty());
}

#[test]
fn a_long_circle_is_not_spelled_out() {
    let text: String = (0..300)
        .map(|n| manifest(&format!("a{n}"), &format!("ipcMode: 'container:a{}'", (n + 1) % 300)))
        .collect();
    let graph = checked(&[text]);
    assert_eq!(graph.problems.len(), 300);
    assert!(
        graph.problems.iter().all(|it| it.message.contains("292 more") && it.message.len() < 250)
    );
}

#[test]
fn an_unknown_donor_is_a_problem_with_a_guess() {
    let (problems, invalid, _) =
        of(&[("a", "ipcMode: 'container:databse'"), ("database", "ipcMode: shareable")]);
    assert_eq!((problems, invalid), (strings(&["4 ipc-donor-unknown"]), strings(&["a"])));
    let graph =
        checked(&[manifest("a", "ipcMode: 'container:databse'") + &manifest("database", "")]);
    assert_eq!(graph.problems[0].fix.as_deref(), Some("container:database"));
}

#[test]
fn a_donor_with_problems_of_its_own_is_no_news_of_its_joiner() {
    let found = of(&[
        ("a", "ipcMode: shareable, oops: 1"),
        ("b", "ipcMode: 'container:a'"),
        ("c", "ipcMode: 'container:b'"),
    ]);
    assert_eq!(found, (vec![], vec![], vec![]));
}

#[test]
fn a_donor_on_its_way_out_makes_nobody_invalid() {
    let found = of(&[("a", "ipcMode: shareable, state: absent"), ("b", "ipcMode: 'container:a'")]);
    assert_eq!(found, (vec![], vec![], strings(&["b=a"])));
    // A joiner that is to go needs no donor.
    let found = of(&[("b", "ipcMode: 'container:gone', state: absent")]);
    assert_eq!(found, (vec![], vec![], vec![]));
    let found = of(&[("b", "ipcMode: 'container:gone', state: stopped")]);
    assert_eq!(found.0, strings(&["4 ipc-donor-unknown"]));
}

#[test]
fn one_name_in_two_documents_is_a_problem_at_the_second_that_shows_the_first() {
    let graph = checked(&[
        manifest("a", "") + &manifest("b", ""),
        manifest("a", "state: stopped") + &manifest("c", ""),
    ]);
    let [problem] = graph.problems.as_slice() else { panic!() };
    assert_eq!((problem.code, problem.severity), ("duplicate-name", Severity::Error));
    assert_eq!(
        (problem.position.to_string().as_str(), problem.pointer.as_str()),
        ("1.yaml:3:18", "/metadata/name")
    );
    assert_eq!(problem.related.as_ref().unwrap().to_string(), "0.yaml:3:18");
    assert!(problem.message.contains("0.yaml:3:18"));
    let name = |it: &str| it.parse::<Name>().unwrap();
    assert_eq!(graph.invalid, BTreeSet::from([name("a")]));
    assert_eq!(graph.winner, BTreeMap::from([(name("a"), 0), (name("b"), 1), (name("c"), 3)]));
}

#[test]
fn an_identical_duplicate_is_a_warning_and_the_first_counts() {
    let graph = checked(&[
        manifest("a", "shmSize: 64Mi"),
        "# Copied.\n".to_owned() + &manifest("a", "shmSize: 67108864"),
    ]);
    assert_eq!(graph.problems.len(), 1);
    assert_eq!(
        (graph.problems[0].code, graph.problems[0].severity),
        ("duplicate-name", Severity::Warning)
    );
    assert!(graph.invalid.is_empty());
    // Two documents that cannot be read in full are not known to say the same.
    let graph = checked(&[manifest("a", "oops: 1"), manifest("a", "oops: 1")]);
    assert_eq!(graph.problems[0].severity, Severity::Error);
}

#[test]
fn a_duplicate_keeps_its_joiners_out_of_trouble() {
    let graph = checked(&[
        manifest("a", "ipcMode: shareable"),
        manifest("a", ""),
        manifest("b", "ipcMode: 'container:a'"),
    ]);
    assert_eq!(graph.problems.len(), 1);
    assert_eq!(graph.invalid.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever is valid and joins ends at a shareable workload, whatever the graph, and the order of the documents
    /// changes nothing but positions.
    #[test]
    fn valid_joiners_end_at_a_shareable_workload(donors in proptest::collection::vec((0_usize..12, 0..3), 1..10), by in 0_usize..10) {
        let documents: Vec<String> = donors.iter().enumerate().map(|(n, (donor, kind))| match kind {
            0 => manifest(&format!("a{n}"), "ipcMode: shareable"),
            1 => manifest(&format!("a{n}"), if donor % 2 == 0 { "" } else { "oops: 1" }),
            _ if *donor == n => manifest(&format!("a{n}"), ""),
            _ => manifest(&format!("a{n}"), &format!("ipcMode: 'container:a{donor}'")),
        }).collect();
        let graph = checked(&documents);
        for (name, root) in &graph.roots {
            prop_assert!(!graph.invalid.contains(name) && !graph.invalid.contains(root));
            let number: usize = root.as_str()[1..].parse().unwrap();
            prop_assert_eq!(donors[number].1, 0);
        }
        prop_assert_eq!(graph.problems.len(), graph.invalid.len());
        let mut turned = documents.clone();
        turned.rotate_left(by % documents.len());
        let other = checked(&turned);
        prop_assert_eq!(other.invalid, graph.invalid);
        prop_assert_eq!(other.roots, graph.roots);
    }
}
