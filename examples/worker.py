#!/usr/bin/env python3
"""A worker in Python: one JSON object a line on stdin and stdout; stderr is its log."""
import json, queue, sys, threading

orders = queue.Queue(maxsize=64)


def read():  # A thread of its own, so that a cancel is heard in the middle of an answer.
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put({"type": "shutdown"})  # The host is gone.


def say(kind, turn_id=None, **fields):
    tag = {"turn_id": turn_id} if turn_id else {}
    print(json.dumps({"type": kind, **tag, **fields}), flush=True)


def answer(turn):
    for word in f"You said: {turn['input']['text']}".split(" "):
        say("delta", turn["turn_id"], text=word + " ")
        try:
            order = orders.get(timeout=0.05)
        except queue.Empty:
            continue
        if order["type"] == "shutdown":
            sys.exit(0)
        if order["type"] == "cancel" and order["turn_id"] == turn["turn_id"]:
            return say("cancelled", turn["turn_id"])
    say("complete", turn["turn_id"])


threading.Thread(target=read, daemon=True).start()
say("ready")
while (order := orders.get())["type"] != "shutdown":
    if order["type"] == "turn":
        answer(order)
