//! Variables that Kubernetes sets for Services whose names begin with `lastword`.

use std::process::Command;

use serde_json::json;

use crate::support::{Cluster, Plan};

/// Those of the Services `lastword`, `lastword-metrics` and `lastword-anything`.
fn of_services() -> Vec<(String, String)> {
    let services =
        [("LASTWORD", "HTTP", 80), ("LASTWORD_METRICS", "METRICS", 8081), ("LASTWORD_ANYTHING", "X", 9090)];
    let of = |(service, name, port): (&str, &str, u16)| {
        let one = format!("{service}_PORT_{port}_TCP");
        [
            (format!("{service}_SERVICE_HOST"), "10.0.0.1".to_owned()),
            (format!("{service}_SERVICE_PORT"), port.to_string()),
            (format!("{service}_SERVICE_PORT_{name}"), port.to_string()),
            (format!("{service}_PORT"), format!("tcp://10.0.0.1:{port}")),
            (one.clone(), format!("tcp://10.0.0.1:{port}")),
            (format!("{one}_PROTO"), "tcp".to_owned()),
            (format!("{one}_PORT"), port.to_string()),
            (format!("{one}_ADDR"), "10.0.0.1".to_owned()),
        ]
    };
    services.into_iter().flat_map(of).collect()
}

/// Whether a command ends well, and what it says on stderr.
fn end_of(mut command: Command) -> (bool, String) {
    let done = command.output().unwrap();
    (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_that_kubernetes_makes_for_services_are_no_settings_and_a_misspelt_setting_is_refused() {
    let cluster = Cluster::with(Plan { replicas: 1, env: of_services(), ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post_on(0, "demo", "hello").await;
    assert_eq!(cluster.watch_all(&turn).await.last().unwrap().kind, "completed");

    for subcommand in ["doctor", "verify"] {
        let (is_well, said) = end_of(cluster.command(subcommand));
        assert!(is_well && !said.contains("LASTWORD_"), "{subcommand}: {said}");
    }
    for (name, value) in
        [("LASTWORD_TURN_MAX", "3"), ("LASTWORD_PORT", "8080"), ("LASTWORD_SERVICE_HOST", "here")]
    {
        for subcommand in ["serve", "doctor", "verify"] {
            let mut command = cluster.command(subcommand);
            command.env(name, value);
            let (is_well, said) = end_of(command);
            assert!(!is_well && said.contains(&format!("{name}: unknown")), "{subcommand}: {said}");
        }
    }
}
