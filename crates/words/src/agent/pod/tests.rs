//! Which templates are accepted, and which field a refusal names.

use super::*;

fn refused(fields: &str) -> Option<String> {
    let template: PodTemplate =
        serde_json::from_str(&format!(r#"{{"image":"registry.example/agent:1"{fields}}}"#)).unwrap();
    template.validate(&BTreeMap::new()).err().map(|why| why.field.to_owned())
}

#[test]
fn a_template_that_a_cluster_would_take_is_taken() {
    for fields in [
        "",
        r#","command":[],"image_pull_policy":"Always","image_pull_secrets":["registry"]"#,
        r#","env":{"MODEL_KEY":{"secret":"model.keys","key":"api_key.v2","optional":true}}"#,
        r#","resources":{"requests":{"cpu":"500m"},"limits":{"memory":"1.5Gi","nvidia.com/gpu":"1"}}"#,
        r#","node_selector":{"kubernetes.io/arch":"arm64"},"tolerations":[{"key":"gpu","effect":"NoSchedule"}]"#,
        r#","labels":{"team":"x"},"annotations":{"example.com/note":"any text at all"}"#,
        r#","service_account":"agents","mount_service_account_token":true,"run_as_user":1000"#,
        r#","wait_for_node":"5m","lifetime":"1h","stop_grace":"0s","writable_root":true"#,
    ] {
        assert_eq!(refused(fields), None, "{fields}");
    }
}

#[test]
fn a_template_that_a_cluster_would_refuse_is_refused_by_the_field() {
    for (fields, field) in [
        (r#","image":"two words""#, "pod.image"),
        (r#","command":[""]"#, "pod.command"),
        (r#","image_pull_secrets":["Upper"]"#, "pod.image_pull_secrets"),
        (r#","env":{"A B":{"secret":"s","key":"k"}}"#, "pod.env"),
        (r#","env":{"A":{"secret":"s/t","key":"k"}}"#, "pod.env"),
        (r#","env":{"A":{"secret":"s","key":"../k"}}"#, "pod.env"),
        (r#","env":{"LASTWORD_URL":{"secret":"s","key":"k"}}"#, "env"),
        (r#","resources":{"limits":{"memory":"1 GiB"}}"#, "pod.resources"),
        (r#","resources":{"limits":{"memory":"-1Gi"}}"#, "pod.resources"),
        (r#","resources":{"requests":{"c p u":"1"}}"#, "pod.resources"),
        (r#","node_selector":{"a":"b c"}"#, "pod.node_selector"),
        (r#","tolerations":[{"effect":"Never"}]"#, "pod.tolerations"),
        (r#","tolerations":[{"value":"x"}]"#, "pod.tolerations"),
        (r#","labels":{"lastword/worker":"x"}"#, "pod.labels"),
        (r#","labels":{"app.kubernetes.io/managed-by":"x"}"#, "pod.labels"),
        (r#","annotations":{"bad name":"x"}"#, "pod.annotations"),
        (r#","service_account":"-a""#, "pod.service_account"),
        (r#","run_as_user":0"#, "pod.run_as_user"),
        (r#","lifetime":"1s""#, "pod.lifetime"),
        (r#","stop_grace":"2h""#, "pod.stop_grace"),
        (r#","wait_for_node":"2h""#, "pod.wait_for_node"),
    ] {
        let is_whole = fields.starts_with(r#","image":"#);
        let template =
            if is_whole { format!("{{{}}}", &fields[1..]) } else { format!(r#"{{"image":"a"{fields}}}"#) };
        let template: PodTemplate = serde_json::from_str(&template).unwrap();
        assert_eq!(template.validate(&BTreeMap::new()).map_err(|why| why.field), Err(field), "{fields}");
    }
}

#[test]
fn a_template_has_no_field_that_makes_it_more_than_a_worker() {
    for field in ["host_network", "volumes", "containers", "privileged", "hostPID"] {
        let text = format!(r#"{{"image":"a","{field}":true}}"#);
        assert!(serde_json::from_str::<PodTemplate>(&text).is_err(), "{field}");
    }
}

#[test]
fn one_variable_has_one_source() {
    let plain = BTreeMap::from([("KEY".to_owned(), "value".to_owned())]);
    let mut template = serde_json::from_str::<PodTemplate>(r#"{"image":"a"}"#).unwrap();
    template.env.insert("KEY".to_owned(), SecretKey { secret: "s".into(), key: "k".into(), optional: false });
    assert_eq!(template.validate(&plain).map_err(|why| why.field), Err("pod.env"));
}
