"""All clients there are, as the nodes' answers say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.sampling import Blocks, cut_blocks
from shared_models.config import Config, TrainStage
from shared_models.errors import CheckpointError, InputError, RoundError
from shared_models.labelled import labelled_count
from shared_models.messages import ABSENT, Hello
from shared_models.stage_task import reads_labels


@dataclass(frozen=True)
class Hosted:
    """The clients of one node of a fleet, in the order of their ids, and the hash of their data.

    `labelled` as in `Population`.
    """

    client_ids: tuple[int, ...]
    examples: tuple[int, ...]
    data_sha256: str
    labelled: tuple[int, ...] = ()


@dataclass(frozen=True)
class Population:
    """Sorted client ids with example counts; `node_of` is None where any node may train anyone.

    `hosts` are a fleet's nodes as they were when the run began, in the order of their smallest
    client id. `groups` are whose clients share blocks where one node can train them all: those that
    shared a node of the fleet that is replayed. `forgetful` are clients whose nodes have no place
    for what they keep from round to round. `labelled` counts the examples that have a label; there
    is no count where all have.
    """

    client_ids: tuple[int, ...]
    examples: tuple[int, ...]
    node_of: Mapping[int, int] | None
    data_sha256: tuple[str, ...]
    hosts: tuple[Hosted, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    forgetful: tuple[int, ...] = ()
    labelled: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.client_ids)

    @functools.cached_property
    def examples_of(self) -> Mapping[int, int]:
        """How many examples each client said it has."""
        return dict(zip(self.client_ids, self.examples, strict=True))

    @functools.cached_property
    def labelled_of(self) -> Mapping[int, int]:
        """How many examples with a label each client said it has."""
        return dict(zip(self.client_ids, self.labelled or self.examples, strict=True))

    @property
    def block_groups(self) -> tuple[tuple[int, ...], ...]:
        """Whose clients share blocks; empty where anyone may share one with anyone."""
        return tuple(host.client_ids for host in self.hosts) or self.groups

    @property
    def connected(self) -> int:
        """How many of the clients have a node that can train them now."""
        nodes = (self.node_of or {}).values()
        return len(self) - sum(1 for node in nodes if node == ABSENT)

    def blocks(self, cohort: Sequence[int], size: int) -> Blocks:
        """Returns the block map of a cohort, each block with the node that trains it, if any."""
        if self.node_of is not None:
            return cut_blocks(cohort, size, self.node_of)
        if not self.groups:
            return cut_blocks(cohort, size)
        group_of = {k: place for place, ids in enumerate(self.groups) for k in ids}
        return tuple((None, ids) for _, ids in cut_blocks(cohort, size, group_of))


@dataclass(frozen=True)
class Roll:
    """Which nodes answered in time, and why the others are left out."""

    hellos: Mapping[int, Hello]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Enough:
    """How many clients will do, of any or `among` these; a fleet's may be still to come."""

    wanted: int
    among: frozenset[int] | None = None

    def present(self, hellos: Mapping[int, Hello]) -> int:
        """Returns how many of them are there."""
        hosted = {client_id for hello in hellos.values() for client_id in hello.client_ids}
        return len(hosted if self.among is None else hosted & self.among)

    def __call__(self, hellos: Mapping[int, Hello]) -> bool:
        """Returns whether these answers will do."""
        return self.present(hellos) >= self.wanted


def hosts_these(client_ids: Sequence[int]) -> Enough:
    """Returns whether all these clients are there."""
    wanted = frozenset(client_ids)
    return Enough(len(wanted), wanted)


def hello_fault(hello: Hello) -> str | None:
    """Returns why a node's answer cannot be true, or None."""
    for client_id, count in zip(hello.client_ids, hello.examples, strict=True):
        if count < 1:
            return f"client {client_id} says it has {count} examples"
    labelled = hello.labelled or hello.examples
    for client_id, own, count in zip(hello.client_ids, labelled, hello.examples, strict=True):
        if not 0 <= own <= count:
            return f"client {client_id} says that {own} of its {count} examples have a label"
    if len(set(hello.client_ids)) < len(hello.client_ids):
        return "it names a client twice"
    return None


def merge_hellos(
    hellos: Mapping[int, Hello], groups: tuple[tuple[int, ...], ...] | None = None
) -> Population:
    """Returns the union of what the nodes host; `groups` is the plan's block map, if it has one.

    Raises `RoundError` when there is nobody, when two nodes claim one client, or when simulation
    workers see different data.
    """
    if not any(hello.client_ids for hello in hellos.values()):
        raise RoundError("no node hosts a client; start clients, or check their data")
    for node, hello in hellos.items():
        if fault := hello_fault(hello):
            raise RoundError(f"node {node}: {fault}")
    kinds = {hello.shared for hello in hellos.values()}
    if len(kinds) > 1:
        raise RoundError("some nodes host their own clients and some can train any: use one kind")
    digests = tuple(sorted({hello.data_sha256 for hello in hellos.values()}))
    if kinds == {True}:
        shared = _shared(hellos, digests)
        return shared if groups is None else only(shared, groups)
    if groups is not None:
        raise InputError("plan.nodes: is for replays; a fleet's nodes have clients of their own")
    return _own(hellos, digests)


def only(population: Population, groups: tuple[tuple[int, ...], ...]) -> Population:
    """Returns these of the clients, in blocks as the groups have it."""
    wanted = tuple(sorted(client_id for ids in groups for client_id in ids))
    if unknown := sorted(set(wanted) - set(population.client_ids)):
        raise InputError(f"plan.nodes: the data has no client {unknown[0]}")
    examples = tuple(population.examples_of[client_id] for client_id in wanted)
    known = population.labelled_of if population.labelled else {}
    labelled = tuple(known[client_id] for client_id in wanted if known)
    return replace(
        population, client_ids=wanted, examples=examples, groups=groups, labelled=labelled
    )


def of_stage(population: Population, config: Config, stage: TrainStage) -> Population:
    """Returns the clients that have examples for a stage, with the counts of these examples.

    Raises `InputError` when nobody has a label.
    """
    fraction = config.data.labelled_fraction
    if (fraction == 1.0 and not population.labelled) or not reads_labels(config, stage):
        return population
    counts = {
        client_id: labelled_count(fraction, config.seed, client_id, own)
        for client_id, own in population.labelled_of.items()
    }
    ids = tuple(client_id for client_id, own in counts.items() if own)
    if not ids:
        raise no_labels(config, stage)
    node_of = population.node_of and {k: population.node_of[k] for k in ids}
    examples = tuple(counts[client_id] for client_id in ids)
    return replace(population, client_ids=ids, examples=examples, node_of=node_of, labelled=())


def few_labelled(whole: Population, own: Population, stage: TrainStage) -> str:
    """Returns a note where a round trains fewer clients than asked for, because few have labels.

    `own` is what `of_stage` makes of the `whole` population. Empty where as many train as asked.
    """
    wanted, found = min(stage.clients_per_round, len(whole)), len(own)
    if found >= wanted:
        return ""
    told = f"{found} of {len(whole)} clients have a label, so that a round has {found}"
    return f"stage {stage.name!r} asks for {wanted} clients a round; {told}"


def no_labels(config: Config, stage: TrainStage) -> InputError:
    """Returns what to raise where nobody has a label for a stage."""
    fraction = config.data.labelled_fraction
    told = "the data has none (-1 in y): label some examples"
    if fraction < 1.0:
        told = f"data.labelled_fraction = {fraction:g} leaves none: show more of them"
    return InputError(f"stages.{stage.name}: no client has a label; {told}")


def _shared(hellos: Mapping[int, Hello], digests: tuple[str, ...]) -> Population:
    first = next(iter(hellos.values()))
    for node, hello in hellos.items():
        if (hello.client_ids, hello.data_sha256) != (first.client_ids, first.data_sha256):
            raise RoundError(f"node {node} sees other data than the first node: same files needed")
    return Population(first.client_ids, first.examples, None, digests, labelled=first.labelled)


def _own(hellos: Mapping[int, Hello], digests: tuple[str, ...]) -> Population:
    node_of: dict[int, int] = {}
    for node, hello in hellos.items():
        for client_id in hello.client_ids:
            if client_id in node_of:
                raise RoundError(
                    f"client {client_id} is claimed by node {node_of[client_id]} and node {node}"
                )
            node_of[client_id] = node
    ids = tuple(sorted(node_of))
    forgetful = tuple(k for k in ids if not hellos[node_of[k]].keeps_states)
    hosts = tuple(sorted(_hosts(hellos), key=_smallest))
    examples, labelled = _counts(hosts)
    return Population(
        ids, examples, node_of, digests, hosts, forgetful=forgetful, labelled=labelled
    )


def _counts(hosts: Sequence[Hosted]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the examples and, where some have none, the labels of all clients, by their ids."""
    rows = sorted(
        row
        for host in hosts
        for row in zip(host.client_ids, host.examples, host.labelled or host.examples, strict=True)
    )
    _, examples, labelled = zip(*rows, strict=True)
    return examples, labelled if any(host.labelled for host in hosts) else ()


def _hosts(hellos: Mapping[int, Hello]) -> Iterator[Hosted]:
    for hello in hellos.values():
        labelled = hello.labelled or hello.examples
        rows = sorted(zip(hello.client_ids, hello.examples, labelled, strict=True))
        if rows:
            ids, examples, labelled = zip(*rows, strict=True)
            yield Hosted(ids, examples, hello.data_sha256, labelled if hello.labelled else ())


def _smallest(host: Hosted) -> int:
    return host.client_ids[0]


def rejoined(
    hosts: tuple[Hosted, ...], now: Population, notice: Callable[[str], None]
) -> Population:
    """Returns a run's population as it began, each client with the node that hosts it now.

    Clients that are not here keep their place and fail in their rounds; those that came anew are
    no part of the run. Raises `CheckpointError` where a client is not what it was.
    """
    if now.node_of is None:
        raise CheckpointError("the run began on nodes with clients of their own, not on these")
    then = {k: (host, count) for host in hosts for k, count in _examples_of(host)}
    for host in now.hosts:
        known = [client_id for client_id in host.client_ids if client_id in then]
        for client_id in known:
            _require_same(client_id, then[client_id], host, now.examples_of[client_id])
        if len({then[client_id][0] for client_id in known}) > 1:
            raise _other(known[0], f"shares its node with {known[1:]}", "did not")
        if strangers := sorted(set(host.client_ids) - set(known)):
            notice(f"clients {strangers} came after the run began: they take no part in it")
    node_of = {client_id: now.node_of.get(client_id, ABSENT) for client_id in sorted(then)}
    for host in hosts:
        nodes = {node_of[client_id] for client_id in host.client_ids} - {ABSENT}
        if len(nodes) > 1:
            raise _other(host.client_ids[0], "is parted from others of its node", "was not")
    if absent := [client_id for client_id, node in node_of.items() if node == ABSENT]:
        notice(f"clients {absent} are not connected: their rounds go on without them")
    digests = tuple(sorted({host.data_sha256 for host in hosts}))
    forgetful = tuple(client_id for client_id in now.forgetful if client_id in then)
    examples, labelled = _counts(hosts)
    return Population(
        tuple(node_of), examples, node_of, digests, hosts, forgetful=forgetful, labelled=labelled
    )


def _examples_of(host: Hosted) -> Iterator[tuple[int, int]]:
    return zip(host.client_ids, host.examples, strict=True)


def _require_same(client_id: int, then: tuple[Hosted, int], host: Hosted, examples: int) -> None:
    before, count = then
    old, new = before.data_sha256, host.data_sha256
    if examples != count:
        raise _other(client_id, f"has {examples} examples", f"had {count}")
    if new != old:
        raise _other(client_id, f"has data {new[:12]}", f"had {old[:12]}")


def _other(client_id: int, now: str, then: str) -> CheckpointError:
    return CheckpointError(
        f"client {client_id} {now}, when the run began it {then}; "
        "the result would not be the same run: put it back, or start a new one"
    )
