"""A stand-in for a cluster: starts as processes what the rendered chart says.

Owns the way from objects to processes, as a kubelet, the Deployment's controller and the Service's proxy
would go it. Refuses what it does not know: a field of a pod that has no meaning here is an error, so that
nobody takes for tested what was skipped. docs/KUBERNETES.md lists what it does and what only a real cluster
can show.
"""
