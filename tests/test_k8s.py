"""Manifests: every one renders, is valid on Kubernetes 1.30 to 1.36, and fits the others."""

from __future__ import annotations

import copy
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.cli import run
from deploy.fleet.certificates import covers
from deploy.fleet.home import ServerHome
from deploy.k8s.keys import create_keys, make_keys
from deploy.k8s.names import gateways, server_names
from deploy.k8s.render import MANIFESTS, Rendering, build, choices, render
from shared_models.config import read_config
from shared_models.errors import InputError
from tests.k8s_rules import Doc, faults, name_of, pods_of, quantity

VERSIONS = [f"1.{minor}" for minor in range(30, 37)]
GATEWAYS = tuple(gateways(2, ["north=10-19"]))
RENDERINGS = {
    "laptop": Rendering("laptop", ("submit",), GATEWAYS),
    "production": Rendering(
        "production", ("submit",), GATEWAYS, host="fleet.example.org", gpu=True, metrics=True
    ),
    "elsewhere": Rendering(
        "laptop",
        ("submit",),
        GATEWAYS,
        namespace="trees",
        images={"wildflower-server": "images.example:5000/own/server:7"},
        storage_class="fast",
    ),
    "simulation": Rendering(None, ("simulation-data", "simulation")),
}
# What the cluster's owner brings: the data of gateways.
DATA: Doc = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}


def parsed(text: str) -> list[Doc]:
    return [doc for doc in yaml.safe_load_all(text) if doc]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Doc]]:
    """Returns all that a cluster of that name is given: manifests, keys, and its owner's data."""
    made: dict[str, list[Doc]] = {}

    def docs(name: str) -> list[Doc]:
        if name not in made:
            rendering = RENDERINGS[name]
            namespace = rendering.namespace
            state = tmp_path_factory.mktemp("keys") / "keys"
            create_keys(state, namespace, [])
            keys = make_keys(state, namespace, [], GATEWAYS, renew=False)
            metadata = {"metadata": {"name": "wildflower-data", "namespace": namespace}}
            made[name] = [*parsed(render(rendering)), *parsed(keys), {**DATA, **metadata}]
        return copy.deepcopy(made[name])

    return docs


@pytest.mark.parametrize("name", RENDERINGS)
def test_everything_fits_together(name: str, cluster: Callable[[str], list[Doc]]) -> None:
    assert faults(cluster(name)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_valid(version: str, cluster: Callable[[str], list[Doc]]) -> None:
    for name in RENDERINGS:
        for doc in cluster(name):
            if not doc["apiVersion"].startswith("ray.io/"):  # KubeRay's own, not Kubernetes'
                kubernetes_validate.validate(doc, version, strict=True)


FOLDERS = [f"{kind}/{name}" for kind in ("overlays", "samples") for name in choices(kind)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_renders_by_itself(folder: str) -> None:
    assert parsed(build(MANIFESTS / folder))


def test_what_differs_is_told(cluster: Callable[[str], list[Doc]]) -> None:
    docs = {name_of(doc): doc for doc in cluster("elsewhere")}
    server = docs["StatefulSet/wildflower-server"]["spec"]["template"]["spec"]
    assert {c["image"] for c in server["containers"]} == {"images.example:5000/own/server:7"}
    assert "Namespace/trees" in docs
    claims = [doc for name, doc in docs.items() if name.startswith("PersistentVolumeClaim/")]
    own = [doc for doc in claims if doc["metadata"]["name"] != "wildflower-data"]
    assert {doc["spec"]["storageClassName"] for doc in own} == {"fast"}
    north = docs["Deployment/wildflower-client-north"]["spec"]["template"]["spec"]
    told = {v["name"]: v["value"] for v in north["containers"][0]["env"]}
    assert told["WILDFLOWER_HOSTS"] == "10-19"


def test_each_gateway_sees_its_own_key_alone(cluster: Callable[[str], list[Doc]]) -> None:
    for pod in pods_of(cluster("laptop")):
        seen = [
            source["secret"]["name"]
            for volume in pod.spec["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            if "secret" in source
        ]
        if pod.owner.startswith("Deployment/wildflower-client-"):
            assert seen == [pod.owner.removeprefix("Deployment/")]
        else:
            assert not [name for name in seen if name.startswith("wildflower-client")]


def test_the_executor_sees_no_key(cluster: Callable[[str], list[Doc]]) -> None:
    (server,) = [pod for pod in pods_of(cluster("production")) if "server" in pod.owner]
    (executor,) = [one for one in server.spec["containers"] if one["name"] == "executor"]
    assert executor["image"].startswith("wildflower-server-cuda:")
    assert executor["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {mount["name"] for mount in executor["volumeMounts"]} == {"state", "ca", "tmp-executor"}


def test_only_a_labelled_namespace_reaches_ray_or_metrics(
    cluster: Callable[[str], list[Doc]],
) -> None:
    docs = [*cluster("production"), *cluster("simulation")]
    rules = [r for d in docs if d["kind"] == "NetworkPolicy" for r in d["spec"].get("ingress", [])]
    peers = [peer for rule in rules for peer in rule["from"] if "namespaceSelector" in peer]
    assert len(peers) == 2
    assert all(peer["namespaceSelector"]["matchLabels"] for peer in peers)


def test_rays_objects_fit_into_its_shared_memory(cluster: Callable[[str], list[Doc]]) -> None:
    (job,) = [doc for doc in cluster("simulation") if doc["kind"] == "RayJob"]
    ray = job["spec"]["rayClusterSpec"]
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        (shm,) = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"]
        room = quantity(shm["emptyDir"]["sizeLimit"])
        assert room is not None
        assert int(group["rayStartParams"]["object-store-memory"]) < room


def test_the_run_that_the_cluster_makes_is_a_file_to_submit_from_a_desk(
    cluster: Callable[[str], list[Doc]],
) -> None:
    (told,) = [doc for doc in cluster("laptop") if name_of(doc) == "ConfigMap/wildflower-run"]
    file = MANIFESTS / "samples/submit/run.toml"
    assert told["data"]["run.toml"] == file.read_text()
    config = read_config(file)
    assert config.data.clients == 2
    assert config.evaluate.data == "none"


def test_a_rule_file_has_nothing_but_rules(cluster: Callable[[str], list[Doc]]) -> None:
    docs = {name_of(doc): doc for doc in cluster("production")}
    assert docs["ConfigMap/wildflower-prometheus"]["data"].keys() == {"rules.yaml"}
    assert docs["ConfigMap/wildflower-scrape"]["data"].keys() == {"scrape.yaml"}


def change(path: str, value: Any) -> Callable[[list[Doc]], None]:
    """Returns what sets a place in the manifests, like `Service/x spec.ports.0.port`."""

    def changed(docs: list[Doc]) -> None:
        name, _, rest = path.partition(" ")
        place: Any = next(doc for doc in docs if name_of(doc) == name)
        words = [word.replace("~1", "/") for word in rest.split("/")]
        *steps, last = [int(word) if word.isdigit() else word for word in words]
        for step in steps:
            place = place[step]
        if value is REMOVED:
            del place[last]
        elif last == "+":
            place.append(value)
        else:
            place[last] = value

    return changed


def add(doc: Doc) -> Callable[[list[Doc]], None]:
    metadata = {"namespace": "wildflower", "name": "added"}
    return lambda docs: docs.append({**doc, "metadata": {**metadata, **doc.get("metadata", {})}})


def remove(name: str) -> Callable[[list[Doc]], None]:
    def removed(docs: list[Doc]) -> None:
        docs[:] = [doc for doc in docs if name_of(doc) != name]

    return removed


REMOVED = object()
SERVER = "StatefulSet/wildflower-server spec/template"
POD = f"{SERVER}/spec"
LINK = f"{POD}/containers/0"
CLIENT = "Deployment/wildflower-client-north spec/template/spec"
HPA: Doc = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "spec": {
        "maxReplicas": 3,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "nobody"},
    },
}
PDB_SELECTOR = {"matchLabels": {"app.kubernetes.io/component": "client"}}
PDB: Doc = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget"}
SECRET_REF = {"secretKeyRef": {"name": "wildflower-operator", "key": "operator.token"}}
MISTAKES: dict[str, tuple[Callable[[list[Doc]], None], str]] = {
    "a Service for nobody": (
        change("Service/wildflower-server spec/selector", {"app": "x"}),
        "Service/wildflower-server: selects nobody",
    ),
    "a targetPort by a wrong name": (
        change("Service/wildflower-server spec/ports/0/targetPort", "http"),
        "targetPort http is no port",
    ),
    "a targetPort by a wrong number": (
        change("Service/wildflower-server spec/ports/0/targetPort", 8443),
        "targetPort 8443 is no port",
    ),
    "a selector beside the labels": (
        change(f"{SERVER}/metadata/labels/app.kubernetes.io~1component", "x"),
        "nobody",
    ),
    "pods that it does not select": (
        change("StatefulSet/wildflower-server spec/selector/matchLabels", {"app": "x"}),
        "does not select its own pods",
    ),
    "pods of another": (
        change(
            "Deployment/wildflower-client-north spec/selector/matchLabels",
            {"app.kubernetes.io/component": "client"},
        ),
        "selects the pods of",
    ),
    "a spread of others": (
        change(f"{CLIENT}/topologySpreadConstraints/0/labelSelector/matchLabels", {"app": "x"}),
        "spreads pods",
    ),
    "a mount without a volume": (
        change(f"{LINK}/volumeMounts/0/name", "stat"),
        "mounts stat, which is no volume",
    ),
    "a volume that nobody mounts": (
        change(f"{POD}/volumes/+", {"name": "spare", "emptyDir": {}}),
        "nobody mounts the volume spare",
    ),
    "two mounts on one path": (
        change(f"{LINK}/volumeMounts/+", {"name": "state", "mountPath": "/state"}),
        "/state is mounted 2 times",
    ),
    "a missing Secret": (remove("Secret/wildflower-operator"), "needs Secret/wildflower-operator"),
    "a missing key of a Secret": (
        change("Secret/wildflower-server-tls data/tls.key", REMOVED),
        "needs tls.key of Secret/wildflower-server-tls",
    ),
    "a missing ConfigMap": (
        remove("ConfigMap/wildflower-clients"),
        "needs ConfigMap/wildflower-clients",
    ),
    "a missing claim": (
        remove("PersistentVolumeClaim/wildflower-server"),
        "needs PersistentVolumeClaim/wildflower-server",
    ),
    "a missing ServiceAccount": (
        remove("ServiceAccount/wildflower-client"),
        "needs ServiceAccount/wildflower-client",
    ),
    "a missing governing Service": (
        change("StatefulSet/wildflower-server spec/serviceName", "x"),
        "needs Service/x",
    ),
    "a missing PriorityClass": (change(f"{POD}/priorityClassName", "x"), "needs PriorityClass/x"),
    "requests above limits": (
        change(f"{LINK}/resources/requests/memory", "9Gi"),
        "requests more memory than its limit",
    ),
    "milli-gigabytes": (
        change(f"{LINK}/resources/requests/memory", "512MB"),
        "512MB is no quantity",
    ),
    "no requests": (change(f"{LINK}/resources/requests", {}), "requests no cpu"),
    "no limit of memory": (change(f"{LINK}/resources/limits", {}), "has no limit of memory"),
    "root": (change(f"{POD}/securityContext/runAsNonRoot", REMOVED), "may run as root"),
    "user 0": (change(f"{POD}/securityContext/runAsUser", 0), "has no numeric user"),
    "a privileged container": (change(f"{LINK}/securityContext/privileged", True), "is privileged"),
    "escalation": (
        change(f"{LINK}/securityContext/allowPrivilegeEscalation", REMOVED),
        "may escalate",
    ),
    "a root file system to write to": (
        change(f"{LINK}/securityContext/readOnlyRootFilesystem", False),
        "may write to its root",
    ),
    "capabilities": (
        change(f"{LINK}/securityContext/capabilities", {"drop": ["NET_RAW"]}),
        "keeps capabilities",
    ),
    "no seccomp": (
        change(f"{POD}/securityContext/seccompProfile", REMOVED),
        "has no seccomp profile",
    ),
    "the host's network": (change(f"{POD}/hostNetwork", True), "hostNetwork"),
    "a folder of the host": (
        change(f"{POD}/volumes/+", {"name": "x", "hostPath": {"path": "/"}}),
        "a volume of kind hostPath",
    ),
    "a port of the host": (change(f"{LINK}/ports/0/hostPort", 80), "hostPort"),
    "a token of the API": (
        change(f"{POD}/automountServiceAccountToken", REMOVED),
        "is given a token",
    ),
    "the default account": (
        change(f"{POD}/serviceAccountName", REMOVED),
        "uses the default ServiceAccount",
    ),
    "a secret in a variable": (
        change(f"{LINK}/env", [{"name": "X", "valueFrom": SECRET_REF}]),
        "has a secret in the variable X",
    ),
    "a secret as text": (
        change(f"{LINK}/env", [{"name": "API_TOKEN", "value": "x"}]),
        "looks like a secret",
    ),
    "the tag latest": (change(f"{LINK}/image", "wildflower-server:latest"), "is not pinned"),
    "no tag": (change(f"{LINK}/image", "images.example:5000/server"), "is not pinned"),
    "no readiness": (change(f"{LINK}/readinessProbe", REMOVED), "has no readinessProbe"),
    "a probe of another port": (
        change(f"{LINK}/livenessProbe/grpc/port", 8089),
        "livenessProbe asks port 8089",
    ),
    "one port twice": (
        change(f"{POD}/containers/1/ports/0/containerPort", 8081),
        "is there 2 times",
    ),
    "two servers on one volume": (
        change("StatefulSet/wildflower-server spec/replicas", 2),
        "but ReadWriteOnce",
    ),
    "an HPA of nobody": (add(HPA), "scales Deployment/nobody, which is not there"),
    "an HPA upside down": (
        add({**HPA, "spec": {**HPA["spec"], "minReplicas": 5}}),
        "minReplicas is more",
    ),
    "a budget for nobody": (
        add({**PDB, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "x"}}}}),
        "PodDisruptionBudget/added: selects nobody",
    ),
    "a budget that blocks drains": (
        add({**PDB, "spec": {"minAvailable": "100%", "selector": PDB_SELECTOR}}),
        "blocks every drain",
    ),
    "a policy for nobody": (
        change("NetworkPolicy/server spec/podSelector", {"matchLabels": {"app": "x"}}),
        "NetworkPolicy/server: selects nobody",
    ),
    "a policy for a wrong port": (
        change("NetworkPolicy/server spec/ingress/0/ports/0/port", 9000),
        "port 9000 is nobody's",
    ),
    "a policy that lets in nobody": (
        change(
            "NetworkPolicy/server spec/ingress/0/from/0/podSelector", {"matchLabels": {"app": "x"}}
        ),
        "to nobody",
    ),
    "no default deny": (remove("NetworkPolicy/default-deny"), "denies by default"),
    "a namespace that is not there": (
        change("Service/wildflower-server metadata/namespace", "x"),
        "is in namespace x",
    ),
    "no namespace": (
        change("Service/wildflower-server metadata/namespace", REMOVED),
        "is in namespace None",
    ),
    "no PodSecurity": (
        change("Namespace/wildflower metadata/labels", {}),
        "does not enforce PodSecurity",
    ),
    "a name in capitals": (
        change("Service/wildflower-server metadata/name", "Server"),
        "is no valid name",
    ),
    "one object twice": (lambda docs: docs.append(docs[0]), "is there 2 times"),
    "a wildcard": (
        add({"kind": "Role", "rules": [{"apiGroups": [""], "resources": ["*"], "verbs": ["get"]}]}),
        "a wildcard",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake: str, cluster: Callable[[str], list[Doc]]) -> None:
    docs = cluster("laptop")
    make, told = MISTAKES[mistake]
    make(docs)
    assert any(told in fault for fault in faults(docs)), faults(docs)


def test_no_secret_leaves_the_operators_folder(tmp_path: Path) -> None:
    state = tmp_path / "keys"
    create_keys(state, "wildflower", ["fleet.example.org"])
    docs = parsed(make_keys(state, "wildflower", ["fleet.example.org"], GATEWAYS, renew=False))
    home = ServerHome(state)
    text = yaml.safe_dump_all(docs)
    assert home.ca_key.read_text()[40:80] not in text
    for name in (*server_names("wildflower"), "fleet.example.org"):
        assert covers(home.certificate, name)
    secrets = [path for path in state.rglob("*") if path.suffix == ".key"]
    assert len(secrets) == 2 + len(GATEWAYS)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
    public = [doc for doc in docs if doc["kind"] == "ConfigMap"]
    assert "PRIVATE" not in yaml.safe_dump_all(public)
    assert (state / ".gitignore").read_text() == "*\n"


def test_keys_stay_what_they_are(tmp_path: Path) -> None:
    state = tmp_path / "keys"
    create_keys(state, "wildflower", [])
    first = make_keys(state, "wildflower", [], GATEWAYS, renew=False)
    assert make_keys(state, "wildflower", [], GATEWAYS, renew=False) == first
    with pytest.raises(InputError, match=r"is not for fleet\.example\.org; add --renew"):
        make_keys(state, "wildflower", ["fleet.example.org"], GATEWAYS, renew=False)
    renewed = make_keys(state, "wildflower", ["fleet.example.org"], GATEWAYS, renew=True)
    both = zip(parsed(first), parsed(renewed), strict=True)
    assert [old["metadata"]["name"] for old, new in both if old != new] == ["wildflower-server-tls"]
    with pytest.raises(InputError, match="may host other clients"):
        make_keys(state, "wildflower", [], gateways(0, ["north=1"]), renew=False)


@pytest.mark.parametrize("renew", [False, True])
def test_no_new_ca_is_made_unless_it_is_asked_for(renew: bool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no keys are here; .* --init"):
        make_keys(tmp_path / "typo", "wildflower", [], GATEWAYS, renew=renew)
    assert not (tmp_path / "typo").exists()
    create_keys(tmp_path / "keys", "wildflower", [])
    ca = (tmp_path / "keys/ca.pem").read_bytes()
    with pytest.raises(InputError, match="keys are here already; leave out --init"):
        create_keys(tmp_path / "keys", "wildflower", [])
    assert (tmp_path / "keys/ca.pem").read_bytes() == ca


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("render",), "nothing to render"),
        (("render", "--overlay", "desktop"), "there are laptop, production"),
        (("render", "--sample", "gateway"), "--clients and --gateway"),
        (("render", "--clients", "2", "--gateway", "north=1-3"), "client 1 is on two gateways"),
        (("render", "--gateway", "North=1"), "expected NAME=HOSTS"),
        (("render", "--overlay", "laptop", "--server-image", "x:latest"), "no tag latest"),
        (("render", "--overlay", "laptop", "--namespace", "A_b"), "small letters"),
        (("render", "--sample", "submit", "--gpu"), "give --overlay too"),
        (("render", "--sample", "submit", "--metrics"), "give --overlay too"),
        (
            ("render", "--overlay", "laptop", "--gpu", "--server-image", "x:9"),
            "both --server-image and --executor-image",
        ),
        (("render", "--overlay", "laptop", "--executor-image", "x:9"), "give --gpu too"),
        (("keys", "--state", "keys", "--init", "--renew"), "give one of them"),
    ],
)
def test_mistakes_of_the_command_line_are_told(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["k8s", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_the_command_line_prints_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["k8s", "render", "--overlay", "laptop", "--clients", "1"]) == 0
    kinds = {doc["kind"] for doc in parsed(capsys.readouterr().out)}
    assert {"StatefulSet", "Deployment", "NetworkPolicy", "PodDisruptionBudget"} <= kinds
    keys = ["k8s", "keys", "--state", str(tmp_path / "keys"), "--clients", "1"]
    assert run(keys) == 2
    assert capsys.readouterr().out == ""
    assert run([*keys, "--init"]) == 0
    assert len(parsed(capsys.readouterr().out)) == 5


def test_no_image_of_ours_is_left_when_all_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    images = {
        f"--{name}-image": f"images.example/{name}:9"
        for name in ("server", "executor", "client", "simulation")
    }
    words = [word for option in images.items() for word in option]
    samples = [
        word for name in choices("samples") if name != "gateway" for word in ("--sample", name)
    ]
    for overlay in choices("overlays"):
        assert (
            run(
                ["k8s", "render", "--overlay", overlay, "--clients", "1", *samples, "--gpu", *words]
            )
            == 0
        )
        pods = pods_of(parsed(capsys.readouterr().out))
        assert {one["image"] for pod in pods for one in pod.containers} == set(images.values())


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    file = MANIFESTS / "images/Dockerfile"
    done = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
