"""What a run folder says, in words: how far the run is, what it has found, and how to go on."""

from __future__ import annotations

import contextlib
import shlex
import textwrap
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import MetricsTable

__all__ = ["report", "retrain_command", "warn_of_earlier_network"]

_WIDTH, _INDENT = 80, 12
_SHOWN_TIES = _SHOWN_CLASSES = 3
_UNBROKEN = "\xa0"
"""A space at which no line ends, until it is shown as a plain one."""


def report(run: RunFolder) -> str:
    """The state of a run, its metrics, its architecture, and the command that goes on, as lines of
    at most 80 columns; paths and commands are not broken, however long.

    Only reads, and needs neither PyTorch nor the task of the run.

    Raises:
        ValueError: If a file of the run is damaged.
    """
    config = run.read_config()
    section = config.get(str(config.get("task")))
    data = section.get("data") if isinstance(section, Mapping) else None
    made_of = {"": config.get("task"), "data ": data, "seed ": config.get("seed")}
    found = run.read_json("architecture.json") if run.file("architecture.json").exists() else None
    _, search = _progress(run, config, "search")
    retrained, retraining = _progress(run, config, "retrain")
    network, since = run.file("network.pt").exists(), ""

    if found is not None and found.get("given"):
        search = "none: the architecture was given"
    lines = [_line("run", f"{run.path} ({_joined(made_of)})"), _line("search", search)]
    if found is not None:
        lines += _architecture(found)
        lines.append(_line("retraining", retraining))
    if network and run.file("results.json").exists():
        results = run.read_json("results.json")
        tested = _numbers(results, "test ", ".4f")
        before = "" if retrained else " (of the network of a retraining before)"
        if since := _found_since(run, results.get("architecture")):
            before = f" (of an architecture found before: {since})"
        lines.append(_line("network", tested + before))
        if hardest := _hardest(results.get("classes")):
            lines.append(_line("hardest", hardest))

    folder = shlex.quote(str(run.path))
    if user := run.user():
        lines.append(_line("in use", f"by {user}"))
        lines.append(_command("next", f"asng show {folder}, once that has ended"))
    elif found is None:
        lines.append(_command("next", run.command("resume")))
    elif not network or not retrained or since:
        lines.append(_command("next", retrain_command(run)))
        if network and retrained:
            lines.append(_command("or", f"asng export {folder}, for the network of before"))
    else:
        lines.append(_command("next", f"asng export {folder}"))
        lines.append(_command("or", f"asng predict {folder} IMAGE..."))
    return "\n".join(lines)


def _found_since(run: RunFolder, architecture: Any) -> str:
    """How architecture.json differs from the architecture of the retrained network: a search may
    have gone on since. "" if it does not, or one is not known."""
    if not run.file("architecture.json").exists():
        return ""
    found = run.read_json("architecture.json").get("architecture")
    if not isinstance(found, Mapping) or not isinstance(architecture, Mapping):
        return ""
    names = {**found, **architecture}
    differing = [name for name in names if found.get(name) != architecture.get(name)]
    if not differing:
        return ""
    return f"{len(differing)} of {len(names)} choices are others in architecture.json"


def retrain_command(run: RunFolder) -> str:
    """What retrains the architecture that was found last, or continues to, for a shell: it begins
    anew if a retraining of one that was found before is done, as far as files can be read."""
    restart = False
    with contextlib.suppress(ValueError, OSError):
        if run.file("retrain.pt").exists() and run.file("results.json").exists():
            since = _found_since(run, run.read_json("results.json").get("architecture"))
            restart = bool(since) and _progress(run, run.read_config(), "retrain")[0]
    return run.command("retrain", *(["--restart"] if restart else []))


def warn_of_earlier_network(run: RunFolder, architecture: Any) -> None:
    """Warns if the retrained network of a run is of an architecture that was found before its
    search went on. Of damaged files, which the network does not need, nothing is known.

    Args:
        run: Its folder.
        architecture: That of the network, by names.
    """
    try:
        since = _found_since(run, architecture)
    except ValueError:
        return
    if since:
        warnings.warn(
            f"the network in {run.path} is of an architecture found before: {since}; to retrain "
            f"that one: `{retrain_command(run)}`",
            stacklevel=3,
        )


def _progress(run: RunFolder, config: Mapping[str, Any], loop: str) -> tuple[bool, str]:
    """Whether a loop is done; its epochs and last metrics."""
    section = config.get(loop)
    total = section.get("epochs") if isinstance(section, Mapping) else None
    if not isinstance(total, int):
        raise ValueError(f"{run.file('config.toml')} must say how many epochs [{loop}] has")
    rows = MetricsTable(run.file(f"{loop}.csv"), keep=total).rows
    if not rows:
        begun = run.file(f"{loop}.pt").exists()
        return False, f"in the first of {total} epochs" if begun else "not begun"
    metrics = {name: value for name, value in rows[-1].items() if name != "epoch"}
    return len(rows) == total, f"{len(rows)} of {total} epochs; {_numbers(metrics, '', '.4g')}"


def _architecture(found: Mapping[str, Any]) -> list[str]:
    """Lines about what architecture.json holds."""
    network, chosen, likely, ties = (
        part if isinstance(part := found.get(name), Mapping) else {}
        for name in ("network", "architecture", "probabilities", "near_ties")
    )
    lines = []
    costs = found.get("costs")
    if isinstance(costs, Mapping):
        within = (f"{name} {one['cost']:.6g} of {one['limit']:.6g}" for name, one in costs.items())
        lines.append(_line("limits", ", ".join(within)))
    if likely:
        least, mean = min(likely.values()), sum(likely.values()) / len(likely)
        lines.append(
            _line("found", f"choices of probability {mean:.3f} on average, {least:.3f} at least")
        )
    if ties:
        lines.append(_line("near ties", _nearest(ties)))
    groups: dict[str, list[str]] = {}
    for name, value in chosen.items():  # such as normal/node0/input1
        group, _, last = name.rpartition("/")
        groups.setdefault(group, []).append(f"{last}={value}")
    for group, values in groups.items():
        text = f"{group or '-'}: {' '.join(values)}"
        lines.append(_wrapped(text, "  ", " " * _INDENT))
    if network:
        sizes = {f"{name.replace('_', ' ')} ": value for name, value in network.items()}
        lines.append(_line("size", _joined(sizes)))
    return lines


def _hardest(classes: Any) -> str:
    """The classes of the least accuracy on test images, of several."""
    classes = classes if isinstance(classes, Mapping) else {}
    accuracies = {
        name: each["accuracy"]
        for name, each in classes.items()
        if isinstance(each, Mapping) and isinstance(each.get("accuracy"), (int, float))
    }
    least = sorted(accuracies, key=lambda name: accuracies[name])[:_SHOWN_CLASSES]
    shown = ", ".join(f"{name}{_UNBROKEN}{accuracies[name]:.3f}" for name in least)
    return f"of {len(accuracies)} classes: {shown}" if len(accuracies) > 1 else ""


def _nearest(ties: Mapping[str, Any]) -> str:
    """The variables whose two most likely values are nearest to each other."""
    pairs = {
        name: list(likely.items())
        for name, likely in ties.items()
        if isinstance(likely, Mapping)
        and len(likely) == 2
        and all(isinstance(p, float) for p in likely.values())
    }
    nearest = sorted(pairs, key=lambda name: pairs[name][0][1] - pairs[name][1][1])[:_SHOWN_TIES]
    shown = (
        f"{name} ({', '.join(f'{value}{_UNBROKEN}{p:.2f}' for value, p in pairs[name])})"
        for name in nearest
    )
    more = f", and {len(pairs) - len(nearest)} more" if len(pairs) > len(nearest) else ""
    return ", ".join(shown) + more


def _line(name: str, text: str) -> str:
    return _wrapped(text, _name(name), " " * _INDENT)


def _command(name: str, text: str) -> str:
    """A line to copy, so it is not wrapped."""
    return _name(name) + text


def _name(name: str) -> str:
    return f"{name + ':':<{_INDENT}}"


def _wrapped(text: str, first: str, others: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace(_UNBROKEN, " ")


def _numbers(values: Mapping[str, Any], prefix: str, form: str) -> str:
    shown = (
        f"{prefix}{name} {value:{form}}".replace(" ", _UNBROKEN)
        for name, value in values.items()
        if isinstance(value, (int, float))
    )
    return ", ".join(shown)


def _joined(values: Mapping[str, Any]) -> str:
    """The values that there are, behind their names; those of a list in brackets."""
    shown = []
    for name, value in values.items():
        if value in (None, ""):
            continue
        parts: Iterable[Any] = value if isinstance(value, list) else [value]
        text = "; ".join(map(str, parts))
        shown.append(f"{name}[{text}]" if isinstance(value, list) else f"{name}{text}")
    return ", ".join(shown)
