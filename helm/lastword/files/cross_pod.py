#!/usr/bin/env python3
"""Sends a turn through one replica and reads it from every other one; what `helm test` runs.

Its only client is the `lastword` program. It finds the replicas by asking one (LASTWORD_URL), and
calls each by the address that the replica itself tells.
"""
import json, os, re, subprocess, sys, tempfile

OWN_AGENT = "helm-test"


def lastword(*words, url=None, may_fail=False):
    """What one call said, stdout and stderr; ends this program where the call fails."""
    command = ["lastword", *words, *(["--url", url] if url else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode and not may_fail:
        sys.exit(f"FAILED: {' '.join(command)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


def replicas():
    """The addresses of those that are at work; two at least, else nothing can cross."""
    items = json.loads(lastword("replicas", "list", "--output", "json")[0])["items"]
    urls = sorted(item["url"] for item in items if item["state"] == "ready")
    if len(urls) < 2:
        sys.exit(f"FAILED: two replicas are needed, at work are: {urls}")
    return urls


def put_own_agent():
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f"[agents.{OWN_AGENT}]\nruntime = 'process'\ncommand = ['lastword', 'demo-agent']\n")
        file.flush()
        lastword("apply", "--file", file.name)


def crosses(agent, here, others):
    """One turn sent to `here`: what the sender was told, the others must tell as well."""
    answer, notes = lastword("chat", "--agent", agent, "hello from helm test", url=here)
    turn = re.search(r"\bturn_[0-9a-f]+", notes)
    if not turn or not answer.strip():
        sys.exit(f"FAILED: no turn, or no answer: {notes}{answer}")
    turn, answer = turn.group(), answer.strip()
    print(f"{turn} sent to {here}: {answer!r}")
    for there in others:
        lines = lastword("turns", "tail", turn, "--output", "json", url=there)[0].splitlines()
        events = [json.loads(line) for line in lines]
        if [event["seq"] for event in events] != list(range(len(events))):
            sys.exit(f"FAILED: {there} tells a log with gaps: {lines}")
        if events[-1]["kind"] != "completed" or events[-1]["text"].strip() != answer:
            sys.exit(f"FAILED: {there} tells another end: {lines[-1]}")
        print(f"  read from {there}: the same {len(events)} events")


def main():
    urls = replicas()
    agent = os.environ.get("TEST_AGENT") or OWN_AGENT
    if agent == OWN_AGENT:
        put_own_agent()
    try:
        for here in urls:
            crosses(agent, here, [url for url in urls if url != here])
    finally:
        if agent == OWN_AGENT:
            lastword("agents", "delete", OWN_AGENT, may_fail=True)
    print("passed")


main()
