"""Every check of the chart, one line each; leaves with 1 when one found something.

    .ci/chart                    everything
    .ci/chart --selftest         breaks the chart on purpose, and sees each check find it
    .ci/chart --examples 2000    more generated values; --seed N for others
"""

import argparse
import pathlib
import subprocess
import sys
import time

import alerts
import matrix
import policy
import program
import properties
import schemas
import semantics
import values_docs
from engine import NEWEST, OLDEST, ROOT, Chart, Refused, reason, title

# Generated sets of values; the checks' own check has as many.
EXAMPLES = 250


def lint(chart):
    for version in (OLDEST, NEWEST):
        for name, values in (("default", {}), *matrix.cases()):
            for line in chart.lint(values, version):
                yield f"{name} in {version}: {line}"


def metaschema(chart):
    yield from _says("--check-metaschema", str(chart.path / "values.schema.json"))


def compose(chart):
    yield from _says("--builtin-schema", "vendor.compose-spec", str(ROOT / "deploy" / "compose.yaml"))


def _says(*words):
    """What check-jsonschema says when it does not agree."""
    command = [str(pathlib.Path(sys.executable).with_name("check-jsonschema")), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield (done.stdout + done.stderr).strip()


def fits(release):
    """What is wrong with one release; its meaning only where its form is right."""
    return schemas.wrongs(release.objects) or semantics.wrongs(release)


def rendered(chart):
    """Every case renders, as an install and as an upgrade, to objects that the API takes and that fit."""
    for name, values in matrix.cases():
        for is_upgrade in (False, True):
            try:
                release = chart.render(values, is_upgrade=is_upgrade)
            except Refused as why:
                yield f"{name}: {reason(why)}"
                continue
            for line in fits(release):
                yield f"{name}: {line}"
            if not release.notes.strip() or "<no value>" in release.notes + release.text():
                yield f"{name}: NOTES.txt is empty, or something has no value"


def immutable(chart):
    """No change of values asks for a change of what cannot be changed: Jobs, and whom a Deployment selects."""
    seen = {}
    always = {"jobs": {"useHelmHooks": False}, "migrations": {"mode": "job"}, "agents": {"toml": matrix.AGENTS}}
    for name, values in matrix.FEATURES.items():
        release = chart.render(matrix.over(matrix.SECRET, values, always))
        for thing in release.of("Job", "Deployment"):
            fixed = thing["spec"] if thing["kind"] == "Job" else thing["spec"]["selector"]
            first, before = seen.setdefault((thing["kind"], thing["metadata"]["name"]), (name, fixed))
            if before != fixed:
                yield f"{title(thing)} differs between `{first}` and `{name}`, and cannot be changed"


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--examples", type=int, default=EXAMPLES)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--selftest", action="store_true")
    args = flags.parse_args()
    if args.selftest:
        import selftest

        found, missed = selftest.run()
        report(f"{found} breakages were found", missed, time.monotonic())
        sys.exit(bool(missed))
    chart, started, failed = Chart(), time.monotonic(), 0
    count = len(list(matrix.cases()))
    for what, findings in (
        (f"lint, {count} value sets, Kubernetes {OLDEST} and {NEWEST}", lint(chart)),
        ("values.schema.json is a schema", metaschema(chart)),
        ("deploy/compose.yaml is what Compose takes", compose(chart)),
        (f"{count} value sets render, fit the API of {OLDEST} and {NEWEST}, and each other", rendered(chart)),
        (f"{len(matrix.REFUSED)} value sets are refused", matrix.refusals(chart)),
        ("no upgrade changes what cannot be changed", immutable(chart)),
        ("every value is tried", matrix.untried(chart)),
        ("values.yaml, its schema and the README say the same", values_docs.wrongs(chart)),
        ("the chart and the program say the same", program.wrongs(chart)),
    ):
        failed += report(what, list(findings), started)
    counts, findings = properties.run(chart, fits, args.examples, args.seed)
    what = f"{counts['rendered']} generated value sets render and fit, {counts['refused']} more are refused (seed {args.seed})"
    failed += report(what, findings, started)
    passed, excused, findings = policy.run(chart)
    failed += report(f"policy: {passed} passed, {excused} with a reason, {len(findings)} without", findings, started)
    failed += report(alerts.what(), alerts.wrongs(chart), started)
    sys.exit(bool(failed))


def report(what, findings, started):
    print(f"{'FAULT' if findings else 'ok':<5} {what} ({time.monotonic() - started:.0f} s)", flush=True)
    for line in findings[:20]:
        print(f"      {line[:2000]}")
    if len(findings) > 20:
        print(f"      and {len(findings) - 20} more")
    return bool(findings)


if __name__ == "__main__":
    main()
