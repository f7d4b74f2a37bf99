"""A run's config: TOML in, frozen values out. Wrong input is one line that names file and key.

Numbers are prefixed by where they act (`local_`, `server_`) and suffixed by their unit.
"""

from shared_models.config.calibration import CalibrateStage
from shared_models.config.compression import PruneStage
from shared_models.config.data import Data, Evaluate
from shared_models.config.faults import Faults
from shared_models.config.plan import Plan
from shared_models.config.reading import (
    BUILTIN,
    parse_config,
    parse_data,
    parse_export,
    read_config,
    to_toml,
)
from shared_models.config.run import Config
from shared_models.config.stages import ExportStage, TrainStage

__all__ = [
    "BUILTIN",
    "CalibrateStage",
    "Config",
    "Data",
    "Evaluate",
    "ExportStage",
    "Faults",
    "Plan",
    "PruneStage",
    "TrainStage",
    "parse_config",
    "parse_data",
    "parse_export",
    "read_config",
    "to_toml",
]
