"""The manifests of a cluster: a kustomization over `k8s/`, built by kubectl.

What differs from cluster to cluster is told in a kustomization of its own; the files in `k8s/` stay
as they are. Each gateway is the sample `gateway` once more, with a key and a volume of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.k8s.names import SERVICE, Gateway, require_namespace
from shared_models.errors import InputError, one_line

MANIFESTS = Path(__file__).parents[2] / "k8s"
DEMO = "sensors:load"
_KUSTOMIZE = "kustomize.config.k8s.io"


@dataclass(frozen=True)
class Rendering:
    """What is to be rendered.

    Attributes:
        overlay: A folder of `k8s/overlays`; None for samples alone.
        samples: Folders of `k8s/samples`.
        gateways: SuperNodes inside the cluster.
        namespace: Where all of it goes.
        images: By the name that the manifests have, NAME:TAG or NAME@DIGEST.
        storage_class: Of all claims; None for the cluster's default.
        host: What devices outside call the server, for external-dns; None for nothing.
        data: What gateways train on, as `wildflower client --data` takes it.
        gpu: Whether the server's executor has a GPU.
        metrics: Whether server and gateways serve metrics, with rules and a dashboard.
    """

    overlay: str | None
    samples: tuple[str, ...] = ()
    gateways: tuple[Gateway, ...] = ()
    namespace: str = "wildflower"
    images: Mapping[str, str] | None = None
    storage_class: str | None = None
    host: str | None = None
    data: str | None = None
    gpu: bool = False
    metrics: bool = False


def render(rendering: Rendering) -> str:
    """Returns the manifests as YAML; `InputError` where something is not there."""
    require_namespace(rendering.namespace)
    with tempfile.TemporaryDirectory(prefix="wildflower-k8s-") as folder:
        place = Path(folder).resolve()
        for gateway in rendering.gateways:
            _write(place / gateway.name, _of_gateway(rendering, gateway, place / gateway.name))
        _write(place, _of_all(rendering, place))
        return build(place)


def build(folder: Path) -> str:
    """Returns what kubectl makes of a kustomization."""
    done = subprocess.run(
        [_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"kubectl kustomize: {one_line(done.stderr)}")
    return done.stdout


def choices(kind: str) -> list[str]:
    """Returns the folders of `overlays` or `samples`."""
    return sorted(path.name for path in (MANIFESTS / kind).iterdir() if path.is_dir())


def _kubectl() -> str:
    beside = Path(sys.executable).parent / "kubectl"  # of the environment in which we run
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        raise InputError("kubectl is not installed; it renders the manifests, and applies them")
    return found


def _of_all(rendering: Rendering, place: Path) -> dict[str, Any]:
    overlay = [] if rendering.overlay is None else [_there(place, "overlays", rendering.overlay)]
    samples = [_there(place, "samples", sample) for sample in rendering.samples]
    components = [_there(place, "components", "pdb")] if rendering.gateways else []
    if rendering.metrics:  # before the GPU, which changes the order of containers
        components.append(_there(place, "components", "prometheus"))
    if rendering.gpu:
        components.append(_there(place, "components", "gpu"))
    return {
        "apiVersion": f"{_KUSTOMIZE}/v1beta1",
        "kind": "Kustomization",
        "namespace": rendering.namespace,
        "resources": [*overlay, *samples, *(gateway.name for gateway in rendering.gateways)],
        "components": components,
        "images": [_image(name, to) for name, to in (rendering.images or {}).items()],
        "patches": [*_storage(rendering.storage_class), *_external(rendering.host)],
    }


def _of_gateway(rendering: Rendering, gateway: Gateway, place: Path) -> dict[str, Any]:
    return {
        "apiVersion": f"{_KUSTOMIZE}/v1beta1",
        "kind": "Kustomization",
        "nameSuffix": f"-{gateway.name}",
        "resources": [_there(place, "samples", "gateway")],
        "patches": [_patch(_gateway_patch(rendering, gateway))],
    }


def _gateway_patch(rendering: Rendering, gateway: Gateway) -> dict[str, Any]:
    instance = {"app.kubernetes.io/instance": gateway.name}
    demo = rendering.overlay == "laptop" and rendering.data is None
    data = DEMO if demo else rendering.data
    told = {"WILDFLOWER_HOSTS": gateway.hosts} | ({} if data is None else {"WILDFLOWER_DATA": data})
    container = {
        "name": "client",
        "env": [{"name": name, "value": value} for name, value in told.items()],
    }
    volumes: list[dict[str, Any]] = [{"name": "credentials", "projected": _key_of(gateway)}]
    if demo:
        container["workingDir"] = "/data"  # where `sensors` is imported from
        demo_data = {"configMap": {"name": "wildflower-demo"}, "persistentVolumeClaim": None}
        volumes.append({"name": "data", **demo_data})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "wildflower-client", "labels": instance},
        "spec": {
            "selector": {"matchLabels": instance},
            "template": {
                "metadata": {"labels": instance},
                "spec": {"containers": [container], "volumes": volumes},
            },
        },
    }


def _key_of(gateway: Gateway) -> dict[str, Any]:
    key = {"key": "client.key", "path": "client.key"}
    ca = {"key": "ca.pem", "path": "ca.pem"}
    secret = {"name": secret_name(gateway.name), "items": [key]}
    return {
        "defaultMode": 0o440,
        "sources": [{"secret": secret}, {"configMap": {"name": "wildflower-ca", "items": [ca]}}],
    }


def secret_name(gateway: str) -> str:
    """Returns the name of the Secret with a gateway's key."""
    return f"wildflower-client-{gateway}"


def _storage(storage_class: str | None) -> list[dict[str, Any]]:
    if storage_class is None:
        return []
    change = [{"op": "add", "path": "/spec/storageClassName", "value": storage_class}]
    return [{"target": {"kind": "PersistentVolumeClaim"}, "patch": json.dumps(change)}]


def _external(host: str | None) -> list[dict[str, Any]]:
    if host is None:
        return []
    annotations = {"external-dns.alpha.kubernetes.io/hostname": host}
    metadata = {"name": SERVICE, "annotations": annotations}
    return [_patch({"apiVersion": "v1", "kind": "Service", "metadata": metadata})]


def _patch(value: dict[str, Any]) -> dict[str, Any]:
    return {"patch": json.dumps(value)}


def _image(name: str, told: str) -> dict[str, str]:
    new, at, digest = told.partition("@")
    if at:
        return {"name": name, "newName": new, "digest": digest}
    new, colon, tag = told.rpartition(":")
    if not colon or "/" in tag or tag == "latest":
        raise InputError(f"image {told!r}: expected NAME:TAG or NAME@DIGEST; no tag latest")
    return {"name": name, "newName": new, "newTag": tag}


def _there(place: Path, kind: str, name: str) -> str:
    """Returns a folder of `k8s/` as a kustomization names it, which may not be absolutely."""
    folder = MANIFESTS / kind / name
    if not folder.is_dir():
        raise InputError(f"{kind} {name!r}: there are {', '.join(choices(kind))}")
    return os.path.relpath(folder.resolve(), place)


def _write(folder: Path, kustomization: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    filled = {key: value for key, value in kustomization.items() if value != []}
    (folder / "kustomization.yaml").write_text(json.dumps(filled, indent=2))


def names_of(samples: Sequence[str]) -> tuple[str, ...]:
    """Returns the samples that may be asked for by name; gateways have their own options."""
    if "gateway" in samples:
        raise InputError("--sample gateway: gateways are rendered by --clients and --gateway")
    return tuple(dict.fromkeys(samples))
