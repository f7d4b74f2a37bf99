"""The run in a few sentences and numbers: what a reader who has a minute takes away."""

from __future__ import annotations

from deploy.report.attendance import share_lost, totals
from deploy.report.blocks import Card
from deploy.report.exports import picks
from deploy.report.fairness import recognised, worst_tenth
from deploy.report.story import Stage, Story, value_of
from deploy.report.words import duration, joined, named, number, percent, plural, size

STATUS = {
    "done": "finished",
    "trained": "trained, nothing exported",
    "running": "running",
    "failed": "failed",
    "unfinished": "not finished",
}


def status(story: Story) -> str:
    """Returns how far the run is, in words."""
    if story.status == "trained" and story.exports:
        return "trained, not exported yet"
    return STATUS[story.status]


def final_value(story: Story) -> float | None:
    """Returns what the newest measured model is worth, by the story's metric."""
    values = [value_of(record, story.metric) for record in reversed(story.records)]
    return next((value for value in values if value is not None), None)


def headline(story: Story) -> tuple[str, ...]:
    """Returns what happened, in sentences."""
    told = [_what(story)]
    told += [f"{_state(story)}: {story.reason}."] if story.reason else []
    if not story.records:
        told.append("No round has finished yet.")
    else:
        told += [_how_well(story), *_whom(story), _attendance(story)]
    if story.files:
        told.append(_ship(story))
    return tuple(told)


def _state(story: Story) -> str:
    return "The run failed" if story.status == "failed" else "It is not finished"


def _what(story: Story) -> str:
    population = story.manifest.get("population", {})
    clients = population.get("clients") if isinstance(population, dict) else None
    parameters = story.model.parameters or story.totals.params
    size_of = f", a model of {parameters:,} parameters," if parameters else ""
    who = f" by {plural(clients, 'client')}" if isinstance(clients, int) else ""
    data = f" on {story.model.dataset}" if story.model.dataset else ""
    own = story.config.get("data", {}).get("name")
    data = f" on {own}" if own else data
    return f"{story.task}{size_of} {_verb(story)} trained{data}{who}, in {_stages(story)}."


def _verb(story: Story) -> str:
    return "is being" if story.status == "running" else "was"


def _stages(story: Story) -> str:
    told = [_rounds(stage) for stage in story.stages]
    return joined(told)


def _rounds(stage: Stage) -> str:
    done = stage.records[-1].round if stage.records else 0
    count = f"{done} of {stage.rounds}" if done < stage.rounds else f"{done}"
    return f"{count} rounds of {stage.name}"


def _how_well(story: Story) -> str:
    value, metric = final_value(story), story.metric
    if value is None:
        return "How good the model is was not measured yet."
    name = named(metric)
    where = "the server's test data" if _on_server(story) else "the clients' own data"
    less = ", where less is better" if story.less_is_better(metric) else ""
    return f"On {where} it has {_article(name)} of {number(value)}{less}."


def _article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _on_server(story: Story) -> bool:
    return any(record.eval and story.metric in record.eval for record in story.records)


def _whom(story: Story) -> list[str]:
    told, metric = story.clients, story.metric
    if told is None or not told.metrics.get(metric):
        return []
    values = told.metrics[metric]
    tenth = worst_tenth(values, less=story.less_is_better(metric))
    mean = number(sum(values) / len(values))
    who = f"Measured by {plural(len(values), 'client')} on their own data, the mean {named(metric)}"
    return [f"{who} is {mean}, and {number(tenth)} for the tenth whom it serves worst."]


def _attendance(story: Story) -> str:
    sums = totals(story.records)
    lost = {fate: count for fate, count in sums.items() if count and fate != "aggregated"}
    if not lost:
        return f"All {sum(sums.values()):,} updates that were asked for counted."
    why = joined([f"{count:,} {fate}" for fate, count in lost.items()])
    return f"{share_lost(story)} updates that were asked for did not count: {why}."


def _ship(story: Story) -> str:
    found = picks(story.files)
    if not found:
        return "No exported file passed its gate: ship none."
    return f"To ship: {joined([f'{pick.file.file} for {pick.family}' for pick in found])}."


def cards(story: Story) -> tuple[Card, ...]:
    """Returns the numbers that matter."""
    found = [_score(story), *_tenth(story), *_labels(story)]
    if story.records:
        sums = totals(story.records)
        asked = sum(sums.values())
        counted = f"{sums['aggregated']:,} of {asked:,} that were asked for"
        share = percent(sums["aggregated"] / asked if asked else 1)
        found.append(Card("updates that counted", share, counted))
        found.append(_time(story))
    found += _file(story)
    return tuple(found)


def _score(story: Story) -> Card:
    note = "the server's test data" if _on_server(story) else "the clients' own data"
    return Card(named(story.metric), number(final_value(story)), note)


def _tenth(story: Story) -> list[Card]:
    told, metric = story.clients, story.metric
    if told is None or not told.metrics.get(metric):
        return []
    value = worst_tenth(told.metrics[metric], less=story.less_is_better(metric))
    return [Card("worst tenth of clients", number(value), named(metric))]


def _labels(story: Story) -> list[Card]:
    found = [] if story.samples is None else recognised(story.samples)
    if not found or story.samples is None:
        return []
    share, place = found[0]
    labels = story.samples.labels
    name = labels[place] if place < len(labels) else str(place)
    return [Card("worst label", percent(share), f"of {name!r} is recognised")]


def _time(story: Story) -> Card:
    seconds = story.totals.total_s or sum(record.seconds.total for record in story.records)
    wire = sum(record.bytes_down + record.bytes_up for record in story.records)
    return Card("time", duration(seconds), f"{size(wire)} on the wire")


def _file(story: Story) -> list[Card]:
    found = picks(story.files)
    if found:
        best = min(found, key=lambda pick: pick.file.size_bytes).file
        return [Card("smallest file to ship", size(best.size_bytes), best.file, "good")]
    return [Card("file to ship", "none", "all failed their gate", "bad")] if story.files else []
