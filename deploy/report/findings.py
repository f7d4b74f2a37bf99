"""What numbers alone do not say: whether a model is any good, and whether it was better before."""

from __future__ import annotations

from deploy.edge.artefact import Artefact
from deploy.report.story import Stage, Story, value_of
from server.records import RoundRecord
from server.sample_records import Samples

SIMULATED = ("inline", "ray")
BLOCKS = (
    "A block of simulated clients shares one message and one answer: devices of a fleet, each "
    "alone, would exchange more."
)
TRAINED_ON = "the clients' own data, which they also train on"
_CLEARLY = 0.02  # of a score from 0 to 1
_HARDLY = 0.05


def final(story: Story) -> tuple[Stage, RoundRecord] | None:
    """Returns the newest measured round, or the one whose weights its stage keeps."""
    for stage in reversed(story.stages):
        measured = _measured(stage, story.metric)
        if measured:
            return stage, _kept(stage, measured)
    return None


def _measured(stage: Stage, metric: str) -> list[RoundRecord]:
    return [record for record in stage.records if value_of(record, metric) is not None]


def _kept(stage: Stage, measured: list[RoundRecord]) -> RoundRecord:
    best = measured[-1].best if stage.settings.get("keep_best") else None
    kept = (own for own in measured if best is not None and own.round == best.round)
    return next(kept, measured[-1])


def final_value(story: Story) -> float | None:
    """Returns what the newest measured model is worth, by the story's metric."""
    found = final(story)
    return None if found is None else value_of(found[1], story.metric)


def is_score(story: Story) -> bool:
    """Whether the metric runs from 0 to 1, and more is better."""
    values = [value_of(record, story.metric) for record in story.records]
    within = all(0 <= value <= 1 for value in values if value is not None)
    return within and story.metric != "loss" and not story.less_is_better(story.metric)


def better_before(story: Story) -> tuple[Stage, RoundRecord] | None:
    """Returns the best round of the last stage, where it is clearly better than the final one."""
    found, value = final(story), final_value(story)
    if found is None or value is None or not is_score(story):
        return None
    rounds = _measured(found[0], story.metric)
    best = max(rounds, key=lambda record: value_of(record, story.metric) or 0.0)
    return (found[0], best) if (value_of(best, story.metric) or 0.0) - value > _CLEARLY else None


def baseline(story: Story) -> tuple[str, float] | None:
    """Returns the most frequent label of the test data, and the accuracy of always saying it."""
    samples = story.samples
    if samples is None or story.metric != "accuracy" or not any(map(any, samples.confusion)):
        return None
    sizes = [sum(row) for row in samples.confusion]
    place = sizes.index(max(sizes))
    return label_of(samples, place), sizes[place] / sum(sizes)


def is_useless(story: Story) -> bool:
    """Whether the model is hardly better than always saying the same."""
    value, least = final_value(story), baseline(story)
    return value is not None and least is not None and value - least[1] < _HARDLY


def label_of(samples: Samples, place: int) -> str:
    """Returns the name of a label, visible also where it is white space."""
    label = samples.labels[place] if place < len(samples.labels) else str(place)
    return repr(label) if label.isspace() else label


def quoted(label: str) -> str:
    """Returns a label in quotes, which one of white space has already.

    >>> quoted("walking"), quoted("' '")
    ("'walking'", "' '")
    """
    return label if label == repr(label.strip("'")) else f"'{label}'"


def failed_gates(story: Story) -> tuple[Artefact, ...]:
    """Returns the files that failed, where that is all for which the run did."""
    bad = tuple(file for file in story.files if not file.passed)
    only = story.status == "failed" and any(story.reason.startswith(f"{f.file}:") for f in bad)
    return bad if only else ()


def clients_mean(story: Story) -> float | None:
    """Returns the mean over the clients' examples of what they measured last."""
    told = story.clients
    if told is None:
        return None
    own = (r for r in story.records if (r.stage, r.round) == (told.stage, told.round))
    record = next(own, None)
    return None if record is None else (record.clients_eval or {}).get(story.metric)


def is_simulated(story: Story) -> bool:
    """Whether its clients are workers of this machine, a block of them at a time."""
    return story.manifest.get("engine") in SIMULATED


def carried(story: Story) -> str:
    """Returns in words what its bytes went over."""
    return "exchanged with the simulated workers" if is_simulated(story) else "on the wire"
