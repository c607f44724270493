//! The folder of the built-in authority.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;
use std::time::SystemTime;

use identity::folder::{read_ca, write_ca};
use identity::{Authority, IdentityFolder};

use super::{authority, domain};

#[test]
fn given_an_empty_folder_then_the_key_is_closed_to_others() {
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("identity");
    let folder = IdentityFolder::open(&path).expect("opened");
    folder.self_signed(&domain(), SystemTime::now()).expect("made");
    let mode = |path: &std::path::Path| {
        std::fs::metadata(path).expect("there").permissions().mode() & 0o777
    };
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&folder.ca()), 0o700);
    assert_eq!(mode(&folder.ca().join("ca-key.pem")), 0o600);
    let left: Vec<_> = std::fs::read_dir(&path).expect("a folder").collect();
    assert_eq!(left.len(), 2, "ca, tokens: {left:?}");
}

#[test]
fn given_many_that_start_at_once_on_an_empty_folder_then_they_share_one_root() {
    for _ in 0..20 {
        let place = tempfile::tempdir().expect("a folder");
        let barrier = Barrier::new(8);
        let roots: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                let folder = IdentityFolder::open(place.path()).expect("opened");
                let files = folder.self_signed(&domain(), SystemTime::now()).expect("made");
                Authority::from_files(&files, SystemTime::now()).expect("whole");
                files.roots
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|t| t.join().expect("no panic")).collect()
        });
        assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn given_the_bundle_then_it_is_published_only_when_it_differs() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = IdentityFolder::open(place.path()).expect("opened");
    let (one, two) = (authority(), authority());
    assert!(folder.publish(one.roots()).expect("written"));
    assert!(!folder.publish(one.roots()).expect("equal"));
    assert!(folder.publish(two.roots()).expect("written"));
    let text = std::fs::read_to_string(place.path().join("root-cert.pem")).expect("there");
    assert_eq!(text, two.roots().to_pem());
}

#[test]
fn given_files_that_are_there_then_they_are_never_overwritten() {
    let place = tempfile::tempdir().expect("a folder");
    let files = Authority::self_signed(&domain(), SystemTime::now()).expect("made");
    write_ca(place.path(), &files).expect("written");
    let error = write_ca(place.path(), &files).expect_err("refused").to_string();
    assert!(error.contains("ca-key.pem") && error.contains("exists"), "{error}");
    let again = read_ca(place.path()).expect("there");
    assert_eq!(again.roots, files.roots);
    std::fs::remove_file(place.path().join("ca-key.pem")).expect("removed");
    let error = read_ca(place.path()).err().expect("refused").to_string();
    assert!(error.contains("reading") && error.contains("ca-key.pem"), "{error}");
}
