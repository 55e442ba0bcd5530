"""The policy scan: nothing that it finds stays without a reason in policy_exceptions.yaml.

Owns which releases are scanned: the default, everything of the chart's own with both kinds of in-cluster
Postgres, and the Kubernetes runtime. What users add (containers, contexts) is theirs.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import yaml

import matrix

EXCEPTIONS = pathlib.Path(__file__).with_name("policy_exceptions.yaml")
# Features in which the user, not the chart, decides about containers.
NOT_OURS = {"extras", "openshift", "resources", "digest", "no replica", "one replica", "cpu", "queue", "short drain",
            "no network policy", "no pdb", "recreate", "no spread", "no test", "settings left to the program",
            "kubernetes runtime elsewhere", "kubernetes runtime"}


def releases():
    """(name, values) of what is scanned."""
    everything = matrix.over(*[values for name, values in matrix.FEATURES.items() if name not in NOT_OURS])
    yield "default", matrix.SECRET
    yield "trial", matrix.over(everything, matrix.DATABASES["trial"], matrix.FEATURES["cpu"])
    yield "cnpg", matrix.over(everything, matrix.DATABASES["cloudnative-pg"], matrix.FEATURES["queue"])
    yield "runtime", matrix.over(matrix.SECRET, matrix.FEATURES["kubernetes runtime"])


def run(chart, exceptions=EXCEPTIONS):
    """(passed, excused, findings): how many checks passed, how many failures have a reason, the rest."""
    exceptions = yaml.safe_load(exceptions.read_text()) if isinstance(exceptions, pathlib.Path) else exceptions
    passed, excused, findings, used = 0, 0, [], set()
    with tempfile.TemporaryDirectory() as folder:
        for name, values in releases():
            (pathlib.Path(folder) / f"{name}.yaml").write_text(chart.render(values).text())
        for result in _scan(folder):
            passed += len(result["results"]["passed_checks"])
            for failure in result["results"]["failed_checks"]:
                release = pathlib.Path(failure["file_path"]).stem
                number = _excuse(failure, release, exceptions)
                if number is None:
                    findings.append(f"{failure['check_id']} {failure['check_name']}: {failure['resource']} ({release})")
                else:
                    used.add(number)
                    excused += 1
            findings += [f"cannot be read: {error}" for error in result["results"]["parsing_errors"]]
    if passed == 0:
        findings.append("the scan looked at nothing")
    findings += [f"the exception for {e['check']} is not needed any more" for n, e in enumerate(exceptions) if n not in used]
    return passed, excused, findings


def _scan(folder):
    command = [str(pathlib.Path(sys.executable).with_name("checkov")), "-d", folder, "--framework", "kubernetes",
               "--skip-download", "--compact", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        sys.exit(f"checkov did not answer: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return report if isinstance(report, list) else [report]


def _excuse(failure, release, exceptions):
    kind = failure["resource"].split(".")[0]
    for number, exception in enumerate(exceptions):
        if exception["check"] != failure["check_id"] or kind not in exception["kinds"]:
            continue
        if exception.get("only_with") == "kubernetesRuntime.enabled" and release != "runtime":
            continue
        return number
    return None
