"""values.yaml as a table in the chart's README, and the same keys in its schema.

Owns the form of the comments: a comment that begins with `# -- ` describes the value below it, and
every value stands below one or below a parent that has one. `python values_docs.py --write` writes the table.
"""

import json
import re
import sys

import yaml

from engine import CHART

BEGIN, END = "<!-- values: made from values.yaml -->", "<!-- end of values -->"


def described(text):
    """path → description, of every value with a comment, in the file's order."""
    found, above, comment = {}, [], None
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = stripped[5:]
        elif stripped.startswith("#"):
            comment = f"{comment} {stripped[1:].strip()}" if comment is not None else None
        elif match := re.match(r"^( *)([A-Za-z_]\w*):", line):
            depth = len(match.group(1)) // 2
            above = [*above[:depth], match.group(2)]
            if comment is not None:
                found[".".join(above)] = comment
            comment = None
        else:
            comment = None
    return found


def leaves(node, path=""):
    for key, value in node.items():
        here = f"{path}.{key}".lstrip(".")
        yield here, value
        if isinstance(value, dict):
            yield from leaves(value, here)


def table(text):
    values = dict(leaves(yaml.safe_load(text)))
    rows = ["| value | default | what |", "|---|---|---|"]
    for path, what in described(text).items():
        default = json.dumps(values[path], ensure_ascii=False)
        rows.append(f"| `{path}` | `{default}` | {what.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def readme(chart_path):
    """The README as it should be."""
    before, rest = (chart_path / "README.md").read_text().split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table((chart_path / 'values.yaml').read_text())}\n\n{END}{after}"


def wrongs(chart):
    text = (chart.path / "values.yaml").read_text()
    known = described(text)
    paths = dict(leaves(yaml.safe_load(text)))
    for path, value in paths.items():
        parents = [path.rsplit(".", n)[0] for n in range(path.count(".") + 1)]
        if not (isinstance(value, dict) and value) and not any(parent in known for parent in parents):
            yield f"values.yaml: {path} has no description"
    yield from _schema(chart.loaded.schema, yaml.safe_load(text), "", chart.loaded.schema["definitions"])
    if readme(chart.path) != (chart.path / "README.md").read_text():
        yield "README.md is not what values.yaml says: run `make chart-docs`"


def _schema(schema, values, path, definitions):
    """What the schema and the values name differently."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    known = schema.get("properties")
    if known is None or not isinstance(values, dict):
        return
    if schema.get("additionalProperties") is not False:
        yield f"values.schema.json: {path or 'the root'} takes keys that nobody knows"
    for key in sorted(set(values) - set(known)):
        yield f"values.schema.json does not know {path}{key}"
    for key in sorted(set(known) - set(values) - {"global"}):
        # Kubernetes' own words, of which the chart sets some.
        if "resources" not in path and not path.startswith(("image", "strategy")):
            yield f"values.yaml does not have {path}{key}"
    for key in set(known) & set(values):
        yield from _schema(known[key], values[key], f"{path}{key}.", definitions)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        text = readme(CHART)
        (CHART / "README.md").write_text(text)
