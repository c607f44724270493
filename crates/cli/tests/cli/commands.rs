//! `heddle bootstrap` and `heddle status`.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::Value;

use super::{Folder, NODE};

fn bootstrap(more: &[&str]) -> super::Ran {
    let mut args = vec!["bootstrap", "--node", NODE];
    args.extend(more);
    Folder::new().run(&args)
}

#[test]
fn given_a_node_then_the_bootstrap_is_json_with_its_id_and_the_address() {
    let ran = bootstrap(&["--xds-address", "127.0.0.1:12345", "--labels", "app=gw,version=v1"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let found: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(found["node"]["id"], NODE);
    assert_eq!(found["node"]["metadata"]["LABELS"]["version"], "v1");
    assert_eq!(found["node"]["metadata"]["NAMESPACE"], "edge");
    assert!(found.to_string().contains("12345"), "{found}");
    assert!(found.to_string().contains("DELTA_GRPC"), "{found}");
    let sotw = bootstrap(&["--sotw", "--xds-address", "[::1]:15010"]).out;
    assert!(!sotw.contains("DELTA_GRPC") && sotw.contains("\"::1\""), "{sotw}");
}

#[test]
fn given_an_address_that_is_none_then_it_is_said() {
    for address in ["localhost", "localhost:", "localhost:http", ":15010", "localhost:0", "a:70000"]
    {
        bootstrap(&["--xds-address", address]).says(1, &["--xds-address takes HOST:PORT", address]);
    }
    Folder::new().run(&["bootstrap", "--node", "x"]).says(1, &["--node", "four parts"]);
}

#[test]
fn given_no_controller_then_status_says_where_it_looked_and_what_to_do() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = closed.local_addr().expect("an address").to_string();
    drop(closed);
    let ran = Folder::new().run(&["status", "--admin", &address]);
    ran.says(1, &["no controller answers at", &address, "--admin", "refused"]);
    assert_eq!(ran.out, "");
    Folder::new().run(&["status", "--admin", "nonsense"]).says(1, &["nonsense"]);
}

#[test]
fn given_a_file_then_the_bootstrap_is_written_to_it() {
    let folder = Folder::new();
    let ran = folder.run(&["bootstrap", "--node", NODE, "--output", "envoy.json"]);
    assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (Some(0), "", ""));
    let text = std::fs::read_to_string(folder.path().join("envoy.json")).expect("written");
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON")["node"]["id"], NODE);
    folder
        .run(&["bootstrap", "--node", NODE, "--output", "no/where.json"])
        .says(1, &["--output no/where.json"]);
}

#[test]
fn given_nothing_then_install_prints_namespace_crds_and_the_chart() {
    let ran = Folder::new().run(&["install"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let kinds: Vec<&str> = ran.out.lines().filter_map(|l| l.strip_prefix("kind: ")).collect();
    assert_eq!(kinds[0], "Namespace");
    for kind in ["CustomResourceDefinition", "ClusterRole", "Deployment", "ConfigMap"] {
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
    }
    let without = Folder::new().run(&["install", "--no-crds"]).out;
    assert!(!without.contains("CustomResourceDefinition") && without.contains("ClusterRole"));
}

#[test]
fn given_no_kubeconfig_then_status_of_a_cluster_says_what_it_needs() {
    let folder = Folder::new();
    let mut command = folder.command(&["status", "--kubernetes"]);
    command.env("KUBECONFIG", folder.path().join("nowhere")).env_remove("KUBERNETES_SERVICE_HOST");
    let ran = super::Ran::from(command.output().expect("it runs"));
    ran.says(1, &["--kubernetes needs a kubeconfig", "KUBECONFIG"]);
    folder.run(&["status", "--namespace", "x"]).says(2, &["--kubernetes"]);
}

#[test]
fn given_a_url_then_wait_ends_well_only_when_it_answers() {
    let folder = Folder::new();
    let good = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(folder.run(&["wait", &format!("http://{good}/ready")]).code, Some(0));
    let bad = answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nwait");
    let url = format!("http://{bad}/ready");
    folder.run(&["wait", &url, "--timeout", "0"]).says(1, &[&url, "not ready", "503", "wait"]);
    folder.run(&["wait", "localhost:80"]).says(1, &["http://HOST:PORT/PATH"]);
}

/// Answer one request on a port of its own.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(answer.as_bytes());
    });
    address
}

#[test]
fn given_something_else_on_the_port_then_status_says_so() {
    for (answer, says) in [
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope", "404"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope", "reading what"),
        ("SSH-2.0-OpenSSH_9.6\r\n", ""),
        ("", ""),
    ] {
        let address = answering(answer);
        Folder::new().run(&["status", "--admin", &address]).says(1, &[&address, says]);
    }
}

#[test]
fn given_an_answer_then_status_shows_each_proxy_and_its_types() {
    let body = r#"[{"proxy":"router~x","protocol":"delta","types":{"CDS":{"state":"SYNCED"},"LDS":{"state":"ERROR","error":"bad listener"}}}]"#;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let ran =
        Folder::new().run(&["status", "--admin", &answering(Box::leak(answer.into_boxed_str()))]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let row = ran.out.lines().nth(1).expect("a row");
    for text in ["router~x", "delta", "SYNCED", "LDS: bad listener"] {
        assert!(row.contains(text), "{}", ran.out);
    }
}

#[test]
fn given_a_shell_then_completion_prints_a_script_that_completes_commands() {
    for (shell, says) in [
        ("bash", "complete -F _heddle"),
        ("zsh", "#compdef heddle"),
        ("fish", "complete -c heddle"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let ran = Folder::new().run(&["completion", shell]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{shell}");
        for text in [says, "validate", "mesh-config"] {
            assert!(ran.out.contains(text), "{shell}: {text} is not in the script");
        }
    }
    Folder::new().run(&["completion", "dos"]).says(2, &["dos", "bash", "zsh"]);
}

#[test]
fn given_the_script_for_bash_when_a_word_is_begun_then_bash_completes_it() {
    let complete = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let script = format!(
            "source <(\"$HEDDLE\" completion bash); COMP_WORDS=({line}); COMP_CWORD={}; \
             _heddle heddle '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            words.len() - 1
        );
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", &script]).env("HEDDLE", env!("CARGO_BIN_EXE_heddle"));
        let ran = super::Ran::from(bash.output().expect("bash runs"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{line}");
        ran.out.trim().to_owned()
    };
    assert_eq!(complete("heddle val"), "validate");
    assert_eq!(complete("heddle validate --mesh"), "--mesh-config");
    assert!(complete("heddle config gw ro").contains("routes"));
}
