"""The best round of a stage so far: what early stopping counts from, whose weights are kept."""

from __future__ import annotations

from collections.abc import Collection

from server.records import Best, RoundRecord
from shared_models.config import TrainStage

_LOSS = "loss"


def smaller_is_better(metric: str, costs: Collection[str] = ()) -> bool:
    """Whether less of a metric is better: the loss, and what the task calls its costs."""
    return metric == _LOSS or metric in costs


def measure(record: RoundRecord) -> Best | None:
    """Returns what a round is judged by, or None when nobody measured it.

    That is the task's first metric, or the loss where it has none: on the server's data, or on
    the clients' where the server has none.
    """
    told = record.eval or record.clients_eval
    if told is None:
        return None
    # Clients report counts and a spread besides their means: a mean has its percentiles beside it.
    means = [name for name in told if record.eval or f"{name}_p50" in told]
    metric = next((name for name in means if name != _LOSS), _LOSS)
    return Best(record.round, metric, told[metric])


def better(before: Best | None, now: Best | None, costs: Collection[str] = ()) -> Best | None:
    """Returns the better of two rounds, of equal ones the one before; less of `costs` is better.

    >>> better(Best(1, "accuracy", 0.5), Best(2, "accuracy", 0.5)).round
    1
    >>> better(Best(1, "loss", 0.5), Best(2, "loss", 0.4)).round
    2
    >>> better(Best(1, "error", 0.5), Best(2, "error", 0.4), {"error"}).round
    2
    """
    if now is None or before is None:
        return now or before
    sign = -1.0 if smaller_is_better(now.metric, costs) else 1.0
    return now if sign * now.value > sign * before.value else before


def has_stopped(stage: TrainStage, record: RoundRecord) -> bool:
    """Whether this round is the stage's last because the best one is too old."""
    patience, best = stage.early_stopping_rounds, record.best
    if patience is None or best is None or measure(record) is None:
        return False
    return record.round - best.round >= patience
