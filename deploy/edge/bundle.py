"""A bundle: one archive with all that a device needs of a file, and how to check it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import Template

import numpy as np

from deploy.edge.archive import read_archive, write_archive
from deploy.edge.artefact import Artefact, Gate, check_hash, describe_path, load_artefact
from deploy.edge.measure import Measured, measure_everywhere
from deploy.edge.reference import FILE, Reference, load_reference, reference_bytes
from deploy.edge.runtimes import SUFFIXES
from shared_models import boxes, words
from shared_models.answers import Answer
from shared_models.errors import ExportError

SUFFIX = ".zip"
_SUMS, _SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
_DEVICE = Path(__file__).with_name("device")
_SAMPLE = 100
_ANSWERS: Mapping[Answer, str] = {
    "classes": "tells one of {} labels",
    "mask": "tells the class of each pixel",
    "values": "answers with numbers",
    "boxes": "tells where things of {} kind are, as boxes",
}
_ROWS = {
    "labels.txt": "a label a line, in the order of the outputs",
    "boxes.py": "makes boxes of the model's numbers: `lines.py` needs it",
    "words.py": "makes tokens of a text: `lines.py` needs it",
    "example.c": "one example in C, for the TensorFlow Lite C API",
}
_NEEDS = {".tflite": "tflite-runtime or ai-edge-litert", ".onnx": "onnxruntime"}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was unpacked: where its model lies, and whether somebody signed it."""

    model: Path
    signed: bool


def write_bundle(model: Path, key: Path | None = None) -> Path:
    """Writes `model-int8-tflite.zip` beside an exported file; signs it if there is a key.

    Raises `InputError` or `ExportError` when the file or what lies beside it is not as exported.
    """
    described, reference = load_artefact(model), load_reference(model.parent / FILE)
    check_hash(model, described.sha256)
    check_hash(model.parent / FILE, described.reference_sha256)
    if not described.passed:
        raise ExportError(f"{model}: did not pass its gate when it was exported: it is not bundled")
    sample = _sample(reference)
    sampled = reference_bytes(sample)
    about = _about_sample(model, described, sample, hashlib.sha256(sampled).hexdigest())
    files = {
        model.name: model.read_bytes(),
        describe_path(model).name: (json.dumps(asdict(about), indent=2) + "\n").encode(),
        FILE: sampled,
        **_documents(described, sample),
    }
    files[_SUMS] = _sums(files)
    if key is not None:
        from deploy.edge.signature import sign

        files[_SIGNATURE] = sign(files[_SUMS], key)
    path = model.with_name(model.name.replace(".", "-") + SUFFIX)
    write_archive(path, files)
    return path


def open_bundle(path: Path, folder: Path, public_key: Path | None = None) -> Bundle:
    """Unpacks a bundle into an empty folder, once its sums, and its signature if asked, are right.

    Raises `ExportError` when it is damaged, or not signed with the key that is asked for.
    """
    files = read_archive(path)
    if files.get(_SUMS) != _sums(files):
        raise ExportError(f"{path}: damaged: its files are not those of {_SUMS}")
    if public_key is not None:
        _check_signature(path, files, public_key)
    models = [name for name in files if name.endswith(SUFFIXES)]
    if len(models) != 1:
        raise ExportError(f"{path}: is no bundle: it has {len(models)} models, expected one")
    for name, content in files.items():
        (folder / name).write_bytes(content)  # a name has no path: the archive was read so
    return Bundle(folder / models[0], _SIGNATURE in files)


def _check_signature(path: Path, files: Mapping[str, bytes], public_key: Path) -> None:
    from deploy.edge.signature import is_signed

    if _SIGNATURE not in files:
        raise ExportError(f"{path}: is not signed; expected a signature for {public_key}")
    if not is_signed(files[_SUMS], files[_SIGNATURE], public_key):
        raise ExportError(f"{path}: is signed with another key than that of {public_key}")


def _sums(files: Mapping[str, bytes]) -> bytes:
    """Returns the lines that `sha256sum -c` reads, for all files but itself and its signature."""
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in sorted(files.items())
        if name not in {_SUMS, _SIGNATURE}
    ]
    return "".join(lines).encode()


def _sample(reference: Reference) -> Reference:
    """Returns some of the examples, spread evenly: a device has little room."""
    count = min(_SAMPLE, len(reference.x))
    spread = np.linspace(0, len(reference.x) - 1, count).astype(np.int64)
    return replace(
        reference,
        x=reference.x[spread],
        targets=reference.targets[spread],
        outputs=reference.outputs[spread],
    )


def _about_sample(model: Path, described: Artefact, sample: Reference, sha256: str) -> Artefact:
    """Returns the description with the sample in the place of the reference.

    What passed on all examples may do worse on a few of them: there the gate asks for no more than
    the file showed here, less one example.
    """
    found = measure_everywhere(model, described.input, sample, runs=1)
    slack, gate = 1 / len(sample.x), described.gate
    drop = max(one.parity.drop for one in found) + slack
    agreement = min(one.parity.agreement for one in found) - slack
    return replace(
        described,
        reference_sha256=sha256,
        measured=tuple(_with_latency(one, described) for one in found),
        gate=Gate(
            max_score_drop=round(min(1.0, max(gate.max_score_drop, drop)), 6),
            min_agreement=round(max(0.0, min(gate.min_agreement, agreement)), 6),
        ),
    )


def _with_latency(measured: Measured, described: Artefact) -> Measured:
    """Returns the measurement with the latency of the export: the same bytes each time."""
    known = {one.runtime: one.latency for one in described.measured}
    return replace(measured, latency=known.get(measured.runtime, measured.latency))


def _documents(described: Artefact, sample: Reference) -> dict[str, bytes]:
    """Returns what people read: labels, examples, a README."""
    row = ",".join(f"{value:g}" for value in sample.x[0].ravel())
    kind = Path(described.file).suffix
    texts = {
        "example.csv": f"{row}\n",
        "example.py": (_DEVICE / "example.py").read_text(),
        "lines.py": (_DEVICE / "lines.py").read_text(),
        "runtime.py": (_DEVICE / f"runtime_{kind[1:]}.py").read_text(),
    }
    if described.answer == "boxes":
        texts["boxes.py"] = Path(boxes.__file__).read_text()
    if described.words:
        texts["words.py"] = Path(words.__file__).read_text()
    if described.labels:
        texts["labels.txt"] = "".join(f"{_on_one_line(label)}\n" for label in described.labels)
    if kind == ".tflite":
        texts["example.c"] = _example_c(described)
    texts["README.md"] = _readme(described, len(sample.x), texts)
    return {name: text.encode() for name, text in texts.items()}


def _on_one_line(label: str) -> str:
    return label.encode("unicode_escape").decode()


def _example_c(described: Artefact) -> str:
    inputs, told = described.input, described.labels if described.answer == "classes" else ()
    return Template((_DEVICE / "example.c").read_text()).substitute(
        model=described.file,
        size=int(np.prod(inputs.shape)),
        tokens=inputs.tokens if inputs.dtype == "int64" else 0,
        mean=", ".join(f"{value!r}f" for value in inputs.mean),
        std=", ".join(f"{value!r}f" for value in inputs.std),
        labels=", ".join(_c_string(label) for label in told) or "NULL",
        classes=int(bool(told)),
    )


def _c_string(label: str) -> str:
    r"""Returns a literal of the label's bytes in UTF-8.

    >>> print(_c_string('a"\n'))
    "a\042\012"
    """
    plain = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-.,:;!&'()/")
    return '"' + "".join(chr(c) if c in plain else f"\\{c:03o}" for c in label.encode()) + '"'


def _readme(described: Artefact, sample: int, others: Collection[str]) -> str:
    parity, inputs = described.parity, described.input
    return Template((_DEVICE / "README.md").read_text()).substitute(
        model=described.file,
        quantization=described.quantization.replace("none", "fp32"),
        size_kb=f"{described.size_bytes / 1000:.0f}",
        task=described.task,
        run=described.run,
        shape=f"`{inputs.shape}`",
        answer=_ANSWERS[described.answer].format(len(described.labels)),
        examples=parity.examples,
        metric=parity.metric.replace("_", " "),
        score=f"{parity.score:.4f}",
        score_torch=f"{parity.score_torch:.4f}",
        agreement=f"{parity.agreement:.4f}",
        runtimes=", ".join(f"{one.runtime} {one.version}" for one in described.measured),
        sample=sample,
        rows="".join(f"| `{name}` | {what} |\n" for name, what in _ROWS.items() if name in others),
        needs=_NEEDS[Path(described.file).suffix],
        mean=list(inputs.mean),
        std=list(inputs.std),
        dtype=inputs.dtype,
    )


def is_bundle(path: Path) -> bool:
    """Whether a path is that of a bundle, by its name."""
    return path.suffix == SUFFIX


def check_key(path: Path | None) -> None:
    """Raises `InputError` when a key cannot sign: before anything is exported."""
    if path is not None:
        from deploy.edge.signature import sign

        sign(b"", path)
