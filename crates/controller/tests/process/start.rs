//! Start and end.

use std::net::TcpListener;
use std::time::Instant;

use super::{Controller, Folder, Guard, MESH, service, until};

/// Run until it ends by itself: exit code and log.
fn ends(args: &[&str]) -> (Option<i32>, String) {
    let mut guard = Guard::spawn(args);
    let code = guard.wait().code();
    (code, guard.log())
}

#[track_caller]
fn refuses(args: &[&str], code: i32, texts: &[&str]) {
    let (found, log) = ends(args);
    assert_eq!(found, Some(code), "{log}");
    for text in texts {
        assert!(log.contains(text), "{text:?} is not in:\n{log}");
    }
}

#[test]
fn given_a_source_that_is_none_then_it_ends_with_path_flag_and_advice() {
    let folder = Folder::with("a.yaml", service("a"));
    let file = folder.path().join("a.yaml").display().to_string();
    let nowhere = folder.path().join("nowhere").display().to_string();
    let says = format!("--source directory={nowhere} does not exist");
    refuses(&[&format!("--source=directory={nowhere}")], 1, &[&says, "create the folder"]);
    refuses(
        &[&format!("--source=directory={file}")],
        1,
        &[&file, "--source", "is a file", "folder"],
    );
    for source in ["kubernetes=x", "directory", "directory=", "folder=/x", ""] {
        refuses(&["--source", source], 1, &["--source", "directory=PATH"]);
    }
    refuses(&[], 2, &["--source"]);
    let file = format!("--mesh-config={file}");
    refuses(&["--source=kubernetes", &file], 1, &["--mesh-config", "ConfigMap heddle", "key mesh"]);
}

#[test]
fn given_mesh_settings_that_are_no_file_then_it_ends_with_path_and_flag() {
    let folder = Folder::with("a.yaml", service("a"));
    let source = format!("--source=directory={}", folder.path().display());
    for name in ["nowhere.yaml", "", "no/where.yaml"] {
        let path = folder.path().join(name).display().to_string();
        refuses(
            &[&source, "--mesh-config", &path],
            1,
            &["--mesh-config", path.trim_end_matches('/')],
        );
    }
}

#[test]
fn given_a_port_that_is_taken_then_it_ends_with_address_and_flag() {
    let folder = Folder::with("a.yaml", service("a"));
    let source = format!("--source=directory={}", folder.path().display());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for flag in ["--xds-address", "--http-address", "--admin-address"] {
        refuses(&[&source, &format!("{flag}={address}")], 1, &[&address, flag, "in use"]);
    }
}

#[test]
fn given_settings_that_are_wrong_then_it_ends_and_names_the_flag() {
    let folder = Folder::with("a.yaml", service("a"));
    let source = format!("--source=directory={}", folder.path().display());
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8080"] {
        let flag = format!("--admin-address={address}");
        refuses(&[&source, &flag], 1, &["--admin-address", "not on loopback"]);
    }
    refuses(&[&source, "--xds-address=localhost"], 2, &["--xds-address"]);
    refuses(&[&source, "--log-level=verbose"], 1, &["verbose", "debug"]);
    refuses(&[&source, "--log-format=xml"], 2, &["--log-format"]);
}

#[test]
fn given_ten_megabytes_then_it_is_not_ready_before_they_are_read_and_then_serves() {
    let filler = "x".repeat(7_000);
    let one = |i: usize| {
        format!(
            "{}---\n",
            service(&format!("s{i}"))
                .replace("}\nspec", &format!(", labels: {{filler: {filler}}}}}\nspec"))
        )
    };
    let text: String = (0..1_400).map(one).collect();
    assert!(text.len() > 9 << 20, "{}", text.len());
    let folder = Folder::with("a.yaml", text);
    let controller = Controller::start(folder.path(), &[]);
    let (status, body) = controller.public("/readyz");
    assert_eq!((status, body.contains("not synced")), (503, true), "{body}");
    assert_eq!(controller.public("/healthz"), (200, "ok\n".to_owned()), "alive before it is ready");
    let started = Instant::now();
    until("readiness", || (controller.public("/readyz").0 == 200).then_some(()));
    eprintln!("10 MB read in {:?}", started.elapsed());
    assert_eq!(controller.names().len(), 1_400);
    controller.is_content();
}

#[test]
fn given_a_signal_then_it_ends_soon_with_0() {
    for signal in ["TERM", "INT"] {
        let folder = Folder::with("mesh.yaml", MESH);
        let mut controller = Controller::on(folder.path());
        let started = Instant::now();
        controller.guard.signal(signal);
        assert_eq!(controller.guard.wait().code(), Some(0), "{signal}");
        assert!(started.elapsed().as_secs() < 3, "{signal} took {:?}", started.elapsed());
    }
}
