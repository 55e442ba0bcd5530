"""The alerts, tried on made-up series by Prometheus' own tool where this machine has it.

Owns the way from the chart's alerts to a file of rules. What they must say is in alerts_test.yaml.
"""

import pathlib
import shutil
import subprocess
import tempfile

import yaml

import matrix

TESTS = pathlib.Path(__file__).with_name("alerts_test.yaml")
PROMTOOL = shutil.which("promtool")


def what():
    return "the alerts fire when they should" if PROMTOOL else "the alerts were NOT tried: promtool is not here"


def wrongs(chart):
    if not PROMTOOL:
        return []
    values = matrix.over(matrix.SECRET, {"prometheusRule": {"enabled": True}})
    rule = chart.render(values, name="lastword", namespace="prod").of("PrometheusRule")[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
        shutil.copy(TESTS, folder / "test.yaml")
        done = subprocess.run([PROMTOOL, "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()
