"""Kubernetes: the manifests in `k8s/`, told what differs from cluster to cluster."""
