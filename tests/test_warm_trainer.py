"""The warm trainer: the same bytes as in-process, and a named reason for whatever goes wrong."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from flwr.app import ConfigRecord, RecordDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients.answers import answer
from clients.hosting import Hosting
from clients.local_data import opened_by
from clients.warm import protocol
from clients.warm.caller import TrainerFailed, ask, patience_s
from clients.warm.diary import Diary
from clients.warm.packing import pack, unpack
from clients.warm.process import Died
from clients.warm.protocol import METHOD, PIECE_BYTES, VERSION, TooLarge, cut, join
from clients.warm.service import Limits, TrainerService
from clients.warm.trainer_pb2 import Chunk, Header
from shared_models.config import parse_config
from shared_models.errors import InputError
from shared_models.messages import BlockRequest, Hello
from shared_models.tasks import load_task
from shared_models.verbs import CALIBRATE_BLOCK, EVALUATE_BLOCK, HELLO, LEFT_OUT, TRAIN_BLOCK
from shared_models.wire import decode_hello, encode_broadcast, encode_request
from tests.conftest import DIGITS, ROOT

SERVING = health_pb2.HealthCheckResponse.SERVING
OWN_DATA = """
import os, time

def late(client_id):
    time.sleep(3600)

def greedy(client_id):
    raise MemoryError("256 GB")

def large(client_id):
    hoard = bytearray(os.urandom(1)) * 600_000_000
    time.sleep(3600)
"""


@dataclass(frozen=True)
class Warm:
    """A trainer, and the ways to ask it."""

    service: TrainerService
    address: str
    said: list[str]

    @property
    def pid(self) -> int:
        return self.service.worker_pid

    def ready(self) -> Warm:
        wait_for(lambda: health(self.address) == SERVING)
        return self

    def hello(self, settings: str = "") -> Hello:
        return decode_hello(ask(self.address, HELLO, config(settings), RecordDict()))

    def train(self, settings: str = "", content: RecordDict | None = None) -> RecordDict:
        content = block() if content is None else content
        return ask(self.address, TRAIN_BLOCK, config(settings), content)

    def call(self, chunks: Iterator[Chunk], timeout: float = 30) -> list[Chunk]:
        with grpc.insecure_channel(self.address) as channel:
            answer_to = channel.stream_stream(
                METHOD,
                request_serializer=Chunk.SerializeToString,
                response_deserializer=Chunk.FromString,
            )
            return list(answer_to(chunks, timeout=timeout))

    def refusal(self, chunks: Iterator[Chunk], timeout: float = 30) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as refused:
            self.call(chunks, timeout)
        return refused.value


@contextmanager
def trainer(
    folder: Path, data: str, ids: tuple[int, ...] = (0, 3), limits: Limits | None = None
) -> Iterator[Warm]:
    place = folder / "trainer.sock"
    hosting = Hosting(data, ids).to_json()
    said: list[str] = []
    with TrainerService(
        place, hosting, folder / "log", limits or Limits(), Diary(said.append)
    ) as service:
        yield Warm(service, f"unix:{place}", said)


@pytest.fixture(scope="module")
def one_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with trainer(tmp_path_factory.mktemp("warm"), "digits") as running:
        yield running


@pytest.fixture
def warm(one_for_all: Warm) -> Warm:
    return one_for_all.ready()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sensors.py").write_text(OWN_DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status
    return status


def block(ids: tuple[int, ...] = (0, 3), stage: str = "train") -> RecordDict:
    params = load_task("digits-cnn").build(0)
    request = BlockRequest(stage, 1, 0, 0, ids, params)
    return encode_request(request, encode_broadcast(request))


def config(extra: str = "") -> str:
    return extra + DIGITS


def test_the_owner_is_told_once_what_is_done_for_a_run_and_why_something_is_not(
    warm: Warm,
) -> None:
    before = len(warm.said)
    warm.hello()
    for _ in range(2):
        warm.train()
    with pytest.raises(TrainerFailed):
        warm.train(content=RecordDict())
    reason = RecordDict({LEFT_OUT: ConfigRecord({"reason": "it may not host client 3"})})
    assert not ask(warm.address, LEFT_OUT, config(), reason)
    told = [line.removeprefix("run 'digits': this device ") for line in warm.said[before:]]
    failed = told.pop(2)
    assert failed.startswith("gives no update: ")
    assert told == [
        "has answered the roll call",
        "trains",
        "is left out by the server: it may not host client 3",
    ]


@pytest.mark.parametrize("verb", [HELLO, TRAIN_BLOCK, EVALUATE_BLOCK, CALIBRATE_BLOCK])
def test_it_answers_as_a_client_app_does_in_its_own_process_byte_for_byte(
    warm: Warm, verb: str
) -> None:
    about = block(stage="calibrate" if verb == CALIBRATE_BLOCK else "train")
    content = RecordDict() if verb == HELLO else about
    told = config() + '[[stages]]\nkind = "calibrate"\n'
    expected = answer(verb, told, unpack(pack(content)), opened_by(Hosting("digits", (0, 3))))
    assert pack(ask(warm.address, verb, told, content)) == pack(expected)


def test_it_is_the_same_process_that_answers(warm: Warm) -> None:
    pid = warm.pid
    for _ in range(3):
        warm.train()
    assert warm.pid == pid


def test_the_socket_is_this_user_s_alone(warm: Warm) -> None:
    found = Path(warm.address.removeprefix("unix:")).stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_the_worker_is_nice_and_takes_one_thread(warm: Warm) -> None:
    worker = psutil.Process(warm.pid)
    assert worker.nice() > psutil.Process().nice()
    assert worker.nice() <= 19


def test_an_error_in_the_answer_is_told_in_one_line_and_the_worker_lives_on(
    warm: Warm,
) -> None:
    pid = warm.pid
    with pytest.raises(TrainerFailed, match=r"^run config: unknown key 'ronds'"):
        warm.hello("ronds = 3\n")
    with pytest.raises(TrainerFailed, match=r"^malformed message: KeyError: 'request'$"):
        warm.train(content=RecordDict())
    assert warm.pid == pid


def test_another_version_is_refused_and_says_what_to_do(warm: Warm) -> None:
    refused = warm.refusal(cut(Header(version=VERSION + 1, verb=HELLO), b""))
    assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION
    expected = f"the trainer speaks version {VERSION}, the app version {VERSION + 1}"
    assert refused.details() == f"{expected}: update the older one"


def test_a_message_that_is_too_large_is_refused_by_what_its_header_says(
    warm: Warm,
) -> None:
    header = Header(version=VERSION, verb=HELLO, total_bytes=protocol.MOST_BYTES + 1)
    refused = warm.refusal(iter([Chunk(header=header)]))
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"a trainer takes {protocol.MOST_BYTES} at most" in refused.details()


def test_a_message_that_ends_too_early_is_refused_with_both_sizes(
    warm: Warm,
) -> None:
    header = Header(version=VERSION, verb=HELLO, total_bytes=5000)
    refused = warm.refusal(iter([Chunk(header=header, data=bytes(7))]))
    assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.details() == "a message of 5000 bytes came as 7"


def test_a_message_is_cut_into_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(2 * PIECE_BYTES + 7)
    pieces = list(cut(Header(verb=HELLO), data))
    assert [len(piece.data) for piece in pieces] == [PIECE_BYTES, PIECE_BYTES, 7]
    assert join(pieces)[1] == data
    monkeypatch.setattr(protocol, "MOST_BYTES", 2 * PIECE_BYTES)
    for too_much in (lambda: join(iter(pieces)), lambda: cut(Header(), data)):
        with pytest.raises(TooLarge, match=f"takes {2 * PIECE_BYTES} at most"):
            too_much()


@pytest.mark.slow
def test_a_killed_worker_is_named_and_the_next_message_is_answered(
    warm: Warm,
) -> None:
    pid = warm.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TrainerFailed, match=r"^the trainer died \(signal 9\); it is started"):
        warm.hello()
    assert warm.hello().client_ids == (0, 3)
    assert warm.pid != pid


def test_a_training_that_hangs_is_ended_at_its_deadline_and_the_next_is_answered(
    warm: Warm,
) -> None:
    hung = warm.pid
    os.kill(hung, signal.SIGSTOP)
    short = "client_deadline_s = 0.5\n"
    large = block((0, 3))  # more than a socket holds
    large["more"] = ConfigRecord({"of": bytes(5 * PIECE_BYTES)})
    with pytest.raises(TrainerFailed, match=r"^training hung for 1 s; its trainer was ended"):
        warm.train(short, large)
    wait_for(lambda: not psutil.pid_exists(hung))
    assert warm.hello().client_ids == (0, 3)


SLOW = """
import time
from shared_models.tasks import load_task
time.sleep({seconds})
TASK = load_task("digits-cnn")
"""


def test_blocks_that_wait_for_each_other_each_have_their_own_patience(
    warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience, pid = 4.0, warm.pid
    source = SLOW.format(seconds=0.6 * patience)
    monkeypatch.setattr("clients.warm.caller.own_source", lambda _: source)

    def trained(place: int) -> RecordDict:
        own = config(f"client_deadline_s = {patience}\n")
        own = own.replace('"digits-cnn"', f'"slow_{place}:TASK"')
        return ask(warm.address, TRAIN_BLOCK, own, block((0,)))

    warm.train()  # the examples are there, torch has done it once
    began = time.monotonic()
    with ThreadPoolExecutor() as threads:
        assert all(answer.array_records for answer in threads.map(trained, range(2)))
    assert time.monotonic() - began > 1.2 * patience  # one after the other
    assert warm.pid == pid


@pytest.mark.slow
def test_who_waited_for_too_long_behind_another_ends_nobody_s_training(tmp_path: Path) -> None:
    with trainer(tmp_path, "digits") as warm:
        pid = warm.pid  # it imports torch, which takes longer
        with pytest.raises(
            TrainerFailed, match=r"^the trainer was busy, or still read its data, for 0\.2 s"
        ):
            ask(warm.address, TRAIN_BLOCK, config(), block(), lives_s=0.2)
        warm.ready()
        assert warm.pid == pid


@pytest.mark.slow
def test_a_service_that_ends_in_the_middle_of_a_training_leaves_no_worker(tmp_path: Path) -> None:
    before = workers()
    with trainer(tmp_path, "digits") as warm, ThreadPoolExecutor() as threads:
        warm.ready()
        os.kill(warm.pid, signal.SIGSTOP)
        asked = threads.submit(warm.train)
        time.sleep(0.3)  # it is at it
        warm.service.__exit__()
        assert isinstance(asked.exception(10), TrainerFailed)
        time.sleep(0.3)  # what was begun anew would be there by now
        assert workers() == before


def workers() -> set[psutil.Process]:
    children = psutil.Process().children()
    return {child for child in children if "clients.warm.worker" in words_of(child)}


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended, though its parent, like that of other tests', did not look yet
        return []


@pytest.mark.slow
def test_a_trainer_that_takes_too_much_memory_is_ended_with_the_figures(own: Path) -> None:
    with trainer(own, "sensors:large", limits=Limits(memory_mb=700)) as warm:
        pid = warm.pid
        reason = r"^the trainer used \d+ MB, more than --memory-mb 700; it is started anew"
        with pytest.raises(TrainerFailed, match=reason):
            warm.hello()
        wait_for(lambda: not psutil.pid_exists(pid))
        anew = warm.pid
        wait_for(lambda: not lives(anew))  # though nobody asked it anything
        with pytest.raises(TrainerFailed, match=reason):
            warm.hello()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_is_not_ready_before_its_data_is_there_and_ends_with_its_service(own: Path) -> None:
    with trainer(own, "sensors:late") as warm:
        pid = warm.pid
        assert health(warm.address) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_data_that_cannot_be_read_is_told_at_the_start_and_again_until_it_is_there(
    own: Path,
) -> None:
    rng = np.random.default_rng(0)
    with trainer(own, str(own / "mine.npz"), (5,)) as warm:
        with pytest.raises(InputError, match=r"mine\.npz: there is no such file$"):
            warm.service.load(lambda: True)
        with pytest.raises(TrainerFailed, match=r"mine\.npz: there is no such file$"):
            warm.hello()
        np.savez(own / "mine.npz", x=rng.random((9, 8, 8)), y=np.arange(9))
        wait_for(lambda: "no such file" not in told_hello(warm))
        assert warm.hello().examples == (9,)


def test_memory_that_is_not_there_now_is_no_fault_of_the_data(own: Path) -> None:
    with trainer(own, "sensors:greedy") as warm:
        for _ in range(2):
            with pytest.raises(Died, match=r"^the trainer cannot begin: MemoryError: 256 GB$"):
                warm.service.load(lambda: True)
            warm.service.renew()


@pytest.mark.slow
def test_a_gateway_hosts_as_many_clients_as_it_may(own: Path) -> None:
    ids = tuple(range(100_000))
    np.savez(own / "all.npz", x=np.zeros((len(ids), 1)), y=np.zeros(len(ids), int), client_id=ids)
    with trainer(own, str(own / "all.npz"), ids) as warm:
        warm.service.load(lambda: True)
        assert health(warm.address) == SERVING


def told_hello(warm: Warm) -> str:
    try:
        warm.hello()
    except TrainerFailed as error:
        return str(error)
    return ""


HANGS = "import time\nTASK = time.sleep(3600)\n"


@pytest.mark.slow
def test_a_task_of_a_user_s_own_that_hangs_is_ended_and_the_next_message_is_answered(
    warm: Warm,
) -> None:
    hung = warm.pid
    header = Header(version=VERSION, verb=TRAIN_BLOCK, config=config())
    header.task, header.task_source = "hanging_task:TASK", HANGS
    late = warm.refusal(cut(header, pack(block())), timeout=0.5)
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: not lives(hung))
    assert warm.train().array_records
    assert warm.pid != hung


def test_a_worker_that_is_killed_in_the_middle_is_named_and_the_next_message_is_answered(
    warm: Warm,
) -> None:
    with ThreadPoolExecutor() as threads:
        warm.ready()
        os.kill(warm.pid, signal.SIGSTOP)  # so that it is in the middle for long enough
        asked = threads.submit(warm.train)
        time.sleep(0.3)
        assert not asked.done()
        os.kill(warm.pid, signal.SIGKILL)
        assert str(asked.exception(10)) == "the trainer died (signal 9); it is started anew"
        assert warm.train().array_records


@pytest.mark.slow
def test_when_decides_before_each_training_and_only_then(tmp_path: Path) -> None:
    charging = tmp_path / "charging"
    when = f"test -e {charging}"
    with trainer(tmp_path, "digits", limits=Limits(when=when)) as warm:
        warm.hello()
        with pytest.raises(TrainerFailed, match=r"^not now: `test -e .*` said no \(exit 1\)$"):
            warm.train()
        charging.touch()
        assert warm.train().array_records


@pytest.mark.parametrize("when", ["", "test 'open"])
def test_a_command_that_cannot_be_read_is_refused_before_anything_starts(when: str) -> None:
    with pytest.raises(InputError, match="--when"):
        Limits(when=when)


def test_patience_is_the_config_s_for_each_client_of_the_block() -> None:
    told = config("client_deadline_s = 2.5\n")
    assert patience_s(TRAIN_BLOCK, told, block((0, 1, 2))) == 7.5
    assert parse_config(told, "test").client_deadline_s == 2.5


def test_without_a_trainer_the_reason_says_what_starts_it(tmp_path: Path) -> None:
    with pytest.raises(TrainerFailed, match="`wildflower client` is what starts it"):
        ask(f"unix:{tmp_path}/none.sock", HELLO, config(), RecordDict())


def test_the_client_app_and_what_hands_messages_over_load_no_torch() -> None:
    program = (
        "import sys, clients.app, clients.warm.caller, clients.warm.service; "
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_is_generated_is_what_the_proto_says(tmp_path: Path) -> None:
    proto = "clients/warm/trainer.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", str(ROOT / proto)]
    out = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, *out], check=True)
    for suffix in (".py", ".pyi"):
        name = f"clients/warm/trainer_pb2{suffix}"
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
