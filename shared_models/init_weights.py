"""Where the weights lie that a run begins with, and which they are. Without torch: it is slow."""

from __future__ import annotations

from pathlib import Path

from shared_models.config import Config
from shared_models.errors import InputError
from shared_models.files import sha256_of


def settled_init(config: Config) -> Config:
    """Returns the config with the hash of the weights that it begins with, if it names some.

    From then on the run is one of these very weights. Raises `InputError` when they are not here.
    """
    if config.init is None or config.init_sha256 is not None:
        return config
    return config.model_copy(update={"init_sha256": sha256_of(init_file(config.init))})


def init_file(init: str) -> Path:
    """Returns the file that `init` means; raises `InputError` when it is not here."""
    path = Path(init)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise InputError(
            f"init: {path}: there is no such file here; it is read where the server runs: name a "
            "finished run's folder or a .safetensors file there"
        )
    return path
