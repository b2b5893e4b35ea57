"""Settings of a run: the defaults of `lib/settings.py` -> YAML -> `key=value` overrides.

An unknown or ill-typed key is an error that names the nearest valid one. `python -m lib.config` prints all settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lib.settings import PRESETS, STRATEGIES, Config


class ConfigError(ValueError):
    """A settings file or override names an unknown key or holds a value of the wrong type."""


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file, then overrides such as `ezhoi.epochs=3`.

    `strategy` and `ezhoi.preset` set several keys at once where they are named: below the other keys of a file that
    names them, above everything before an override that names them.

    Raises ConfigError naming the source, the key, the nearest valid key or the expected type.
    """
    tree = OmegaConf.structured(Config)
    OmegaConf.set_struct(tree, True)
    if path is not None:
        path = Path(path)
        if not path.is_file():
            names = sorted(str(file) for file in path.parent.glob("*.yaml"))
            raise ConfigError(f"{path}: found no settings file; expected one of {names or 'configs/*.yaml'}")
        tree = _merge(tree, OmegaConf.load(path), str(path))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r}: expected key=value, such as ezhoi.epochs=3")
        _check_key(key, f"override {override!r}")
        tree = _merge(tree, OmegaConf.from_dotlist([override]), f"override {override!r}")
    return OmegaConf.to_object(tree)


def to_yaml(config: Config) -> str:
    """The resolved tree as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


@cache
def describe() -> tuple[tuple[str, str, str, str], ...]:
    """(key, type, default, help) of every setting; the help is the comment beside the field."""
    return tuple(_describe(Config, ""))


def _merge(tree: Any, new: Any, source: str) -> Any:
    for key in _leaf_keys(OmegaConf.to_container(new), ""):
        _check_key(key, source)
    strategy = _named(new, "strategy", STRATEGIES, source)
    preset = _named(OmegaConf.merge(strategy, new), "ezhoi.preset", PRESETS, source)
    try:
        return OmegaConf.merge(tree, {"ezhoi": preset}, strategy, new)
    except OmegaConfBaseException as error:
        key = error.full_key or "?"
        expected = {name: f"{kind} (default {default})" for name, kind, default, _ in describe()}.get(key, "a section")
        raise ConfigError(f"{source}: {key}: {str(error).splitlines()[0]}; expected {expected}") from None


def _named(new: Any, key: str, groups: Mapping[str, dict], source: str) -> dict:
    """The settings behind the name that `new` gives to `key`; none where it gives none."""
    name = OmegaConf.select(new, key)
    if name is not None and name not in groups:
        raise ConfigError(f"{source}: {key}: found {name!r}, expected one of {[n for n in groups if n]}")
    return groups[name or ""]


def _check_key(key: str, source: str) -> None:
    valid = [name for name, *_ in describe()]
    sections = {name.rpartition(".")[0] for name in valid}
    if key in valid or key in sections:
        return
    last = key.rpartition(".")[2]
    hints = [name for name in valid if name.rpartition(".")[2] == last]  # right name, wrong or no section
    hints = hints or difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    hint = " or ".join(map(repr, hints))
    raise ConfigError(f"{source}: unknown setting {key!r}; did you mean {hint}? (python -m lib.config lists all)")


def _leaf_keys(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaf_keys(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix


def _describe(cls: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    comments = _field_comments(cls)
    for item in dataclasses.fields(cls):
        key = f"{prefix}{item.name}"
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            yield from _describe(type(default), f"{key}.")
        else:
            kind = item.type if isinstance(item.type, str) else item.type.__name__
            yield key, kind, repr(default), comments.get(item.name, "")


def _field_comments(cls: type) -> dict[str, str]:
    source = Path(sys.modules[cls.__module__].__file__ or "").read_text()
    body = source[source.index(f"class {cls.__name__}:") :].split("\n\n\n")[0]
    found = re.findall(r"^    (\w+):[^#\n]*(?:#\s*(.*))?$", body, flags=re.MULTILINE)
    return dict(found)


def main() -> None:
    """Print every setting with type, default and help."""
    for key, kind, default, comment in describe():
        print(f"{key:36} {kind:10} {default:44} {comment}")


if __name__ == "__main__":
    main()
