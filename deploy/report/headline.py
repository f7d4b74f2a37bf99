"""The run in a few sentences and numbers: what a reader who has a minute takes away."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from deploy.report.attendance import lost, needed, share_lost, totals
from deploy.report.blocks import Card
from deploy.report.exports import gate_fault, picks
from deploy.report.fairness import client_name, recognised, worst_tenth
from deploy.report.findings import (
    TRAINED_ON,
    baseline,
    better_before,
    carried,
    clients_mean,
    failed_gates,
    final_value,
    is_simulated,
    is_useless,
    label_of,
    quoted,
)
from deploy.report.story import Stage, Story, value_of
from deploy.report.words import duration, joined, named, number, percent, plural, size

STATUS = {
    "done": "finished",
    "trained": "trained, nothing exported",
    "running": "running",
    "failed": "failed",
    "unfinished": "not finished",
}

_SAYS = {
    "mask": "says of each pixel what it belongs to",
    "boxes": "says where in it objects are, as boxes",
}
_MOST_LABELS = 12
_SCALES = {
    "frechet_distance": (
        "That is how far made images are from real ones, 0 if they are alike; no scale says what "
        "is good: hold it against other runs on the same data."
    ),
    "explained_variance": (
        "1 is an answer without error; 0 is no better than always giving the mean."
    ),
    "roc_auc": "1 ranks everything rightly, 0.5 is guessing.",
    "iou": "1 is every pixel right, 0 none of what is looked for.",
    "map50": "1 is every object found and nothing else, 0 none.",
}


def status(story: Story) -> str:
    """Returns how far the run is, in words."""
    if story.status == "trained" and story.exports:
        return "trained, not exported yet"
    if bad := failed_gates(story):
        return f"trained; {len(bad)} of {plural(len(story.files), 'file')} failed their check"
    return STATUS[story.status]


def headline(story: Story) -> tuple[str, ...]:
    """Returns what happened, in sentences."""
    told = [_what(story), *_answers(story)]
    told += [f"Warning: {story.away}."] if story.away else []
    told += _ended(story)
    if not story.records:
        told.append("No round has finished yet.")
        told += [f"It is {story.waiting}."] if story.waiting else []
    else:
        told += [_how_well(story), *_held_against(story), *_better_before(story)]
        told += [*_whom(story), _attendance(story)]
    if story.files:
        told.append(_ship(story))
    return tuple(told)


def _ended(story: Story) -> list[str]:
    if bad := failed_gates(story):
        names = joined([f"{file.file} ({gate_fault(file)})" for file in bad])
        return [f"It is trained. Files that failed their check, and are kept to look at: {names}."]
    state = "The run failed" if story.status == "failed" else "It is not finished"
    return [f"{state}: {story.reason}."] if story.reason else []


def _what(story: Story) -> str:
    population = story.manifest.get("population", {})
    clients = population.get("clients") if isinstance(population, dict) else None
    parameters = story.model.parameters or story.totals.params
    pupils = [own for stage in story.stages if (own := stage.settings.get("student"))]
    *teachers, name = [story.task, *pupils]
    taught = f" that {teachers[-1]} taught" if teachers else ""
    size_of = f", a model of {parameters:,} parameters{taught}," if parameters else ""
    who = f" by {plural(clients, 'client')}" if isinstance(clients, int) else ""
    who += _a_round(story, clients) if who else ""
    data = f" on {story.model.dataset}" if story.model.dataset else ""
    told = story.config.get("data", {})
    data = f" on {told['name']}" if told.get("name") else data
    what = f"{name}{size_of} {_verb(story)} trained{data}{who}"
    begun = f", beginning with the weights in {init}" if (init := story.config.get("init")) else ""
    return f"{what}, in {_stages(story)}{begun}.{_labelled(story, population)}"


def _labelled(story: Story, population: object) -> str:
    """Returns how few labels there are, if there are few and somebody reads them."""
    if story.model.answer == "values":
        return ""
    fraction = float(story.config.get("data", {}).get("labelled_fraction", 1.0))
    if isinstance(population, dict) and "labelled" in population:
        fraction *= population["labelled"] / population["examples"]
    return "" if fraction == 1.0 else f" Of the examples {100 * fraction:.3g} % have a label."


def _answers(story: Story) -> list[str]:
    """Returns what the model takes and says."""
    model = story.model
    takes, says = " x ".join(map(str, model.input_shape)), _SAYS.get(model.answer, "")
    if model.answer == "classes" and len(model.labels) > 1:
        shown = [repr(own) if own.isspace() else own for own in model.labels]
        some = joined(shown) if len(shown) <= _MOST_LABELS else f"{', '.join(shown[:5])} ..."
        says = f"says which of {len(shown)} labels it has: {some}"
    return [f"It takes an example of {takes} numbers and {says}."] if takes and says else []


def _a_round(story: Story, clients: object) -> str:
    """Returns how many clients a round wants, of all that there are."""
    told = [stage.settings.get("clients_per_round") for stage in story.stages]
    counts = sorted(own for own in told if isinstance(own, int))
    most = clients if isinstance(clients, int) else 0
    if not counts:
        return ""
    if counts[0] >= most:
        return ", all of them in each round"
    low, high = counts[0], min(counts[-1], most)
    return f", {low:,} a round" if low == high else f", {low:,} to {high:,} a round"


def _verb(story: Story) -> str:
    return "is being" if story.status == "running" else "was"


def _stages(story: Story) -> str:
    told = [_rounds(stage) for stage in story.stages]
    return joined(told)


def _rounds(stage: Stage) -> str:
    done = stage.records[-1].round if stage.records else 0
    before = f"{done} of " if done < stage.rounds else ""
    return f"{before}{plural(stage.rounds, 'round')} of {stage.name}"


def _how_well(story: Story) -> str:
    value, metric = final_value(story), story.metric
    if value is None:
        return "How good the model is was not measured yet."
    name = named(metric)
    where = "the server's test data" if _on_server(story) else TRAINED_ON
    less = "; less is better" if story.less_is_better(metric) else ""
    return f"On {where}, it has {_article(name)} of {number(value)}{less}.{_scale(story)}"


def _scale(story: Story) -> str:
    """Returns what a value of the metric means, where its name does not say it."""
    told = _SCALES.get(story.metric, "")
    return f" {told}" if told else ""


def _held_against(story: Story) -> list[str]:
    """Returns what a model that looks at nothing would reach."""
    least = baseline(story)
    if least is None:
        return []
    label, value = least
    told = f"Always saying {quoted(label)} would give {number(value)}"
    return [
        f"Warning: it is hardly better than a model that learnt nothing. {told}."
        if is_useless(story)
        else f"{told}, for comparison."
    ]


def _better_before(story: Story) -> list[str]:
    found = better_before(story)
    if found is None:
        return []
    stage, record = found
    value = f"{named(story.metric)} {number(value_of(record, story.metric))}"
    asked = f"keep_best = true in stage {stage.name} would have kept it"
    return [f"Round {stage.place(record)} was better than the last one: {value}; {asked}."]


def _article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _on_server(story: Story) -> bool:
    return any(record.eval and story.metric in record.eval for record in story.records)


def _whom(story: Story) -> list[str]:
    told, metric = story.clients, story.metric
    if told is None or not told.metrics.get(metric):
        return []
    values = told.metrics[metric]
    less = story.less_is_better(metric)
    tenth = number(worst_tenth(values, less=less))
    who = f"{plural(len(values), 'client')} measured it on their own data, which they also train on"
    mean = f"{named(metric)} {number(clients_mean(story))} over all their examples"
    last = (max if less else min)(range(len(values)), key=lambda place: values[place])
    worst = f"{client_name(story, told.client_ids[last])} with {number(values[last])}"
    least = f"on average {tenth} for the tenth whom it serves worst"
    return [f"{who}: {mean}, and {least}. Worst of all is {worst}."]


def _attendance(story: Story) -> str:
    surplus = totals(story.records)["surplus"]
    more = f" {surplus:,} more were surplus: enough others had answered." if surplus else ""
    gone = lost(story.records)
    if not gone:
        return f"All {needed(story.records):,} updates that were needed counted.{more}"
    why = joined([f"{count:,} {fate}" for fate, count in gone.items()])
    told = f"{share_lost(story)} updates that were needed did not count: {why}."
    return f"{told}{_most_often(story)}{more}"


def _most_often(story: Story) -> str:
    """Returns the most frequent reason, and how many faults were injected on purpose."""
    found = Counter((own.status, own.reason) for r in story.records for own in r.failures)
    if not found:
        return ""
    ((status, reason), count), *_ = found.most_common(1)
    told = f" Most often, {plural(count, 'time')}: {status}, because {reason.rstrip('.')}."
    victims = {(r.stage, r.round, own.client_id) for r in story.records for own in r.injected}
    failed = [(r.stage, r.round, own.client_id) for r in story.records for own in r.failures]
    meant = sum(own in victims for own in failed)
    if not meant:
        return told
    many = "All of these" if meant == len(failed) else f"{meant:,} of these {len(failed):,}"
    return f"{told} {many} are faults that the config injects on purpose."


def _ship(story: Story) -> str:
    found = picks(story.files)
    if not found:
        return "No exported file passed its gate: ship none."
    files = joined([f"{pick.file.file} for {pick.family}" for pick in found])
    return f"To ship: {files}. See export/ in the run folder."


def cards(story: Story) -> tuple[Card, ...]:
    """Returns the numbers that matter."""
    found: list[Card] = []
    if story.records:
        found += [_score(story), *_tenth(story), *_labels(story)]
        asked, counted = needed(story.records), totals(story.records)["aggregated"]
        note = f"{counted:,} of {asked:,} that were needed"
        share = percent(counted / asked if asked else 1)
        found.append(Card("updates that counted", share, note))
        found.append(_time(story))
    found += _file(story)
    return tuple(found)


def _score(story: Story) -> Card:
    note = "the server's test data" if _on_server(story) else TRAINED_ON
    tone: Literal["plain", "bad"] = "bad" if is_useless(story) else "plain"
    if least := baseline(story):
        note += f"; always {quoted(least[0])}: {number(least[1])}"
    return Card(named(story.metric), number(final_value(story)), note, tone)


def _tenth(story: Story) -> list[Card]:
    told, metric = story.clients, story.metric
    if told is None or not told.metrics.get(metric):
        return []
    value = worst_tenth(told.metrics[metric], less=story.less_is_better(metric))
    note = f"{named(metric)}, on data that they also train on"
    return [Card("worst tenth of clients", number(value), note)]


def _labels(story: Story) -> list[Card]:
    found = [] if story.samples is None else recognised(story.samples)
    if not found or story.samples is None:
        return []
    share, place = found[0]
    name = quoted(label_of(story.samples, place))
    return [Card("worst label", percent(share), f"of {name} is recognised")]


def _time(story: Story) -> Card:
    seconds = story.totals.total_s or sum(record.seconds.total for record in story.records)
    wire = sum(record.bytes_down + record.bytes_up for record in story.records)
    how = ", a block at a time" if is_simulated(story) else ""
    return Card("time", duration(seconds), f"{size(wire)} {carried(story)}{how}")


def _file(story: Story) -> list[Card]:
    found = picks(story.files)
    if found:
        best = min(found, key=lambda pick: pick.file.size_bytes).file
        return [Card("smallest file to ship", size(best.size_bytes), best.file, "good")]
    return [Card("file to ship", "none", "all failed their gate", "bad")] if story.files else []
