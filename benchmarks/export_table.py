"""The tables of `docs/export-table.md`, from a result of `benchmarks.export`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.text import markdown, three_figures

_RUNTIMES = ("litert", "tflite-runtime", "onnxruntime")
_HEAD = ("format", "KB", "smaller", "LiteRT", "tflite-runtime", "ONNX Runtime")
_TOGETHER = (
    ("tflite-fp32", "unrolled-fp32"),
    ("tflite-dynamic", "unrolled-fp32"),
    ("tflite-dynamic", "unrolled-dynamic"),
)


_PAGE = """# Every model in every format

```
python -m benchmarks.export --page docs/export-table.md
```

makes this page, and trains what its result lacks. A cell is the score on test data, the median
latency (batch 1, one thread), and how many times as fast as torch that is: the median of turns,
torch right before the file in each. `smaller` is against the weights in float32. What `auto` makes
is bold. What it tells is summed up in [Export](export.md#what-was-measured).

{tables}

{machines}
"""


def page(told: Mapping[str, Any]) -> str:
    """Returns the page of the documentation: the tables, and what they were measured on."""
    where = {
        "Measured on {}, {} cores, {}.".format(
            task["machine"]["cpu"], task["machine"]["cores"], task["date"]
        ): None
        for task in told["tasks"].values()
    }
    return _PAGE.format(tables=report(told), machines="\n".join(where))


def report(told: Mapping[str, Any]) -> str:
    """Returns a table a model, then what loops gain over the unrolled conversion."""
    parts = [_task(name, task) for name, task in told["tasks"].items()]
    looped = [line for name, task in told["tasks"].items() for line in _looped(name, task)]
    if looped:
        head = ("looped against unrolled", "runtime", "smaller", "faster")
        note = "`unrolled-fp32` is the converter's file as it comes, with the names of layers."
        parts += ["## Loops against unrolled models", note, markdown(head, looped)]
    return "\n\n".join(parts)


def _task(name: str, task: Mapping[str, Any]) -> str:
    metric = task["metric"].replace("_", " ")
    title = (
        f"## {name}\n\ntorch: {metric} {task['score']:.4f} on {task['examples']} examples, "
        f"{three_figures(task['torch_ms'])} ms, {three_figures(task['size_bytes'] / 1000)} KB"
    )
    return f"{title}\n\n{markdown(_HEAD, [_cells(row, task) for row in task['rows']])}"


def _cells(row: Mapping[str, Any], task: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"**{row['format']}**" if row["default"] else row["format"]
    if row["why_not"]:
        return name, "none", row["why_not"], "", "", ""
    size = row["size_bytes"]
    smaller = f"{three_figures(task['size_bytes'] / size)}x"
    return (
        name,
        three_figures(size / 1000),
        smaller,
        *(_cell(row, runtime) for runtime in _RUNTIMES),
    )


def _cell(row: Mapping[str, Any], runtime: str) -> str:
    for cell in row["cells"]:
        if cell["runtime"] == runtime:
            took, faster = three_figures(cell["p50_ms"]), three_figures(cell["faster"])
            return f"{cell['score']:.4f}, {took} ms, {faster}x"
    return "not installed" if runtime in row["missing"] else "not for it"


def _looped(name: str, task: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the lines of a model that was unrolled, too; the ratio is that of the ratios."""
    rows = {row["format"]: row for row in task["rows"]}
    lines: list[tuple[str, ...]] = []
    for own, other in _TOGETHER:
        if other not in rows or "unrolled" in rows[own]["notes"]:  # there is no loop in it
            continue
        smaller = rows[other]["size_bytes"] / rows[own]["size_bytes"]
        for ours, theirs in zip(rows[own]["cells"], rows[other]["cells"], strict=True):
            ratios = (smaller, ours["faster"] / theirs["faster"])
            told = (f"{three_figures(ratio)}x" for ratio in ratios)
            lines.append((f"{name}, {own}, {other}", ours["runtime"], *told))
    return lines
