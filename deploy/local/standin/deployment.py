"""The Deployment: as many pods of the newest template as it says, replaced as its strategy says.

Owns what the Deployment's controller and its ReplicaSets do. Keeps: never more than replicas + maxSurge pods
that are not leaving, never fewer ready ones than replicas - maxUnavailable by its own doing.
"""

import copy
import math
import random

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


class Deployment:
    """One Deployment and its pods, newest template last."""

    def __init__(self, thing, make_pod):
        self.name = thing["metadata"]["name"]
        self.wanted = thing["spec"].get("replicas", 1)
        rolling = thing["spec"].get("strategy", {}).get("rollingUpdate") or {}
        self.surge = _share(rolling.get("maxSurge", "25%"), self.wanted, math.ceil)
        self.absent_max = _share(rolling.get("maxUnavailable", "25%"), self.wanted, math.floor)
        self.is_recreated = thing["spec"].get("strategy", {}).get("type") == "Recreate"
        self.selector = thing["spec"]["selector"]["matchLabels"]
        self.make_pod = make_pod
        self.pods = []
        self.revision = 0
        self._renew(thing["spec"]["template"])

    def _renew(self, template):
        self.revision += 1
        self.template = copy.deepcopy(template)
        self.hash = "".join(random.choices(_LETTERS, k=9))
        self.template["metadata"].setdefault("labels", {})["pod-template-hash"] = self.hash
        missing = self.selector.items() - self.template["metadata"]["labels"].items()
        if missing:
            raise ValueError(f"the Deployment would not find its own pods: {missing}")

    def restart(self):
        """As `kubectl rollout restart`: the same template, and yet another one."""
        self._renew(self.template)

    def _is_new(self, pod):
        return pod.labels.get("pod-template-hash") == self.hash

    def look(self):
        """Makes and deletes pods until it is as it should be, as far as that is allowed now."""
        self.pods = [pod for pod in self.pods if not pod.gone.is_set()]
        staying = [pod for pod in self.pods if not pod.is_leaving]
        new = [pod for pod in staying if self._is_new(pod)]
        old = [pod for pod in staying if not self._is_new(pod)]
        if self.is_recreated:
            for pod in old:
                pod.delete()
            room = 0 if old or len(self.pods) > len(new) else self.wanted - len(new)
        else:
            room = min(self.wanted - len(new), self.wanted + self.surge - len(staying))
            self._retire(old, sum(pod.is_ready for pod in staying))
        for _ in range(room):
            name = f"{self.name}-{self.hash}-{''.join(random.choices(_LETTERS, k=5))}"
            self.pods.append(self.make_pod(name, self.template))

    def _retire(self, old, ready):
        for pod in sorted(old, key=lambda pod: pod.is_ready):
            if pod.is_ready:
                if ready - 1 < self.wanted - self.absent_max:
                    return
                ready -= 1
            pod.delete()

    def is_rolled_out(self):
        """As `kubectl rollout status` sees it: pods that are leaving do not count."""
        staying = [pod for pod in self.pods if not pod.is_leaving]
        return len(staying) == self.wanted and all(pod.is_ready and self._is_new(pod) for pod in staying)


def _share(said, whole, rounded):
    if isinstance(said, str):
        return rounded(int(said.removesuffix("%")) * whole / 100)
    return said
