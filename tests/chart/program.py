"""The chart against the program in this repository: what one says of the other is so.

Owns the reading of the few places in `src/` that the chart speaks of. Plain text search: when one of
them moves, this says that it found nothing, which is a finding.
"""

import json
import re

import yaml

import matrix
import semantics
from engine import ROOT, pod_specs

# Keys that the chart gives by other values, and those that it does not offer.
BY_OTHER_VALUES = {"database_url", "listener_database_url", "database_url_file", "listener_database_url_file", "listen", "url", "data_dir", "client_tokens", "operator_tokens",
                   "drain", "kubernetes", "kubernetes_namespace", "kubernetes_fleet", "kubernetes_owner",
                   "kubernetes_gateway_url"}
# Workers' tokens come by `extraEnv`. Without capabilities nobody becomes another user, or makes a namespace or a
# control group.
NOT_OFFERED = {"worker_tokens", "insecure", "dev", "worker_user", "worker_namespaces", "worker_cgroups"}
ALERTS, DASHBOARDS, RUNBOOKS = "alerts", "dashboards", ROOT / "docs" / "runbooks"


def wrongs(chart):
    for rule in (settings, variables, versions, clocks, metrics, runbooks, tables):
        for line in rule(chart):
            yield f"{rule.__name__}: {line}"


def source(path):
    return (ROOT / path).read_text()


def keys():
    """The configuration's keys: name → shape."""
    text = source("src/config/settings.rs")
    return dict(re.findall(r"^    (\w+): .* => .*(TEXT|NUMBER|FLAG|LIST)", text[text.index("settings! {\n"):], re.M))


def settings(chart):
    """`settings` has the program's keys, all of them, with its defaults."""
    known = keys()
    given = yaml.safe_load((chart.path / "values.yaml").read_text())["settings"]
    for name in sorted(set(given) ^ (set(known) - BY_OTHER_VALUES - NOT_OFFERED)):
        yield f"{name} is a key of only one of both"
    defaults = source("src/config/settings.rs")
    for name, value in given.items():
        default = re.search(rf"^    {name}: \w+ = ([0-9_]+) =>", defaults, re.M)
        if default and int(default.group(1)) != value:
            yield f"{name} is {value} here and {default.group(1)} there"
        if isinstance(value, int) and not default:
            yield f"no default of {name} was found in src/config/settings.rs"


def variables(chart):
    """Each LASTWORD_ variable is known: the program refuses to start with any other."""
    text = source("src/config/keys.rs")
    others = set(re.findall(r'"(LASTWORD_\w+)"', text[text.index("const OTHERS"):text.index("];", text.index("const OTHERS"))]))
    names = {"LASTWORD_ADVERTISED_URL" if key == "url" else f"LASTWORD_{key.upper()}" for key in keys()}
    known = others | names | {name + "_FILE" for name in names if re.search("_URL$|_TOKENS$", name)}
    if not others or not names:
        yield "no keys were found in src/config/keys.rs"
    unknown = set()
    for _, values in matrix.cases():
        for owner, _, spec in pod_specs(chart.render(values).objects):
            for container in spec["containers"]:
                for variable in container.get("env", ()):
                    if variable["name"].startswith("LASTWORD_") and variable["name"] not in known:
                        unknown.add(f"{owner['kind']}: {variable['name']}")
    yield from sorted(unknown)


def versions(chart):
    """The chart's program is this one."""
    version = re.search(r'^version = "(.*)"', source("Cargo.toml"), re.M).group(1)
    if chart.loaded.metadata["appVersion"] != version:
        yield f"appVersion is {chart.loaded.metadata['appVersion']}, Cargo.toml has {version}"


def clocks(chart):
    """The margin of the grace is what the program takes after its drain."""
    found = [re.search(rf"const {name}: Duration = Duration::from_secs\((\d+)\)", source(path))
             for path, name in (("src/engine/drain.rs", "CLOSE_MAX"), ("src/cli/serve.rs", "END_MAX"),
                                ("src/telemetry.rs", "FLUSH_MAX"))]
    if not all(found):
        yield "the program's last clocks were not found"
        return
    needed = sum(int(match.group(1)) for match in found)
    if needed != semantics.AFTER_DRAIN_SECONDS:
        yield f"the program takes {needed} s after its drain, the checks say {semantics.AFTER_DRAIN_SECONDS}"
    least = chart.loaded.schema["properties"]["drain"]["properties"]["marginSeconds"]["minimum"]
    if least < needed:
        yield f"drain.marginSeconds may be {least}, and the program takes {needed} s"


def expressions(chart):
    """(where, expression) of alerts and dashboards."""
    for path in sorted((chart.path / ALERTS).glob("*.yaml")):
        yield path.name, yaml.safe_load(path.read_text())["expr"]
    for path in sorted((chart.path / DASHBOARDS).glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.name}, {panel['title']}", target["expr"]


def metrics(chart):
    """Alerts and dashboards ask for metrics that there are, by labels and values that they have."""
    text = source("src/telemetry/metrics.rs") + source("crates/host/src/owner.rs")
    names = dict(re.findall(r'(\w+)(?:: &str)? = "(lastword_\w+)"', text))
    histograms = {names[name] for name in re.findall(r'(\w+) = "lastword_\w+", Histogram,', text)}
    labels = {metric: set() for metric in names.values()}
    for name, given in re.findall(r"(?:counter|gauge|histogram)!\((\w+)((?:, \"\w+\" => [^,()]+(?:\(\))?)*)\)", text):
        labels[names[name]] |= set(re.findall(r'"(\w+)" =>', given))
    codes = set(re.findall(r'^ +\w+ = "(\w+)",', source("crates/words/src/failure.rs"), re.M))
    if not names or not codes:
        yield "no metrics, or no codes, were found"
    seen = set()
    for where, expression in expressions(chart):
        if expression.count("(") != expression.count(")") or expression.count("{") != expression.count("}"):
            yield f"{where}: brackets do not match"
        for metric, selector in re.findall(r"\b(lastword_\w+)(?:\{([^}]*)\})?", expression):
            base = re.sub("_(bucket|count|sum)$", "", metric)
            base = base if base in histograms and base != metric else metric
            seen.add(base)
            if base not in labels or (base in histograms and base == metric):
                yield f"{where}: there is no metric {metric}"
                continue
            for label in re.findall(r"\b(\w+)\s*=", selector):
                if label not in labels[base] | {"namespace", "job", "pod"}:
                    yield f"{where}: {metric} has no label {label}"
            for code in re.findall(r'\bcode="(\w+)"', selector):
                if code not in codes:
                    yield f"{where}: there is no code {code}"
    for metric in sorted(set(labels) - seen - {"lastword_rewound_events_total", "lastword_unreconciled_replicas_total"}):
        yield f"{metric} is on no dashboard"


def runbooks(chart):
    """One alert a file, with a runbook of the same name that says the alert's name."""
    alerts = {path.stem: yaml.safe_load(path.read_text()) for path in (chart.path / ALERTS).glob("*.yaml")}
    pages = {path.stem for path in RUNBOOKS.glob("*.md")}
    for name in sorted(set(alerts) ^ pages):
        yield f"{name} is an alert without a runbook, or the other way round"
    for name in sorted(set(alerts) & pages):
        if alerts[name]["alert"] not in (RUNBOOKS / f"{name}.md").read_text().splitlines()[0]:
            yield f"docs/runbooks/{name}.md does not begin with {alerts[name]['alert']}"
    named = chart.loaded.schema["properties"]["prometheusRule"]["properties"]["exclude"]["items"]["enum"]
    if sorted(named) != sorted(alert["alert"] for alert in alerts.values()):
        yield "prometheusRule.exclude does not know the alerts that there are"


def tables(chart):
    """The autoscaler's query asks for what the schema has."""
    query = yaml.safe_load((chart.path / "values.yaml").read_text())["autoscaling"]["queue"]["query"]
    table, column = re.fullmatch(r"select count\(\*\) from (\w+) where (\w+) is not null", query).groups()
    migrations = "\n".join(path.read_text() for path in sorted((ROOT / "migrations").glob("*.sql")))
    created = re.search(rf"create table {table} \((.*?)\n\)", migrations, re.S)
    if not created or not re.search(rf"^  {column} ", created.group(1), re.M):
        yield f"there is no column {table}.{column}"
