"""What no schema sees: whether the manifests of a cluster fit together, and are safe.

`faults(docs)` returns a line for each thing that is wrong, with the object it is wrong in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Doc = dict[str, Any]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_SUFFIX = {
    None: Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6),
    "G": Decimal(10**9), "T": Decimal(10**12), "Ki": Decimal(2**10), "Mi": Decimal(2**20),
    "Gi": Decimal(2**30), "Ti": Decimal(2**40),
}  # fmt: skip
_CLUSTER_WIDE = {"Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding", "StorageClass"}
_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret", "downwardAPI"}
_WORDS_OF_SECRETS = re.compile(r"(?i)token|password|secret|private|credential.*=|_key$")
_LABEL_KINDS = ("Service", "Namespace")


@dataclass(frozen=True)
class Pod:
    """A pod as a controller makes it."""

    owner: str
    kind: str
    labels: Mapping[str, str]
    spec: Doc
    replicas: int = 1

    @property
    def containers(self) -> list[Doc]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def port(self, wanted: object) -> bool:
        """Whether a container declares a port of this name or number."""
        return any(wanted in (port["containerPort"], port.get("name")) for port in self.ports())

    def ports(self) -> list[Doc]:
        return [port for container in self.containers for port in container.get("ports", [])]


def pods_of(docs: list[Doc]) -> list[Pod]:
    """Returns the pods of all controllers, KubeRay's too."""
    return [pod for doc in docs for pod in _pods(doc)]


def _pods(doc: Doc) -> Iterator[Pod]:
    kind, spec, owner = doc["kind"], doc.get("spec", {}), name_of(doc)
    if kind in {"Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet"}:
        yield _pod(owner, kind, spec["template"], spec.get("replicas", 1))
    elif kind == "CronJob":
        yield _pod(owner, kind, spec["jobTemplate"]["spec"]["template"])
    elif kind == "Pod":
        yield _pod(owner, kind, doc)
    elif kind in {"RayJob", "RayCluster"}:
        ray = spec.get("rayClusterSpec", spec)
        yield _pod(f"{owner} head", kind, ray["headGroupSpec"]["template"])
        for group in ray.get("workerGroupSpecs", []):
            yield _pod(f"{owner} {group['groupName']}", kind, group["template"], group["replicas"])


def _pod(owner: str, kind: str, template: Doc, replicas: int = 1) -> Pod:
    return Pod(owner, kind, template["metadata"].get("labels", {}), template["spec"], replicas)


def name_of(doc: Doc) -> str:
    return f"{doc['kind']}/{doc['metadata']['name']}"


def quantity(text: object) -> Decimal | None:
    """Returns an amount; None for what is none."""
    found = _QUANTITY.fullmatch(str(text))
    return Decimal(found[1]) * _SUFFIX[found[2]] if found else None


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector has a pod of these labels; without a rule it has all."""
    rules = selector or {}
    pairs = rules.get("matchLabels", {} if "matchExpressions" in rules else rules)
    return all(labels.get(key) == value for key, value in pairs.items())


def faults(docs: list[Doc]) -> list[str]:
    """Returns what is wrong, in words."""
    return [fault for rule in RULES for fault in rule(docs)]


def _names(docs: list[Doc]) -> Iterator[str]:
    for (name, _), count in Counter(
        (name_of(doc), doc["metadata"].get("namespace")) for doc in docs
    ).items():
        if count > 1:
            yield f"{name}: is there {count} times"
    for doc in docs:
        pattern = _LABEL if doc["kind"] in _LABEL_KINDS else _NAME
        if not pattern.fullmatch(doc["metadata"]["name"]):
            yield f"{name_of(doc)}: is no valid name"
        for key, value in doc["metadata"].get("labels", {}).items():
            if not _VALUE.fullmatch(str(value)):
                yield f"{name_of(doc)}: label {key} has no valid value"


def _namespaces(docs: list[Doc]) -> Iterator[str]:
    known = {doc["metadata"]["name"] for doc in docs if doc["kind"] == "Namespace"}
    for doc in docs:
        if doc["kind"] in _CLUSTER_WIDE:
            continue
        namespace = doc["metadata"].get("namespace")
        if namespace is None or (known and namespace not in known):
            yield f"{name_of(doc)}: is in namespace {namespace}, which is not there"
    for doc in docs:
        labels = doc["metadata"].get("labels", {})
        if doc["kind"] == "Namespace" and (
            labels.get("pod-security.kubernetes.io/enforce") != "restricted"
        ):
            yield f"{name_of(doc)}: does not enforce PodSecurity restricted"


def _selectors(docs: list[Doc]) -> Iterator[str]:
    pods = pods_of(docs)
    for doc in docs:
        kind, spec = doc["kind"], doc.get("spec", {})
        if kind in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"}:
            if not selects(spec["selector"], spec["template"]["metadata"].get("labels", {})):
                yield f"{name_of(doc)}: does not select its own pods"
            others = [
                p for p in pods if p.owner != name_of(doc) and selects(spec["selector"], p.labels)
            ]
            if others:
                yield f"{name_of(doc)}: selects the pods of {others[0].owner} too"
        if kind == "Service" and not _selected(pods, spec.get("selector")):
            yield f"{name_of(doc)}: selects nobody"
        if kind == "PodDisruptionBudget" and not _selected(pods, spec.get("selector")):
            yield f"{name_of(doc)}: selects nobody"
    for pod in pods:
        for spread in pod.spec.get("topologySpreadConstraints", []):
            if not selects(spread.get("labelSelector"), pod.labels):
                yield f"{pod.owner}: spreads pods that it is none of"


def _selected(pods: list[Pod], selector: Mapping[str, Any] | None) -> list[Pod]:
    return [pod for pod in pods if selector and selects(selector, pod.labels)]


def _policies(docs: list[Doc]) -> Iterator[str]:
    pods = pods_of(docs)
    policies = [doc for doc in docs if doc["kind"] == "NetworkPolicy"]
    for doc in policies:
        spec = doc["spec"]
        own = [pod for pod in pods if selects(spec["podSelector"], pod.labels)]
        if not own:
            yield f"{name_of(doc)}: selects nobody"
        for rule in spec.get("ingress", []):
            yield from _reachable(doc, rule, own)
            yield from _peers(doc, rule.get("from", []), pods)
        for rule in spec.get("egress", []):
            yield from _peers(doc, rule.get("to", []), pods)
            for peer in rule.get("to", []):
                if "namespaceSelector" not in peer and "podSelector" in peer:
                    yield from _reachable(doc, rule, _selected(pods, peer["podSelector"]))
    denied = any(
        doc["spec"]["podSelector"] == {}
        and set(doc["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not doc["spec"].get("ingress")
        and not doc["spec"].get("egress")
        for doc in policies
    )
    if any(doc["kind"] == "Namespace" for doc in docs) and not denied:
        yield "there is no NetworkPolicy that denies by default"


def _reachable(doc: Doc, rule: Doc, pods: list[Pod]) -> Iterator[str]:
    for port in rule.get("ports", []):
        if not any(pod.port(port["port"]) for pod in pods):
            yield f"{name_of(doc)}: port {port['port']} is nobody's"


def _peers(doc: Doc, peers: list[Doc], pods: list[Pod]) -> Iterator[str]:
    for peer in peers:
        is_own = "podSelector" in peer and "namespaceSelector" not in peer
        if is_own and not any(selects(peer["podSelector"], pod.labels) for pod in pods):
            yield f"{name_of(doc)}: lets in or out to nobody"


def _ports(docs: list[Doc]) -> Iterator[str]:
    pods = pods_of(docs)
    for doc in docs:
        if doc["kind"] != "Service":
            continue
        for port in doc["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if not any(pod.port(target) for pod in _selected(pods, doc["spec"].get("selector"))):
                yield f"{name_of(doc)}: targetPort {target} is no port of its pods"
    for pod in pods:
        numbers = Counter((p["containerPort"], p.get("protocol", "TCP")) for p in pod.ports())
        names = Counter(p["name"] for p in pod.ports() if "name" in p)
        for told, count in [*numbers.items(), *names.items()]:
            if count > 1:
                yield f"{pod.owner}: port {told} is there {count} times"
        for name in names:
            if len(name) > 15:
                yield f"{pod.owner}: port name {name} is longer than 15"


def _probes(docs: list[Doc]) -> Iterator[str]:
    for pod in pods_of(docs):
        for container in pod.spec["containers"]:
            where = f"{pod.owner} {container['name']}"
            if pod.kind not in {"Job", "CronJob"}:
                for probe in ("livenessProbe", "readinessProbe"):
                    if probe not in container:
                        yield f"{where}: has no {probe}"
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                for kind in ("grpc", "httpGet", "tcpSocket"):
                    port = container.get(probe, {}).get(kind, {}).get("port")
                    own = Pod("", "", {}, {"containers": [container]})
                    if port is not None and not own.port(port):
                        yield f"{where}: {probe} asks port {port}, which it has not"


def _mounts(docs: list[Doc]) -> Iterator[str]:
    for pod in pods_of(docs):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        if len(volumes) < len(pod.spec.get("volumes", [])):
            yield f"{pod.owner}: two volumes have one name"
        mounts = [(c, mount) for c in pod.containers for mount in c.get("volumeMounts", [])]
        for container, mount in mounts:
            if mount["name"] not in volumes:
                yield f"{pod.owner} {container['name']}: mounts {mount['name']}, which is no volume"
        for container in pod.containers:
            paths = Counter(mount["mountPath"] for mount in container.get("volumeMounts", []))
            for path, count in paths.items():
                if count > 1:
                    yield f"{pod.owner} {container['name']}: {path} is mounted {count} times"
        for volume in volumes - {mount["name"] for _, mount in mounts}:
            yield f"{pod.owner}: nobody mounts the volume {volume}"


def _references(docs: list[Doc]) -> Iterator[str]:
    there = {name_of(doc): doc for doc in docs}
    for pod in pods_of(docs):
        for kind, name, keys in _needs(pod.spec):
            found = there.get(f"{kind}/{name}")
            if found is None:
                yield f"{pod.owner}: needs {kind}/{name}, which is not there"
                continue
            known = {*found.get("data", {}), *found.get("stringData", {})}
            for key in keys - known:
                yield f"{pod.owner}: needs {key} of {kind}/{name}, which is not in it"
    for doc in docs:
        for kind, name in _others(doc):
            if f"{kind}/{name}" not in there:
                yield f"{name_of(doc)}: needs {kind}/{name}, which is not there"


def _others(doc: Doc) -> Iterator[tuple[str, str]]:
    if doc["kind"] == "StatefulSet":
        yield "Service", doc["spec"]["serviceName"]
    if doc["kind"] in {"RoleBinding", "ClusterRoleBinding"}:
        for other in (doc["roleRef"], *doc.get("subjects", [])):
            yield other["kind"], other["name"]


def _needs(spec: Doc) -> Iterator[tuple[str, str, set[str]]]:
    yield "ServiceAccount", spec.get("serviceAccountName", "default"), set()
    if "priorityClassName" in spec:
        yield "PriorityClass", spec["priorityClassName"], set()
    for secret in spec.get("imagePullSecrets", []):
        yield "Secret", secret["name"], set()
    for volume in spec.get("volumes", []):
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"], set()
        for source in (volume, *volume.get("projected", {}).get("sources", [])):
            yield from _sources(source)
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        yield from _variables(container)


def _variables(container: Doc) -> Iterator[tuple[str, str, set[str]]]:
    for source in container.get("envFrom", []):
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if key in source:
                yield kind, source[key]["name"], set()
    for variable in container.get("env", []):
        told = variable.get("valueFrom", {})
        for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if key in told:
                yield kind, told[key]["name"], {told[key]["key"]}


def _sources(source: Doc) -> Iterator[tuple[str, str, set[str]]]:
    for key, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
        if told := source.get(key):
            keys = {item["key"] for item in told.get("items", [])}
            yield kind, told.get("name") or told["secretName"], keys


def _quantities(docs: list[Doc]) -> Iterator[str]:
    for doc in docs:
        if doc["kind"] == "PersistentVolumeClaim":
            asked = doc["spec"]["resources"]["requests"]["storage"]
            if quantity(asked) is None:
                yield f"{name_of(doc)}: {asked} is no quantity"
    for pod in pods_of(docs):
        for container in pod.containers:
            for fault in _amounts(container.get("resources", {})):
                yield f"{pod.owner} {container['name']}: {fault}"


def _amounts(resources: Doc) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for told in (*requests.values(), *limits.values()):
        if quantity(told) is None:
            yield f"{told} is no quantity"
    for kind in requests.keys() & limits.keys():
        least, most = quantity(requests[kind]), quantity(limits[kind])
        if least is not None and most is not None and least > most:
            yield f"requests more {kind} than its limit"
    for kind in {"cpu", "memory"} - requests.keys():
        yield f"requests no {kind}"
    if "memory" not in limits:
        yield "has no limit of memory"


def _claims(docs: list[Doc]) -> Iterator[str]:
    for doc in docs:
        if doc["kind"] != "PersistentVolumeClaim" or "ReadWriteMany" in doc["spec"]["accessModes"]:
            continue
        users = [
            pod
            for pod in pods_of(docs)
            for volume in pod.spec.get("volumes", [])
            if volume.get("persistentVolumeClaim", {}).get("claimName") == doc["metadata"]["name"]
        ]
        if sum(pod.replicas for pod in users) > 1:
            yield f"{name_of(doc)}: is mounted by several pods, but ReadWriteOnce"


def _security(docs: list[Doc]) -> Iterator[str]:
    for pod in pods_of(docs):
        yield from _pod_security(pod)
        for container in pod.containers:
            for fault in _container_security(container, pod.spec.get("securityContext", {})):
                yield f"{pod.owner} {container['name']}: {fault}"


def _pod_security(pod: Pod) -> Iterator[str]:
    for forbidden in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.spec.get(forbidden):
            yield f"{pod.owner}: {forbidden}"
    for volume in pod.spec.get("volumes", []):
        if kinds := volume.keys() - {"name"} - _VOLUMES:
            yield f"{pod.owner}: a volume of kind {min(kinds)}"
    if any("hostPort" in port for port in pod.ports()):
        yield f"{pod.owner}: hostPort"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield f"{pod.owner}: is given a token of the Kubernetes API"
    if pod.spec.get("serviceAccountName", "default") == "default":
        yield f"{pod.owner}: uses the default ServiceAccount"


def _container_security(container: Doc, pod: Doc) -> Iterator[str]:
    own = {**pod, **container.get("securityContext", {})}
    if own.get("runAsNonRoot") is not True:
        yield "may run as root"
    if not isinstance(own.get("runAsUser"), int) or own["runAsUser"] == 0:
        yield "has no numeric user"
    if own.get("privileged"):
        yield "is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "may escalate its privileges"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root file system"
    if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
        yield "keeps capabilities"
    if own.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "has no seccomp profile"


def _secrets(docs: list[Doc]) -> Iterator[str]:
    for pod in pods_of(docs):
        for container in pod.containers:
            where = f"{pod.owner} {container['name']}"
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    yield f"{where}: has a secret in the variable {variable['name']}"
                if variable.get("value") and _WORDS_OF_SECRETS.search(variable["name"]):
                    yield f"{where}: the variable {variable['name']} looks like a secret"
            if any("secretRef" in source for source in container.get("envFrom", [])):
                yield f"{where}: has a secret in its variables"


def _images(docs: list[Doc]) -> Iterator[str]:
    for pod in pods_of(docs):
        for container in pod.containers:
            image = container["image"].partition("@")
            tag = image[0].rpartition("/")[2].partition(":")[2]
            if not image[2] and tag in {"", "latest"}:
                yield f"{pod.owner} {container['name']}: the image {image[0]} is not pinned"


def _scaling(docs: list[Doc]) -> Iterator[str]:
    there = {name_of(doc): doc for doc in docs}
    for doc in docs:
        if doc["kind"] != "HorizontalPodAutoscaler":
            continue
        target = doc["spec"]["scaleTargetRef"]
        found = there.get(f"{target['kind']}/{target['name']}")
        if found is None or found["apiVersion"] != target.get("apiVersion"):
            yield f"{name_of(doc)}: scales {target['kind']}/{target['name']}, which is not there"
        if doc["spec"].get("minReplicas", 1) > doc["spec"]["maxReplicas"]:
            yield f"{name_of(doc)}: minReplicas is more than maxReplicas"
    for doc in docs:
        if doc["kind"] == "PodDisruptionBudget":
            yield from _budget(doc, _selected(pods_of(docs), doc["spec"].get("selector")))


def _budget(doc: Doc, pods: list[Pod]) -> Iterator[str]:
    total = sum(pod.replicas for pod in pods)
    spec = doc["spec"]
    if "minAvailable" in spec and (spec["minAvailable"] == "100%" or spec["minAvailable"] == total):
        yield f"{name_of(doc)}: blocks every drain"
    if spec.get("maxUnavailable") in (0, "0%"):
        yield f"{name_of(doc)}: blocks every drain"


def _rights(docs: list[Doc]) -> Iterator[str]:
    for doc in docs:
        if doc["kind"] in {"Role", "ClusterRole"}:
            for rule in doc.get("rules", []):
                if "*" in (*rule.get("verbs", ()), *rule.get("resources", ()), *rule["apiGroups"]):
                    yield f"{name_of(doc)}: a wildcard"


Rule = Callable[[list[Doc]], Iterator[str]]
RULES: tuple[Rule, ...] = (
    _names,
    _namespaces,
    _selectors,
    _policies,
    _ports,
    _probes,
    _mounts,
    _references,
    _quantities,
    _claims,
    _security,
    _secrets,
    _images,
    _scaling,
    _rights,
)
