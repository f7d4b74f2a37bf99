"""What a run's final model is, in numbers and names, for who reads the manifest."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from shared_models.task import Task, parameter_count


def model_facts(task: Task) -> dict[str, Any]:
    """Returns a task's names, its input, its parameters by part, and how it is judged.

    `metrics` come in the order in which rounds are judged by them; less of `costs` is better.
    """
    return {
        "task": task.name,
        "dataset": task.dataset,
        "answer": task.answer,
        "labels": list(task.labels),
        "input_shape": list(task.input.shape),
        "metrics": list(task.measures()),
        "costs": sorted({*task.costs, "loss"}),
        "parameters": parameter_count(task),
        "parts": _parts(task),
    }


def _parts(task: Task) -> dict[str, int]:
    """Returns how many parameters each part has: names are `<part>.<rest>`."""
    with torch.device("meta"):
        named = task.make_model().named_parameters()
        counts: Counter[str] = Counter()
        for name, parameter in named:
            counts[name.split(".")[0]] += parameter.numel()
    return dict(counts)
