"""A kubelet of one page: plays rendered manifests with podman, under their own security context.

What it does not play: Services other than by their names, NetworkPolicies, scheduling. It is asked
for pods one by one, so that a test may kill one and have it come again, with the same volumes.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.k8s_rules import Doc, Pod, name_of, pods_of

_SERVING = health_pb2.HealthCheckResponse.SERVING


def podman(*arguments: str, check: bool = True, timeout: float = 120) -> str:
    """Runs podman; returns what it says."""
    done = subprocess.run(
        ["podman", *arguments], capture_output=True, text=True, check=False, timeout=timeout
    )
    if check and done.returncode:
        raise AssertionError(f"podman {' '.join(arguments)}: {done.stderr}")
    return done.stdout.strip()


@dataclass
class Player:
    """A cluster of one node."""

    docs: list[Doc]
    folder: Path
    network: str
    aliases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        podman("network", "create", self.network)

    def close(self) -> None:
        """Ends all pods."""
        for pod in pods_of(self.docs):
            self.delete(pod.owner, check=False)
        podman("network", "rm", "--force", self.network, check=False)

    def start(self, owner: str) -> None:
        """Makes a controller's pod, as if it had been applied, or had come again."""
        pod = self._pod(owner)
        name = self._name(owner)
        labels = ("--network", self.network, "--hostname", name[:60])
        alias = [word for s in self._services(pod) for word in ("--network-alias", s)]
        podman("pod", "create", "--name", name, *labels, *alias)
        for container in pod.spec["containers"]:
            podman("run", "--detach", "--pod", name, *self._options(pod, container))

    def kill(self, owner: str) -> None:
        """Takes a pod's node away: SIGKILL to all, no word of good-bye."""
        podman("pod", "kill", "--signal", "KILL", self._name(owner), check=False)
        self.delete(owner)

    def delete(self, owner: str, *, check: bool = True) -> None:
        """Removes a pod, at once."""
        podman("pod", "rm", "--force", "--time", "0", self._name(owner), check=check)

    def stop(self, owner: str) -> dict[str, int]:
        """Asks a pod's containers to end, as kubelet does; returns their exit codes."""
        pod = self._pod(owner)
        names = [self._container(owner, container) for container in pod.spec["containers"]]
        grace = str(pod.spec["terminationGracePeriodSeconds"])
        podman("stop", "--time", grace, *names)
        return {name.rpartition(".")[2]: self._state(name)["ExitCode"] for name in names}

    def code(self, owner: str) -> int | None:
        """Returns how a Job's pod ended; None while it runs."""
        (container,) = self._pod(owner).spec["containers"]
        state = self._state(self._container(owner, container))
        return None if state["Running"] else state["ExitCode"]

    def is_ready(self, owner: str) -> bool:
        """Whether all readiness probes of a pod are content."""
        probes = [c["readinessProbe"]["grpc"] for c in self._pod(owner).spec["containers"]]
        return all(self._serves(owner, probe["port"], probe["service"]) for probe in probes)

    def logs(self, owner: str) -> str:
        """Returns what a pod's containers said."""
        containers = self._pod(owner).spec["containers"]
        return "\n".join(
            podman("logs", self._container(owner, container), check=False)
            for container in containers
        )

    def inspect(self, owner: str, container: str) -> dict[str, Any]:
        """Returns what podman knows of a container."""
        found: dict[str, Any] = json.loads(podman("inspect", f"{self._name(owner)}.{container}"))[0]
        return found

    def claim(self, name: str) -> Path:
        """Returns the folder of a volume that stays."""
        return self.folder / "claims" / name

    def _serves(self, owner: str, port: int, service: str) -> bool:
        with grpc.insecure_channel(f"{self._address(owner)}:{port}") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                told = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
            except grpc.RpcError:
                return False
            return bool(told.status == _SERVING)

    def _address(self, owner: str) -> str:
        infra = json.loads(podman("pod", "inspect", self._name(owner)))["InfraContainerID"]
        networks = json.loads(podman("inspect", infra))[0]["NetworkSettings"]["Networks"]
        return str(networks[self.network]["IPAddress"])

    def _state(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(podman("inspect", container))[0]["State"]
        return found

    def _pod(self, owner: str) -> Pod:
        return next(pod for pod in pods_of(self.docs) if pod.owner == owner)

    def _name(self, owner: str) -> str:
        return f"{self.network}-{owner.partition('/')[2]}"

    def _container(self, owner: str, container: Doc) -> str:
        return f"{self._name(owner)}.{container['name']}"

    def _services(self, pod: Pod) -> Iterator[str]:
        for doc in self.docs:
            if doc["kind"] == "Service":
                selector = doc["spec"]["selector"]
                if all(pod.labels.get(key) == value for key, value in selector.items()):
                    yield doc["metadata"]["name"]

    def _options(self, pod: Pod, container: Doc) -> list[str]:
        own = pod.spec["securityContext"]
        secure = container["securityContext"]
        assert secure["capabilities"] == {"drop": ["ALL"]}
        assert secure["readOnlyRootFilesystem"]
        assert not secure["allowPrivilegeEscalation"]
        told = {v["name"]: str(v["value"]) for v in container.get("env", [])}
        options = ["--name", self._container(pod.owner, container)]
        options += ["--user", f"{own['runAsUser']}:{own['runAsGroup']}"]
        options += ["--group-add", str(own["fsGroup"]), "--cap-drop", "ALL", "--read-only"]
        options += ["--read-only-tmpfs=false", "--security-opt", "no-new-privileges"]
        options += ["--memory", container["resources"]["limits"]["memory"].replace("i", "").lower()]
        options += [word for pair in told.items() for word in ("--env", "=".join(pair))]
        if "workingDir" in container:
            options += ["--workdir", container["workingDir"]]
        for mount in container["volumeMounts"]:
            options += self._mounted(pod, mount)
        arguments = [_filled(argument, told) for argument in container["args"]]
        return [*options, container["image"], *arguments]

    def _mounted(self, pod: Pod, mount: Doc) -> list[str]:
        volume: Doc = next(v for v in pod.spec["volumes"] if v["name"] == mount["name"])
        if "emptyDir" in volume:
            return ["--tmpfs", f"{mount['mountPath']}:rw,mode=1777"]
        place = self._folder_of(volume, pod)
        mode = "ro" if mount.get("readOnly") else "rw"
        return ["--volume", f"{place}:{mount['mountPath']}:{mode}"]

    def _folder_of(self, volume: Doc, pod: Pod) -> Path:
        group = pod.spec["securityContext"]["fsGroup"]
        if "persistentVolumeClaim" in volume:
            place = self.claim(volume["persistentVolumeClaim"]["claimName"])
            if not place.exists():  # OnRootMismatch
                place.mkdir(parents=True)
                os.chown(place, 0, group)
                place.chmod(0o2775)
            return place
        place = self.folder / "mounts" / self._name(pod.owner) / str(volume["name"])
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        told: Doc = volume.get("projected") or volume["configMap"]
        mode = told.get("defaultMode", 0o644)
        for name, content in self._files(volume):
            (place / name).write_bytes(content)
            os.chown(place / name, 0, group)
            (place / name).chmod(mode)
        return place

    def _files(self, volume: Doc) -> Iterator[tuple[str, bytes]]:
        for source in volume.get("projected", {}).get("sources", [volume]):
            kind = "Secret" if "secret" in source else "ConfigMap"
            told: Doc = source.get("secret") or source["configMap"]
            doc = next(d for d in self.docs if name_of(d) == f"{kind}/{told['name']}")
            paths = {item["key"]: item["path"] for item in told.get("items", [])}
            for key, value in doc["data"].items():
                content = base64.b64decode(value) if kind == "Secret" else value.encode()
                if not paths or key in paths:
                    yield paths.get(key, key), content


def _filled(argument: str, told: dict[str, str]) -> str:
    """Puts variables into an argument, as Kubernetes does."""
    return re.sub(r"\$\((\w+)\)", lambda found: told.get(found[1], found[0]), argument)


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Waits for something that takes its time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(1)
