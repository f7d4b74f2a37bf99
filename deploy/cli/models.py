"""`wildflower models`: what can be trained."""

from __future__ import annotations

from typing import Any

from deploy.cli.output import AsJson, print_json, print_table


def models(as_json: AsJson = False) -> None:
    """List the tasks: model, parameters, input, dataset.

    Example: wildflower models --json
    """
    rows = [_describe(name) for name in _names()]
    if as_json:
        print_json(rows)
        return
    columns = ("task", "parameters ", "input", "answer", "dataset")
    print_table(
        columns,
        [
            (
                r["name"],
                f"{r['parameters']:,}",
                f"{r['input']} {r['dtype']}",
                f"{r['outputs']} classes" if r["answer"] == "classes" else r["answer"],
                r["dataset"],
            )
            for r in rows
        ],
    )


def _names() -> list[str]:
    from shared_models.tasks import TASKS

    return sorted(TASKS)


def _describe(name: str) -> dict[str, Any]:
    from shared_models.task import parameter_count
    from shared_models.tasks import load_task

    task = load_task(name)
    return {
        "name": name,
        "parameters": parameter_count(task),
        "input": list(task.input.shape),
        "dtype": task.input.dtype,
        "answer": task.answer,
        "outputs": len(task.labels),
        "dataset": task.dataset,
    }
