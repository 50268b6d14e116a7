"""Settings as values: what an experiment is set to, what the command line changes, what differs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from nas.errors import RunError

FILE_MODULES = ("__main__", "_experiment_")


def describe(value: Any) -> Any:
    """JSON data that says what `value` is set to; functions and classes by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "state_dict") and not isinstance(value, type):
        return _of_module(value)
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _name(named: Any) -> str:
    if named.__module__.startswith(FILE_MODULES):  # the same file, as a script or loaded by `nas run`
        return str(named.__qualname__)
    return f"{named.__module__}.{named.__qualname__}"


def _of_module(module: Any) -> str:
    """By its weights, or, where it has none, such as an augmentation, by its parts."""
    if module.state_dict():
        return f"{_name(type(module))} of weights {_weights_hash(module)}"
    return re.sub(r"\s+| at 0x[0-9a-f]+", " ", repr(module))


def _weights_hash(module: Any) -> str:
    """Of the tensors of a PyTorch module, by name."""
    import torch

    total = 0
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            total = zlib.crc32(data, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), total))
    return f"{total:08x}"


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """``["training.epochs=3"]`` to ``{"training.epochs": "3"}``."""
    pairs = [a.partition("=") for a in assignments]
    if wrong := [a for a, (key, sign, _) in zip(assignments, pairs, strict=True) if not (key and sign)]:
        raise RunError(f"`--set` must be given NAME=VALUE, but got {wrong[0]!r}.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def replaced(settings: Any, texts: Mapping[str, str], inside: str = "") -> Any:
    """`settings` with the fields at dotted paths set to what `texts` say: all at once, since a value may fit
    only beside another.

    Args:
        inside: the path of `settings` itself, with a dot at its end.

    Raises:
        RunError: no such setting, or a text that is none of its values.
    """
    fields = {f.name for f in dataclasses.fields(settings) if f.init}
    values: dict[str, Any] = {}
    deeper: dict[str, dict[str, str]] = {}
    for path, text in texts.items():
        name, _, rest = path.partition(".")
        if name not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise RunError(
                f"`--set {inside}{path}` must name a setting: {type(settings).__name__} has no `{name}`. "
                f"It has {known}."
            )
        if rest:
            deeper.setdefault(name, {})[rest] = text
        else:
            values[name] = _parsed(text, getattr(settings, name), f"{inside}{path}")
    for name, rests in deeper.items():
        current = values.get(name, getattr(settings, name))
        if not dataclasses.is_dataclass(current):
            raise RunError(
                f"`--set {inside}{name}.{next(iter(rests))}` must name a setting, but `{name}` has none "
                f"inside."
            )
        values[name] = replaced(current, rests, f"{inside}{name}.")
    return dataclasses.replace(settings, **values)


def _parsed(text: str, current: Any, path: str) -> Any:
    """`text` as a value of the kind that `current` is."""
    if current is None:
        return None if text.lower() in ("none", "null") else text
    if isinstance(current, str):
        return text
    if isinstance(current, type) or (callable(current) and not dataclasses.is_dataclass(current)):
        return _imported(text, path, current)
    if dataclasses.is_dataclass(current):
        return _made(_imported(text, path, type(current)), text, path)
    try:
        value = json.loads(text.lower() if text in ("True", "False", "None") else text)
    except ValueError:
        value = text
    value = _frozen(value)
    if isinstance(current, float):
        with suppress(TypeError, ValueError):  # "inf" is no JSON
            value = float(text)
    if type(value) is not type(current):
        raise RunError(
            f"`--set {path}` must be a value of type {type(current).__name__} (now {current!r}): "
            f"got {text!r}."
        )
    return value


def _frozen(value: Any) -> Any:
    """Lists as tuples, inside each other too."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _made(cls: Any, text: str, path: str) -> Any:
    """An instance of a class, with its defaults."""
    try:
        return cls()
    except TypeError as error:
        raise RunError(
            f"`--set {path}` must name a class that needs no arguments: {text}: {error}."
        ) from None


def _imported(text: str, path: str, current: Any) -> Any:
    module, _, name = text.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RunError(
            f"`--set {path}` must name something to import, such as {_name(current)}: got {text!r} ({error})."
        ) from None


def differences(stored: Any, now: Any, path: str = "") -> Iterator[str]:
    """``training.epochs was 3, is 60`` for every leaf in which two descriptions differ."""
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*stored, *now]):
            where = f"{path}.{key}" if path else str(key)
            yield from differences(stored.get(key), now.get(key), where)
    elif stored != now:
        yield f"{path} was {stored!r}, is {now!r}"
