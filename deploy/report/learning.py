"""How well it learnt: metrics and losses by round, by stage, by time."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from deploy.report.blocks import Block, Figure, Note, Section, Table
from deploy.report.findings import is_score
from deploy.report.plots import Trace, axis, layout, line, plain, rounds_axis, score_axis
from deploy.report.story import Stage, Story, means, value_of
from deploy.report.words import duration, named, number, titled
from server.records import RoundRecord

WORST_TENTH = "worst tenth of the clients, mean"
_SERVER = "on the server's test data"
_CLIENTS = "on the clients' training data, over all examples"
_MOST_OTHERS = 4


@dataclass(frozen=True)
class Curve:
    """A value by round, None where it was not measured; `look` is its place among the colours."""

    name: str
    values: tuple[float | None, ...]
    look: int = 0

    @property
    def there(self) -> list[tuple[int, float]]:
        """The places and values that there are."""
        return [(place, value) for place, value in enumerate(self.values) if value is not None]


def learning(story: Story) -> Section:
    """Returns the section that says how well the model learnt."""
    blocks: list[Block] = []
    if not story.records:
        blocks.append(Note("No round has finished yet.", "missing"))
    else:
        blocks += [*_metric_figures(story), *_loss_figure(story), *_by_time(story)]
        blocks += [*_other_figures(story), stage_table(story)]
    return Section("learning", "How well did it learn?", tuple(blocks))


def curve(
    story: Story, name: str, get: Callable[[RoundRecord], float | None], look: int = 0
) -> Curve:
    """Returns a value of each round."""
    return Curve(name, tuple(get(record) for record in story.records), look)


def eval_curve(story: Story, metric: str, more: str = "", look: int = 0) -> Curve:
    """Returns what the server measured."""
    return curve(story, f"{_SERVER}{more}", lambda record: (record.eval or {}).get(metric), look)


def client_curves(story: Story, metric: str) -> list[Curve]:
    """Returns what clients measured on the data that they train on: the mean, and the worst."""

    def of(key: str) -> Callable[[RoundRecord], float | None]:
        return lambda record: (record.clients_eval or {}).get(key)

    return [
        curve(story, _CLIENTS, of(metric), 1),
        curve(story, WORST_TENTH, of(f"{metric}_worst10"), 2),
    ]


def course(curve: Curve, rounds: Sequence[int], *, less: bool) -> str:
    """Returns in words how a curve runs, empty where nothing was measured."""
    there = curve.there
    if not there:
        return ""
    best = (min if less else max)(there, key=lambda point: point[1])
    (first, began), (last, ended) = there[0], there[-1]
    told = f"{curve.name}: {number(began)} after round {rounds[first]}"
    if last != first:
        told += f", {number(ended)} after round {rounds[last]}"
        told += f", best {number(best[1])} after round {rounds[best[0]]}"
    return told


def figure_of(
    story: Story, title: str, y: str, curves: Sequence[Curve], *, less: bool, **more: Any
) -> Figure:
    """Returns curves by round, over all stages."""
    rounds = [place for place, _ in story.placed()]
    shown = [own for own in curves if own.there]
    looks = by_round(story, y)
    if not less:
        looks["yaxis"] |= score_axis([value for own in shown for value in own.values])
    words = "; ".join(course(own, rounds, less=less) for own in shown)
    return Figure(
        title,
        f"Line chart of {title.lower()}. {words}.",
        [_line(own, story) for own in shown],
        looks,
        **more,
    )


def _line(own: Curve, story: Story) -> Trace:
    rounds = [place for place, _ in story.placed()]
    parts = parts_of(story, own.values)
    return line(own.name, rounds, own.values, own.look, parts, hovertemplate=_HOVER)


def parts_of(story: Story, values: Sequence[float | None]) -> list[int]:
    """Returns the part of a line that each round is in.

    Another begins with each stage, which may measure other things, and where a measurement is
    missing.
    """
    evaluate = story.config.get("evaluate", {})
    told = evaluate.get("every", 1) if isinstance(evaluate, dict) else 1
    every = told if isinstance(told, int) else 1
    parts, last, part = [], ("", 0), 0
    for (place, record), value in zip(story.placed(), values, strict=True):
        if value is not None:
            near = record.stage == last[0] and place - last[1] <= every
            part, last = part + (not near), (record.stage, place)
        parts.append(part)
    return parts


def by_round(story: Story, y: str) -> dict[str, Any]:
    """Returns a layout over the rounds of all stages."""
    title = "round" if len(story.stages) < 2 else "round, counted over all stages"
    rounds = [place for place, _ in story.placed()]
    return {"xaxis": rounds_axis(title, rounds), "yaxis": axis(y), **stage_marks(story.stages)}


_HOVER = "%{y:.4~g}<extra>%{fullData.name}</extra>"


def stage_marks(stages: Sequence[Stage]) -> dict[str, Any]:
    """Returns where stages begin, as lines and names; nothing for a single one."""
    begun = [stage for stage in stages if stage.records]
    if len(stages) < 2:
        return {}
    rule = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
    look = {"color": "var(--muted)", "width": 1, "dash": "dot"}
    lines = [
        {**rule, "x0": stage.first + 0.5, "x1": stage.first + 0.5, "line": look}
        for stage in begun[1:]
    ]
    name = {"yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "left", "showarrow": False}
    font = {"color": "var(--muted)", "size": 12}
    names = [
        {**name, "x": stage.first + 0.5, "text": plain(stage.name), "font": font} for stage in begun
    ]
    return {"shapes": lines, "annotations": names, "margin": {"t": 26}}


def _metric_figures(story: Story) -> list[Block]:
    metric = story.metric
    if metric == "loss":
        return []
    robust = eval_curve(story, f"robust_{metric}", ", under attack", 3)
    curves = [eval_curve(story, metric), *client_curves(story, metric), robust]
    if not any(own.there for own in curves):
        return [Note(_not_measured(story), "missing")]
    less = story.less_is_better(metric)
    title = f"{titled(metric)} by round"
    note = "Less is better." if less else ""
    return [figure_of(story, title, named(metric), curves, less=less, note=note, wide=True)]


def _not_measured(story: Story) -> str:
    evaluate = story.config.get("evaluate", {})
    data = evaluate.get("data", "test") if isinstance(evaluate, dict) else "test"
    if data == "none":
        return "Not recorded: how good the model is; evaluate.data = 'test' has the server measure."
    return "Not recorded yet: how good the model is; no round has been evaluated so far."


def _loss_figure(story: Story) -> list[Block]:
    """Returns the losses: those of stages that learn without labels are of another kind."""
    kinds = {stage.name: _LOSSES.get(stage.kind, "Loss") for stage in story.stages}
    found = [
        figure_of(story, f"{title} by round", "loss", curves, less=True)
        for title in dict.fromkeys(kinds.values())
        if (curves := _losses(story, {name for name, own in kinds.items() if own == title}))
    ]
    return [*found] or [Note("Not recorded: no loss was told.", "missing")]


_LOSSES = {"pretrain": "Loss of pretraining", "distill": "Loss of distillation"}


def _losses(story: Story, stages: Set[str]) -> list[Curve]:
    def among(get: Callable[[RoundRecord], float | None]) -> Callable[[RoundRecord], float | None]:
        return lambda record: get(record) if record.stage in stages else None

    curves = [
        curve(story, "in training, on the clients", among(lambda record: record.train_loss), 4),
        curve(story, _SERVER, among(lambda record: (record.eval or {}).get("loss"))),
        curve(story, _CLIENTS, among(lambda record: (record.clients_eval or {}).get("loss")), 1),
    ]
    return [own for own in curves if own.there]


def _by_time(story: Story) -> list[Block]:
    metric, records = story.metric, story.records
    values = [value_of(record, metric) for record in records]
    if not any(value is not None for value in values):
        return []
    clocks = [("real", list(accumulate(record.seconds.total for record in records)))]
    if any(record.waited_s for record in records):
        waited = list(accumulate(record.waited_s or 0.0 for record in records))
        clocks.append(("simulated", waited))
    return [_time_figure(story, clock, seconds, values) for clock, seconds in clocks]


def _time_figure(
    story: Story, clock: str, seconds: Sequence[float], values: Sequence[float | None]
) -> Figure:
    unit, scale = ("min", 60.0) if seconds[-1] > 300 else ("s", 1.0)
    name = named(story.metric)
    text = [f"{plain(r.stage)}, round {r.round}" for r in story.records]
    parts = parts_of(story, values)
    shown = iter([t for t, value in zip(text, values, strict=True) if value is not None])
    ends = [value for value in values if value is not None]
    note = {
        "real": "Seconds that the rounds took, one after another.",
        "simulated": "What the rounds waited for clients, on the simulated clock.",
    }[clock]
    trace = line(name, [own / scale for own in seconds], values, 0 if clock == "real" else 3, parts)
    trace["text"] = ["" if at is None else next(shown) for at in trace["x"]]
    trace["hovertemplate"] = "%{y:.4~g} after %{x:.3~g} " + unit + "<br>%{text}<extra></extra>"
    looks = layout(f"{clock} time, {unit}", name, showlegend=False, hovermode="closest")
    if is_score(story):
        looks["yaxis"] |= score_axis(values)
    return Figure(
        f"{titled(story.metric)} by {clock} time",
        f"Line chart of {name} over {clock} time: {number(ends[-1])} after "
        f"{duration(seconds[-1])}.",
        [trace],
        looks,
        note=note,
    )


def _other_figures(story: Story) -> list[Block]:
    shown = {story.metric, "loss", f"robust_{story.metric}"}
    names = dict.fromkeys(
        name
        for record in story.records
        for name in (record.eval or means(record.clients_eval))
        if name not in shown
    )
    return [_other_figure(story, name) for name in list(names)[:_MOST_OTHERS]]


def _other_figure(story: Story, metric: str) -> Figure:
    own = curve(story, named(metric), lambda record: value_of(record, metric))
    title = f"{titled(metric)} by round"
    less = story.less_is_better(metric)
    return figure_of(story, title, named(metric), [own], less=less, height=260)


def stage_table(story: Story) -> Table:
    """Returns what each stage came to."""
    name = named(story.metric)
    return Table(
        "The stages",
        ("stage", "kind", "rounds ", f"{name} at the end ", "best ", "train loss ", "time "),
        tuple(_stage_row(story, stage) for stage in story.stages),
    )


def _stage_row(story: Story, stage: Stage) -> tuple[str, ...]:
    values = [
        (stage.place(record), value)
        for record in stage.records
        if (value := value_of(record, story.metric)) is not None
    ]
    best = "-"
    if values:
        pick = min if story.less_is_better(story.metric) else max
        number_of, value = pick(values, key=lambda own: own[1])
        best = f"{number(value)} (round {number_of})"
    last = stage.records[-1] if stage.records else None
    return (
        stage.name,
        stage.kind,
        f"{last.round if last else 0} of {stage.rounds}",
        number(values[-1][1] if values else None),
        best,
        number(last.train_loss if last else None),
        duration(sum(record.seconds.total for record in stage.records)),
    )
