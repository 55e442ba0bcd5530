//! Statuses as kubelets and schedulers write them, and what each must mean.

use serde_json::json;

use super::*;

fn seen(status: serde_json::Value) -> PodStanding {
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [
            {"name": "mesh", "image": "m"},
            {"name": "worker", "image": "a", "resources": {"limits": {"memory": "512Mi"}}},
        ]},
        "status": status,
    });
    standing(&serde_json::from_value(pod).unwrap())
}

fn worker_in(state: serde_json::Value) -> serde_json::Value {
    json!({"phase": "Pending", "containerStatuses": [
        {"name": "mesh", "image": "m", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
        {"name": "worker", "image": "a", "imageID": "", "ready": false, "restartCount": 0, "state": state},
    ]})
}

fn cause(standing: PodStanding) -> &'static str {
    match standing {
        PodStanding::Ended(ending) => ending.cause.as_str(),
        other => panic!("not ended: {other:?}"),
    }
}

#[test]
fn a_pod_on_its_way_is_no_failure() {
    for status in [
        json!({}),
        json!({"phase": "Pending"}),
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}),
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
        worker_in(json!({"waiting": {"reason": "ContainerCreating"}})),
        worker_in(json!({"waiting": {"reason": "PodInitializing"}})),
        worker_in(json!({"waiting": {"reason": "SomethingNew"}})),
    ] {
        assert_eq!(seen(status.clone()), PodStanding::Waiting(Wait::Start), "{status}");
    }
    assert_eq!(seen(worker_in(json!({"running": {}}))), PodStanding::Running);
}

#[test]
fn what_keeps_a_worker_from_starting_is_told_by_its_cause() {
    for (reason, wanted) in [
        ("ErrImagePull", "image"),
        ("ImagePullBackOff", "image"),
        ("InvalidImageName", "image"),
        ("ErrImageNeverPull", "image"),
        ("CreateContainerConfigError", "config"),
        ("CreateContainerError", "program"),
        ("RunContainerError", "program"),
    ] {
        let status =
            worker_in(json!({"waiting": {"reason": reason, "message": "registry.example/a: not found"}}));
        let PodStanding::Ended(ending) = seen(status) else { panic!("{reason} ends nothing") };
        assert_eq!(ending.cause.as_str(), wanted, "{reason}");
        assert_eq!(ending.detail, format!("{reason}: registry.example/a: not found"));
        assert!(!ending.cause.to_string().contains("registry"), "a client reads no names of registries");
    }
}

#[test]
fn no_room_is_a_wait_that_says_why() {
    let message = "0/3 nodes are available: 3 Insufficient memory.";
    let status = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]});
    let PodStanding::Waiting(Wait::Node(ending)) = seen(status) else { panic!("no wait for a node") };
    assert_eq!((ending.cause, ending.detail), (Cause::Unschedulable, format!("Unschedulable: {message}")));
}

#[test]
fn an_end_of_the_worker_is_told_with_its_code() {
    let ended = |end: serde_json::Value| seen(worker_in(json!({"terminated": end})));
    let text = |standing| match standing {
        PodStanding::Ended(ending) => ending.cause.to_string(),
        other => panic!("not ended: {other:?}"),
    };
    assert_eq!(text(ended(json!({"exitCode": 3, "reason": "Error"}))), "exit code 3");
    assert_eq!(text(ended(json!({"exitCode": 0, "reason": "Completed"}))), "exit code 0");
    assert_eq!(text(ended(json!({"exitCode": 137, "reason": "Error"}))), "exit code 137, signal SIGKILL");
    assert_eq!(text(ended(json!({"exitCode": 255, "reason": "Error"}))), "exit code 255");
    assert_eq!(text(ended(json!({"exitCode": 137, "reason": "OOMKilled"}))), "out of memory, limit 512Mi");
    assert_eq!(cause(ended(json!({"exitCode": 128, "reason": "StartError"}))), "program");
    assert_eq!(cause(ended(json!({"exitCode": 137, "reason": "ContainerStatusUnknown"}))), "node_lost");
}

#[test]
fn what_ended_the_whole_pod_is_named_before_the_exit_code() {
    for (reason, wanted) in [
        ("Evicted", "evicted"),
        ("DeadlineExceeded", "deadline"),
        ("NodeLost", "node_lost"),
        ("Preempting", "preempted"),
        ("Terminated", "node_stopped"),
        ("OutOfmemory", "refused"),
        ("UnexpectedAdmissionError", "refused"),
    ] {
        let mut status = worker_in(json!({"terminated": {"exitCode": 137, "reason": "Error"}}));
        status["phase"] = json!("Failed");
        status["reason"] = json!(reason);
        assert_eq!(cause(seen(status)), wanted, "{reason}");
    }
    let mut status = worker_in(json!({"terminated": {"exitCode": 143, "reason": "Error"}}));
    status["conditions"] =
        json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
    assert_eq!(cause(seen(status)), "preempted");
}

#[test]
fn a_lost_node_ends_the_worker_though_nobody_saw_it_end() {
    assert_eq!(cause(seen(json!({"phase": "Unknown"}))), "node_lost");
    assert_eq!(cause(seen(json!({"phase": "Failed"}))), "refused");
}

#[test]
fn a_pod_that_is_told_to_leave_may_finish_first() {
    let leaving = |status: serde_json::Value| {
        let pod =
            json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": status});
        standing(&serde_json::from_value(pod).unwrap())
    };
    let PodStanding::Leaving(ending) = leaving(worker_in(json!({"running": {}}))) else {
        panic!("not leaving")
    };
    assert_eq!(ending.cause, Cause::Deleted);
    let mut drained = worker_in(json!({"running": {}}));
    drained["conditions"] =
        json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]);
    let PodStanding::Leaving(ending) = leaving(drained) else { panic!("not leaving") };
    assert_eq!(ending.cause, Cause::NodeStopped);
    assert_eq!(cause(leaving(worker_in(json!({"terminated": {"exitCode": 143}})))), "deleted");
    assert_eq!(cause(leaving(worker_in(json!({"terminated": {"exitCode": 3}})))), "exit");
}

#[test]
fn a_container_of_a_mesh_that_ends_is_not_the_worker() {
    let mut status = worker_in(json!({"running": {}}));
    status["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 1}});
    assert_eq!(seen(status), PodStanding::Running);
    let init = json!([{"name": "init", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 2}}}]);
    assert_eq!(cause(seen(json!({"phase": "Pending", "initContainerStatuses": init}))), "config");
}
