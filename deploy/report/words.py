"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "KB"))


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number with so many digits that count, a dash for none.

    >>> number(0.98765), number(1234567.0), number(21.02, 3), number(None)
    ('0.9877', '1,234,567', '21', '-')
    """
    if value is None:
        return "-"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 0.001 and value:
        return f"{value:.{max(1, digits - 2)}g}"
    whole = len(f"{abs(value):.0f}") if abs(value) >= 1 else 0
    text = f"{value:.{digits - whole}f}"
    return text.rstrip("0").rstrip(".") if abs(value) >= 10 else text


def percent(share: float) -> str:
    """Returns a share in percent.

    >>> percent(0.123), percent(1.0), percent(0.001)
    ('12 %', '100 %', '0.1 %')
    """
    return f"{share:.1%}".replace("%", " %") if 0 < share < 0.01 else f"{share:.0%}"[:-1] + " %"


def size(count: float | None) -> str:
    """Returns bytes in the unit that fits.

    >>> size(1500), size(12), size(5_000_000), size(None)
    ('1.5 KB', '12 B', '5.0 MB', '-')
    """
    if count is None:
        return "-"
    for least, unit in UNITS:
        if count >= least:
            shown = count / least
            return f"{shown:.1f} {unit}" if shown < 100 else f"{shown:,.0f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Returns seconds as people say them.

    >>> duration(3.21), duration(75.0), duration(7260.0), duration(None)
    ('3.2 s', '1 min 15 s', '2 h 1 min', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def named(metric: str) -> str:
    """Returns a metric's name as words.

    >>> named("mean_iou"), named("iou")
    ('mean IoU', 'IoU')
    """
    known = {"iou": "IoU", "roc": "ROC", "auc": "AUC", "map50": "mAP@50", "frechet": "Fréchet"}
    return " ".join(known.get(word, word) for word in metric.split("_"))


def titled(metric: str) -> str:
    """Returns a metric's name as a heading begins with it.

    >>> titled("roc_auc"), titled("accuracy")
    ('ROC AUC', 'Accuracy')
    """
    name = named(metric)
    return name[:1].upper() + name[1:]


def joined(words: Sequence[str]) -> str:
    """Returns words as a sentence has them.

    >>> joined(["a", "b", "c"]), joined(["a"])
    ('a, b and c', 'a')
    """
    *first, last = words or ("",)
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, word: str) -> str:
    """Returns a count with its noun.

    >>> plural(1, "client"), plural(2000, "client")
    ('1 client', '2,000 clients')
    """
    return f"{count:,} {word}" + ("" if count == 1 else "s")
