"""The settings of an experiment: every section complete and checked, and how two differ."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from asng_ext import tasks
from asng_ext._checks import check_integer
from asng_ext.distributed import ALONE, Ranks
from asng_ext.runs.config import RetrainConfig, SearchConfig, affecting_results, section_from

__all__ = ["checked", "device_named", "differing_settings", "flat"]

_LOOPS: dict[str, type[Any]] = {"search": SearchConfig, "retrain": RetrainConfig}


def checked(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config with every section complete, and its sections."""
    whole = copy.deepcopy(dict(config))
    task: Any = whole.get("task")
    kinds = {**_LOOPS, task: tasks.get(task).config}
    known = {"task", "version", "seed", "device", *kinds}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"unknown settings {unknown}; there are {sorted(known)}")
    check_integer("seed", whole.get("seed"), 0, 2**63)
    sections: dict[str, Any] = {}
    for name, kind in kinds.items():
        if not isinstance(whole.get(name, {}), Mapping):
            raise ValueError(f"[{name}] must be a table of settings, got {whole[name]!r}")
        try:
            sections[name] = section_from(kind, whole.get(name, {}))
        except (ValueError, TypeError) as error:
            raise type(error)(f"settings of [{name}]: {error}") from None
        whole[name] = asdict(sections[name])
    whole.setdefault("device", "cpu")
    return whole, sections


def differing_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How two configs differ in what results depend on, such as "search.momentum was 0.9 and is
    0.8".

    Raises:
        ValueError, TypeError: If a setting is unknown, of the wrong type or out of its limits.
    """

    def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
        whole, sections = checked(config)
        whole.pop("version", None)
        return flat({**whole, **{n: affecting_results(each) for n, each in sections.items()}})

    was, is_ = decisive(before), decisive(now)
    return [
        f"{name} was {was.get(name)!r} and is {is_.get(name)!r}"
        for name in dict.fromkeys([*was, *is_])
        if was.get(name) != is_.get(name)
    ]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of all sections, as "section.setting"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inside = value.items() if isinstance(value, Mapping) else ()
        flat |= {f"{name}.{key}": each for key, each in inside} or {name: value}
    return flat


def device_named(name: Any, ranks: Ranks = ALONE) -> torch.device:
    """The device of that name; where there are ranks, each has a GPU of its own."""
    device = None
    with contextlib.suppress(RuntimeError, TypeError):
        device = torch.device(name)
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be "cpu" or "cuda", got {name!r}')
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asks for a GPU, but this PyTorch finds none")
    if device.type == "cuda" and ranks.size > 1:
        local, gpus = int(os.environ.get("LOCAL_RANK", -1)), torch.cuda.device_count()
        if ":" in str(name) or not 0 <= local < gpus:
            raise ValueError(
                f'device must be "cuda" on several ranks, and LOCAL_RANK the number of one of the '
                f"{gpus} GPUs, got {name!r} and {local} on rank {ranks.rank}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return device
