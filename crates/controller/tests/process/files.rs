//! A folder that is edited while it is watched.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use super::{Controller, Folder, LIMIT, service};

fn two(a: &str, b: &str) -> String {
    format!("{}---\n{}", service(a), service(b))
}

#[test]
fn given_every_way_to_edit_a_file_then_its_new_content_is_taken_over() {
    let folder = Folder::with("a.yaml", service("a"));
    let controller = Controller::on(folder.path());
    controller.has(&["a"]);
    let a = folder.write("a.yaml", service("in-place"));
    controller.has(&["in-place"]);
    // As editors do: a temporary file, moved over the old one; its backup beside it.
    folder.write("a.yaml~", service("backup"));
    folder.write(".a.yaml.swp", service("swap"));
    folder.write("4913", "");
    let temporary = folder.write("a.yaml.tmp", service("renamed"));
    std::fs::rename(temporary, &a).expect("renamed");
    controller.has(&["renamed"]);
    let mut file = File::options().append(true).open(&a).expect("open");
    write!(file, "---\n{}", service("appended")).expect("appended");
    drop(file);
    controller.has(&["appended", "renamed"]);
    std::fs::remove_file(&a).expect("deleted");
    controller.has(&[]);
    folder.write("a.yaml", service("again"));
    controller.has(&["again"]);
    std::fs::remove_file(&a).expect("deleted");
    folder.write("a.yaml", service("at-once"));
    controller.has(&["at-once"]);
    controller.is_content();
}

#[test]
fn given_folders_that_come_and_go_then_their_files_come_and_go() {
    let folder = Folder::with("a.yaml", service("a"));
    let elsewhere =
        tempfile::tempdir_in(folder.path().parent().expect("a parent")).expect("a folder");
    let controller = Controller::on(folder.path());
    folder.write("new/deeper/b.yml", service("b"));
    controller.has(&["a", "b"]);
    folder.write("new/deeper/b.yml", service("c"));
    controller.has(&["a", "c"]);
    folder.write(".git/d.yaml", service("hidden"));
    // A whole tree that was made elsewhere.
    std::fs::create_dir_all(elsewhere.path().join("tree/below")).expect("folders");
    std::fs::write(
        elsewhere.path().join("tree/below/e.json"),
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "e"}}"#,
    )
    .expect("written");
    std::fs::rename(elsewhere.path().join("tree"), folder.path().join("tree")).expect("moved in");
    controller.has(&["a", "c", "e"]);
    folder.write("tree/below/f.yaml", service("f"));
    controller.has(&["a", "c", "e", "f"]);
    std::fs::rename(folder.path().join("a.yaml"), elsewhere.path().join("a.yaml"))
        .expect("moved out");
    controller.has(&["c", "e", "f"]);
    std::fs::remove_dir_all(folder.path().join("new")).expect("deleted");
    controller.has(&["e", "f"]);
    std::fs::rename(folder.path().join("tree"), folder.path().join("other")).expect("renamed");
    folder.write("other/below/f.yaml", service("g"));
    controller.has(&["e", "g"]);
}

#[test]
fn given_many_folders_at_once_then_no_file_of_them_is_missed() {
    let folder = Folder::new();
    let controller = Controller::on(folder.path());
    let mut names = Vec::new();
    for i in 0..40 {
        let name = format!("s{i:02}");
        folder.write(&format!("f{i}/g{i}/a.yaml"), service(&name));
        names.push(name);
    }
    controller.has(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn given_a_file_that_is_being_written_then_its_half_is_not_taken_over() {
    let folder = Folder::with("a.yaml", two("a", "b"));
    let controller = Controller::on(folder.path());
    controller.has(&["a", "b"]);
    // A writer that paused may be read: where this machine paused for us, we try again.
    for attempt in 0.. {
        let before: Vec<&str> = if attempt == 0 { vec!["a", "b"] } else { vec!["a", "b", "c"] };
        let mut file = File::create(folder.path().join("a.yaml")).expect("open");
        let (mut last, mut widest) = (Instant::now(), Duration::ZERO);
        let mut seen = Vec::new();
        let mut write = |file: &mut File, text: &str| {
            file.write_all(text.as_bytes()).expect("written");
            file.flush().expect("written");
            widest = widest.max(last.elapsed());
            last = Instant::now();
        };
        write(&mut file, &service("a"));
        for step in 0..12 {
            // Other files come and go, which makes it look at the whole folder.
            folder.write(&format!("other-{step}.txt"), "");
            std::fs::remove_file(folder.path().join(format!("other-{step}.txt"))).expect("deleted");
            write(&mut file, "# more\n");
            seen.push(controller.names());
            write(&mut file, "# more\n");
            std::thread::sleep(Duration::from_millis(15));
        }
        write(&mut file, &format!("---\n{}", two("b", "c")));
        drop(file);
        controller.has(&["a", "b", "c"]);
        if widest < Duration::from_millis(60) {
            assert!(seen.iter().all(|names| *names == before), "{seen:?}");
            return;
        }
        assert!(attempt < 20, "this machine paused {widest:?} in each attempt");
    }
}

#[test]
fn given_a_writer_that_does_not_close_then_its_file_is_read_once_it_pauses() {
    let folder = Folder::new();
    let controller = Controller::on(folder.path());
    let mut file = File::create(folder.path().join("a.yaml")).expect("open");
    file.write_all(service("a").as_bytes()).expect("written");
    file.flush().expect("written");
    controller.has(&["a"]);
    drop(file);
}

#[test]
fn given_a_file_that_breaks_then_it_keeps_its_objects_and_is_reported_until_it_heals() {
    let folder = Folder::with("a.yaml", two("a", "b"));
    folder.write("other.yaml", service("other"));
    let controller = Controller::on(folder.path());
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
    }
    for (round, (bad, line, why)) in [
        (format!("{}---\nkind: [\n", service("a")).into_bytes(), "a.yaml:6", "not a YAML document"),
        (b"kind: Service\n\xff\xfe".to_vec(), "a.yaml:2", "not UTF-8 from here on"),
        (bomb.into_bytes(), "a.yaml:", "aliases repeat"),
        (b"[".repeat(100_000), "a.yaml:1", "not a YAML document"),
        (vec![b'#'; 20 << 20], "a.yaml", "larger than 16 MiB"),
    ]
    .into_iter()
    .enumerate()
    {
        folder.write("a.yaml", bad);
        controller.complains(&[line, why, "in force"]);
        assert_eq!(controller.names(), ["a", "b", "other"], "{why}");
        // Nothing else stops working.
        let other = format!("other-{round}");
        folder.write("other.yaml", service(&other));
        controller.has(&["a", "b", &other]);
        folder.write("a.yaml", two("a", "b"));
        controller.is_content();
        folder.write("other.yaml", service("other"));
        controller.has(&["a", "b", "other"]);
    }
}

#[test]
fn given_a_file_that_may_not_be_read_then_it_keeps_its_objects() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::with("a.yaml", service("a"));
    let controller = Controller::on(folder.path());
    let path = folder.path().join("a.yaml");
    let allow =
        |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("mode");
    allow(0o000);
    if std::fs::read(&path).is_ok() {
        eprintln!("SKIPPED: root may read every file");
        return;
    }
    folder.write("b.yaml", service("b"));
    folder.write("c.txt", "");
    std::fs::rename(folder.path().join("c.txt"), folder.path().join("d.txt")).expect("renamed");
    controller.complains(&["a.yaml", "cannot be read", "in force"]);
    controller.has(&["a", "b"]);
    allow(0o644);
    folder.write("e/f.txt", "");
    controller.is_content();
}

#[test]
fn r89_given_a_folder_that_vanishes_then_its_objects_stay_and_its_successor_is_watched() {
    let parent = Folder::with("source/a.yaml", service("a"));
    let source = parent.path().join("source");
    let controller = Controller::on(&source);
    std::fs::rename(&source, parent.path().join("away")).expect("moved");
    controller.complains(&["cannot be listed", "in force"]);
    assert_eq!(controller.names(), ["a"]);
    // What happens under the old folder is none of our business any more.
    parent.write("away/a.yaml", service("away"));
    parent.write("source/b.yaml", service("b"));
    controller.has(&["b"]);
    controller.is_content();
    parent.write("source/b.yaml", service("c"));
    controller.has(&["c"]);
}

#[test]
fn given_a_config_map_then_the_swap_of_its_link_is_seen() {
    let folder = Folder::with("..v1/rules.yaml", service("one"));
    symlink("..v1", folder.path().join("..data")).expect("a link");
    symlink("..data/rules.yaml", folder.path().join("rules.yaml")).expect("a link");
    let controller = Controller::on(folder.path());
    controller.has(&["one"]);
    for (version, name) in [("..v2", "two"), ("..v3", "three")] {
        folder.write(&format!("{version}/rules.yaml"), service(name));
        symlink(version, folder.path().join("..data_tmp")).expect("a link");
        std::fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data"))
            .expect("swapped");
        controller.has(&[name]);
    }
    controller.is_content();
}

#[test]
fn given_mesh_settings_then_they_are_watched_too_even_within_the_folder_by_another_name() {
    let parent = Folder::with("source/mesh.yaml", "connectTimeout: 3s\n");
    parent.write("source/a.yaml", service("a"));
    symlink("source", parent.path().join("link")).expect("a link");
    let settings = parent.path().join("link/mesh.yaml").display().to_string();
    let controller =
        Controller::start(&parent.path().join("source"), &["--mesh-config", &settings]);
    controller.has(&["a", "mesh"]);
    parent.write("source/a.yaml", service("b"));
    controller.has(&["b", "mesh"]);
    controller.is_content();
    parent.write("source/mesh.yaml", "connectTimeout: [\n");
    controller.complains(&["mesh.yaml:1", "not a YAML document", "in force"]);
    assert_eq!(controller.names(), ["b", "mesh"]);
    parent.write("source/mesh.yaml", "connectTimeout: soon\n");
    controller.is_content();
    let problem = super::until("a problem of the setting", || {
        let found = controller.configz();
        let objects = found["objects"].as_array()?;
        let mesh = objects.iter().find(|o| o["name"] == "mesh")?;
        Some(mesh["problems"][0].clone()).filter(|p| !p.is_null())
    });
    assert_eq!(
        (problem["field"].as_str(), problem["line"].as_u64()),
        (Some("spec.connectTimeout"), Some(1))
    );
    assert!(LIMIT > Duration::ZERO);
}
