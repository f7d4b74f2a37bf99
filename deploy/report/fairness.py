"""On whom it works badly: the spread over clients, the skew of labels, what is mixed up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from deploy.report.blocks import Block, Figure, Note, Section, Table
from deploy.report.findings import label_of
from deploy.report.learning import WORST_TENTH, Curve, curve, figure_of
from deploy.report.partition import Skew
from deploy.report.plots import bars, dots, heat, layout, plain
from deploy.report.story import OnClients, Story
from deploy.report.words import joined, named, number, percent, plural, titled
from server.sample_records import Samples

T = TypeVar("T")

_WORST = 10
_ENOUGH = 5  # examples of a label
_MOST_NAMED = 40  # clients: then a heat map has no room for each name
_MOST_LABELS, _SHOWN_LABELS = 30, 15


def fairness(story: Story) -> Section:
    """Returns the section that says whom the model serves badly, and what it mixes up."""
    blocks = [*_clients(story), *_skew(story), *_confusion(story)]
    return Section("fairness", "On whom does it work badly?", tuple(blocks))


def _clients(story: Story) -> list[Block]:
    told, metric = story.clients, story.metric
    if told is None or not told.metrics.get(metric):
        return [
            Note(
                "Not recorded: how good the model is for each client. With clients_fraction = 1.0 "
                "under [evaluate] every client measures it on the examples that it trains on.",
                "missing",
            )
        ]
    less = story.less_is_better(metric)
    order = _worst_first(told.metrics[metric], less=less)
    blocks: list[Block] = [_spread(told, metric), *_ranking(story, told, order)]
    blocks += [*_over_rounds(story), _worst_table(story, told, order)]
    if told.failed:
        rows = tuple((f"{k}", reason) for k, reason in told.failed[:50])
        blocks.append(Table("Clients that could not measure", ("client ", "reason"), rows))
    return blocks


def _worst_first(values: Sequence[float], *, less: bool) -> list[int]:
    return sorted(range(len(values)), key=lambda k: values[k], reverse=less)


def worst_tenth(values: Sequence[float], *, less: bool) -> float:
    """Returns the mean over the tenth of the clients whom the model serves worst, rounded up.

    >>> worst_tenth([0.1, 0.9, 0.8], less=False)
    0.1
    """
    worst = _worst_first(values, less=less)[: math.ceil(len(values) / 10)]
    return sum(values[k] for k in worst) / len(worst)


def _spread(told: OnClients, metric: str) -> Figure:
    values = sorted(told.metrics[metric])
    middle = values[len(values) // 2]
    bins = {"nbinsx": min(20, max(5, len(values) // 2))}
    return Figure(
        f"How {named(metric)} is spread over clients",
        f"Histogram of {named(metric)} of {plural(len(values), 'client')}: from "
        f"{number(values[0])} to {number(values[-1])}, half of them below {number(middle)}.",
        [
            {
                "type": "histogram",
                "x": values,
                **bins,
                "marker": {"color": "var(--c1)", "line": {"width": 1, "color": "var(--card)"}},
                "hovertemplate": "%{x}: %{y} clients<extra></extra>",
            }
        ],
        {**layout(named(metric), "clients"), "showlegend": False, "bargap": 0.02},
        note=f"After round {told.round} of stage {told.stage}, on the clients' own examples, which "
        "they also train on: new examples may fare worse.",
    )


def _ranking(story: Story, told: OnClients, order: Sequence[int]) -> list[Block]:
    """Returns the quality over the size of clients: are the small ones served worse?"""
    metric = story.metric
    tenth = set(order[: math.ceil(len(order) / 10)])
    groups = [("worst tenth", sorted(tenth), 1), ("other clients", sorted({*order} - tenth), 0)]
    values = told.metrics[metric]
    return [
        Figure(
            f"{titled(metric)} and number of examples",
            f"Scatter plot of {named(metric)} over the number of examples that a client has; the "
            f"worst tenth of the clients begins at {number(values[order[0]])}.",
            [
                dots(
                    name,
                    [told.examples[k] for k in places],
                    [values[k] for k in places],
                    place,
                    text=[plain(client_name(story, told.client_ids[k])) for k in places],
                    hovertemplate="%{text}<br>%{y:.4~g}, %{x} examples<extra></extra>",
                )
                for name, places, place in groups
                if places
            ],
            {**layout("examples", named(metric)), "hovermode": "closest"},
        )
    ]


def _over_rounds(story: Story) -> list[Block]:
    metric = story.metric

    def part(key: str, name: str, look: int) -> Curve:
        return curve(story, name, lambda record: (record.clients_eval or {}).get(key), look)

    less = story.less_is_better(metric)
    parts = [
        part(f"{metric}_p10" if less else f"{metric}_p90", "a tenth of the clients is better", 0),
        part(f"{metric}_p50", "half of the clients are better", 1),
        part(f"{metric}_worst10", WORST_TENTH, 2),
    ]
    if sum(len(own.there) for own in parts) <= len(parts):
        return []
    title = "Spread over clients by round"
    return [figure_of(story, title, named(metric), parts, less=less)]


def client_name(story: Story, client_id: int) -> str:
    """Returns what the data calls a client, with its id."""
    skew = story.skew
    if skew is not None and skew.names and client_id in skew.clients:
        return f"client {client_id} ({skew.names[skew.clients.index(client_id)]})"
    return f"client {client_id}"


def _worst_table(story: Story, told: OnClients, order: Sequence[int]) -> Table:
    others = [name for name in told.metrics if name != story.metric]
    columns = ("client", "examples ", *(f"{named(n)} " for n in (story.metric, *others)))
    return Table(
        "The clients that it serves worst",
        (*columns, "most of its examples are"),
        tuple(
            (
                client_name(story, told.client_ids[k]),
                f"{told.examples[k]:,}",
                *(number(told.metrics[name][k]) for name in (story.metric, *others)),
                _main_labels(story, told.client_ids[k]),
            )
            for k in order[:_WORST]
        ),
    )


def _main_labels(story: Story, client_id: int) -> str:
    skew = story.skew
    if skew is None or client_id not in skew.clients:
        return "-"
    counts = skew.counts[skew.clients.index(client_id)]
    total = sum(counts) or 1
    most = sorted(range(len(counts)), key=lambda k: -counts[k])[:2]
    return ", ".join(f"{skew.labels[k]} ({percent(counts[k] / total)})" for k in most if counts[k])


def _skew(story: Story) -> list[Block]:
    skew = story.skew
    if skew is None:
        return [_no_skew(story)]
    return [_skew_figure(story, skew)] if len(skew.labels) > 1 else []


def _no_skew(story: Story) -> Note:
    on_fleet = story.manifest.get("engine") == "flower"
    why = (
        "labels stay on the devices of a fleet."
        if on_fleet
        else "partition.json is written by `wildflower simulate` when the first round begins."
    )
    return Note(f"Not recorded: who has which labels; {why}", "missing")


def _skew_figure(story: Story, skew: Skew) -> Figure:
    whole = [[count / (sum(row) or 1) for count in row] for row in skew.counts]
    places = most_frequent([sum(column) for column in zip(*skew.counts, strict=True)])
    shares, counts = _columns(whole, places), _columns(skew.counts, places)
    names = [client_name(story, k) for k in skew.clients]
    apart = _apart(whole)
    low, middle, high = skew.sizes
    shown = "" if len(skew.clients) == skew.of else f" {len(skew.clients)} of them are shown."
    return Figure(
        "Who has which labels",
        f"Heat map of the share of each label in each client's {skew.unit}. A client's mix is "
        f"{percent(apart)} away from that of all, on average.",
        [
            heat(
                [skew.labels[k] for k in places],
                names,
                shares,
                zmin=0,
                zmax=max(max(row) for row in shares) or 1.0,
                customdata=counts,
                hovertemplate="%{y}, label %{x}: %{z:.0%} (%{customdata})<extra></extra>",
                colorbar={
                    "tickformat": ".0%",
                    "thickness": 12,
                    "outlinewidth": 0,
                    "title": {"text": f"of a client's {skew.unit}", "side": "right"},
                },
            )
        ],
        {
            "xaxis": {"type": "category", "title": {"text": "label"}},
            "yaxis": {"type": "category", "autorange": "reversed", "showticklabels": False}
            if len(names) > _MOST_NAMED
            else {"type": "category", "autorange": "reversed"},
        },
        note=f"A row is a client, a field the share of its {skew.unit} that have the label below. "
        f"Partition {skew.partition}: {plural(skew.of, 'client')} with {low:,.0f} to "
        f"{high:,.0f} examples, median {middle:,.0f}.{shown} Skew: a client's labels are "
        f"{percent(apart)} away from the mix of all (0 %: everyone has the same mix)."
        f"{_cut(len(places), len(skew.labels))}",
        height=min(640, 140 + 14 * len(names)),
        wide=True,
    )


def most_frequent(counts: Sequence[int]) -> list[int]:
    """Returns the places of the labels to show: all, or of many the most frequent, in order.

    >>> most_frequent([0, 3])
    [0, 1]
    """
    if len(counts) <= _MOST_LABELS:
        return list(range(len(counts)))
    return sorted(sorted(range(len(counts)), key=lambda k: -counts[k])[:_SHOWN_LABELS])


def _columns(rows: Sequence[Sequence[T]], places: Sequence[int]) -> list[list[T]]:
    return [[row[k] for k in places] for row in rows]


def _cut(shown: int, of: int) -> str:
    return "" if shown == of else f" Of {of} labels the {shown} most frequent are shown."


def _apart(shares: Sequence[Sequence[float]]) -> float:
    """Returns the mean total variation distance of the rows from their mean."""
    mean = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    gaps = (abs(a - b) for row in shares for a, b in zip(row, mean, strict=True))
    return math.fsum(gaps) / 2 / len(shares)


def _confusion(story: Story) -> list[Block]:
    samples = story.samples
    if samples is None:
        late = "is made when the learning stages are over."
        if story.status in {"running", "unfinished"}:
            return [Note(f"Not recorded yet: what the model mixes up {late}", "missing")]
        return [
            Note(
                "Not recorded: what the model mixes up. samples.json is missing: it is written at "
                "the end where the server has test data and the whole model.",
                "missing",
            )
        ]
    if not any(map(any, samples.confusion)):
        return []
    return [_matrix(samples), *_mixed_up(samples), _by_label(samples)]


def _matrix(samples: Samples) -> Figure:
    whole = samples.confusion
    places = most_frequent([sum(row) for row in whole])
    counts = _columns([whole[k] for k in places], places)
    shares = [
        [count / (sum(whole[k]) or 1) for count in row]
        for k, row in zip(places, counts, strict=True)
    ]
    labels = [label_of(samples, place) for place in places]
    right = sum(row[k] for k, row in enumerate(whole)) / max(1, sum(map(sum, whole)))
    numbers = {"text": counts, "texttemplate": "%{text}"}
    return Figure(
        "What is taken for what",
        f"Confusion matrix of {len(labels)} of {len(whole)} labels; {percent(right)} of all "
        f"{samples.examples:,} test examples are on the diagonal.",
        [
            heat(
                labels,
                labels,
                shares,
                zmin=0,
                zmax=1,
                showscale=False,
                customdata=counts,
                hovertemplate="%{y} taken for %{x}: %{customdata} (%{z:.0%})<extra></extra>",
                **(numbers if len(labels) <= 12 else {}),
            )
        ],
        {
            "xaxis": {"type": "category", "title": {"text": "the model says"}},
            "yaxis": {"type": "category", "autorange": "reversed", "title": {"text": "it is"}},
        },
        note=f"{samples.examples:,} test examples, evenly spread, through the final model. "
        "A row is all examples that truly have a label, a field how many of them the model takes "
        f"for the label below. Colours are shares of the row.{_cut(len(places), len(whole))}",
        height=min(720, 200 + 28 * len(labels)),
    )


def recognised(samples: Samples) -> list[tuple[float, int]]:
    """Returns which share of each label's examples is recognised, with its place, worst first.

    Labels of too few examples to tell are left away, where there are others.
    """
    sizes = [sum(row) for row in samples.confusion]
    enough = [k for k, size in enumerate(sizes) if size >= _ENOUGH]
    places = enough or [k for k, size in enumerate(sizes) if size]
    return sorted((samples.confusion[k][k] / sizes[k], k) for k in places)


def _mixed_up(samples: Samples) -> list[Table]:
    counts = samples.confusion
    pairs = [(counts[i][j], i, j) for i in range(len(counts)) for j in range(len(counts)) if i != j]
    worst = sorted((own for own in pairs if own[0]), key=lambda own: -own[0])[:5]
    rows = tuple(
        (label_of(samples, i), label_of(samples, j), str(n), percent(n / sum(counts[i])))
        for n, i, j in worst
    )
    columns = ("it is", "the model says", "times ", "of all such ")
    return [Table("Most frequent mistakes", columns, rows)] if rows else []


def _by_label(samples: Samples) -> Block:
    counts = samples.confusion
    worst = recognised(samples)[:_SHOWN_LABELS]
    if not worst[-1][0]:  # the bars would have no length
        told = joined([label_of(samples, place) for _, place in worst])
        return Note(f"It never finds these labels: {told}.", "warning")
    order, found = [place for _, place in worst], [share for share, _ in worst]
    names = [plain(label_of(samples, k)) for k in order]
    trace = bars("recognised", found, names, orientation="h")
    trace["customdata"] = [sum(counts[k]) for k in order]
    trace["hovertemplate"] = "%{y}: %{x:.1%} of %{customdata}<extra></extra>"
    return Figure(
        "Labels that it finds least often",
        "Bar chart of how many examples of each label are recognised; least often "
        f"{label_of(samples, order[0])}: {percent(found[0])}.",
        [trace],
        {
            "xaxis": {"range": [0, 1], "tickformat": ".0%", "title": {"text": "recognised"}},
            "yaxis": {"type": "category", "autorange": "reversed"},
            "showlegend": False,
        },
        height=120 + 22 * len(order),
    )
