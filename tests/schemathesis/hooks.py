"""What generated requests must not do, and what they need to come further than a 404.

Owns the last look at a request before it is sent. Keeps three promises: a command that is put is
`true` and nothing else, wherever this is run; no request waits for long or reads a stream that has
no end; and ids are, where they are well-formed, those of things that exist.
"""

import json
import os
import re

import schemathesis

KNOWN = json.loads(os.environ["LASTWORD_KNOWN"])
WELL_FORMED = re.compile(r"(turn|conv|wrk)_[0-9a-f]{32}")
KINDS = {"turn": "turns", "conv": "conversations", "wrk": "workers"}
HARMLESS = ["true"]
WAIT_MAX_S = 1


@schemathesis.hook
def before_call(context, case, kwargs):
    disarm(case)
    name_what_exists(case)
    stay_short(case)


def disarm(case):
    """The doors that are tested have nothing behind them that could run a command. This is for those
    who point these hooks at a gateway that has."""
    if case.method.upper() == "PUT" and isinstance(case.body, dict) and "command" in case.body:
        command = case.body["command"]
        # What is wrong in its form stays so: it is what is tested, and it is refused.
        is_refused = not isinstance(command, list) or not all(isinstance(word, str) for word in command)
        if not is_refused and command and command[0] and not any("\0" in word for word in command):
            case.body = {**case.body, "command": HARMLESS}


def name_what_exists(case):
    """An id that was made up is nobody's: three of four become the id of something that exists. What
    is deleted is not one of these, and an id that the gateway gave out itself stays."""
    if case.method.upper() == "DELETE":
        return
    parameters = dict(case.path_parameters or {})
    text = parameters.get("id")
    found = WELL_FORMED.fullmatch(text) if isinstance(text, str) else None
    is_given_out = found and text[:9] == KNOWN[KINDS[found[1]]][0][:9]
    if found and not is_given_out and int(text[-1], 16) % 4:
        things = KNOWN[KINDS[found[1]]]
        parameters["id"] = things[int(text[-2], 16) % len(things)]
        case.path_parameters = parameters


def stay_short(case):
    """Streams are read where they end by themselves, and waits are cut short."""
    path = case.path
    headers = case.headers
    is_endless = path.endswith("/events") and (case.path_parameters or {}).get("id") != KNOWN["ended"]
    if is_endless:
        headers["Accept"] = "application/json"
    query = dict(case.query or {})
    try:
        if int(query.get("wait", 0)) in range(WAIT_MAX_S + 1, 61):
            case.query = {**query, "wait": WAIT_MAX_S}
    except (TypeError, ValueError):
        pass
