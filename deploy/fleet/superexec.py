"""Flower's SuperExec that ends with us: `python -m deploy.fleet.superexec FLOWER'S OPTIONS`.

Flower's own `--parent-pid` asks it to end as Ctrl-C does, which it puts off while it waits for a
SuperNode that is gone.

Flower's own way to start an app writes the app's token on its command line, where every user of
the machine can read it, and act as the app until it ends. `Launcher` is in its place.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TASK_TYPE_TO_COMMAND
from flwr.supercore.superexec import run_superexec as runner
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor

from deploy.fleet.disk import prune_apps
from deploy.fleet.processes import PARENT_VARIABLE, end_with_parent

BUNDLES_BYTES = 100_000_000
"""What unpacked bundles may take: some hundred, as they are Python files alone."""

_TIDY_S = 60.0


class Launcher(SubprocessExecutor):
    """Starts an app as Flower does, but hands it its token as a file that has no name."""

    def __init__(self, flower_home: Path) -> None:
        self._flower_home = flower_home
        self._apps: list[subprocess.Popen[bytes]] = []
        self._tidied = -_TIDY_S

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Starts the app; a reason for which that cannot be is logged by Flower."""
        self._tidy()
        try:
            self._apps.append(_start(spec))
        except OSError as error:
            return LaunchResult.failed(str(error))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Forgets apps that ended; Flower calls it all the time."""
        self._apps = [app for app in self._apps if app.poll() is None]

    def _tidy(self) -> None:
        """Removes old bundles while nobody reads from one: only we start who would."""
        self.reconcile()
        now = time.monotonic()
        if not self._apps and now - self._tidied >= _TIDY_S:
            self._tidied = now
            prune_apps(self._flower_home, BUNDLES_BYTES)


def main() -> None:
    """Runs the SuperExec with the options of the command line, which are Flower's own."""
    parent = int(os.environ[PARENT_VARIABLE])  # os.getppid() is another's if it died already
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    from flwr.supercore.cli import flower_superexec

    launcher = Launcher(Path(os.environ["FLWR_HOME"]))
    runner.__dict__.update(get_executor=lambda *_, **__: launcher)
    flower_superexec()


def _start(spec: ExecutionSpec) -> subprocess.Popen[bytes]:
    output = subprocess.DEVNULL if spec.suppress_output else None
    with tempfile.TemporaryFile(buffering=0) as token:
        token.write(spec.token.encode())
        token.seek(0)  # where there is no /proc, the app reads on from here
        command = [*_command(spec), "--token-file", f"/dev/fd/{token.fileno()}"]
        return subprocess.Popen(command, stdout=output, stderr=output, pass_fds=[token.fileno()])


def _command(spec: ExecutionSpec) -> list[str]:
    address = TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type]
    command = [TASK_TYPE_TO_COMMAND[spec.task_type], address, spec.runtime_api_address]
    if spec.insecure:
        command += ["--insecure"]
    elif spec.root_certificates_path is not None:
        command += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        command += ["--parent-pid", str(spec.parent_pid)]
    return command


if __name__ == "__main__":
    main()
