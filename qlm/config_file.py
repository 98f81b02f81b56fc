"""Finds, reads and checks `config.yaml`, and writes the effective configuration down again.

The tree itself, its defaults and its rules are `qlm_core.config`. This module owns everything about the file: where
it is looked for, strict YAML (a key given twice is an error), `${NAME}` in secrets, and `--set path=value`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from qlm_core import fleet_template
from qlm_core.config import Config
from qlm_core.errors import ConfigError

FILE_BYTES_MAX = 1_048_576

# The fields in which `${NAME}` is replaced from the environment, `*` standing for any one step.
SECRETS = (
    "solver.gurobi.access_id",
    "solver.gurobi.secret",
    "solver.gurobi.license",
    "gateway.api_keys.*",
    "gateway.api_keys.*.key",
    "gateway.webhooks.*.secret",
    "auth.secret",
    "agents.*.engine.openai.api_key",
    "agents.*.engine.vllm.env.*",
    "agent_defaults.engine.openai.api_key",
    "agent_defaults.engine.vllm.env.*",
)

# What PyYAML raises beside its own: for a date that is none, a number without digits, thousands of brackets.
_LOADER_ERRORS = (ArithmeticError, LookupError, TypeError, ValueError, RecursionError)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_STEP = re.compile(r'"(?P<quoted>[^"]+)"|\[(?P<index>\d+|\*)\]|(?P<plain>[^.\[\]"]+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a configuration comes from: a file (None for the defaults) and overrides on top."""

    path: Path | None
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How messages call it."""
        return str(self.path) if self.path is not None else "built-in defaults"


def find(option: str | None, *, environ: Mapping[str, str], directory: Path) -> Path | None:
    """The file to read: `option` (--config), else $QLM_CONFIG, else ./config.yaml, else None.

    Raises ConfigError when a file that was asked for by name is not there.
    """
    for given, origin in ((option, "--config"), (environ.get("QLM_CONFIG"), "QLM_CONFIG")):
        if given:
            path = Path(given)
            if not path.is_file():
                problem = "no file" if path.exists() else "no such file"
                raise ConfigError(f"{given}: {problem}. Correct {origin} or create the file.")
            return path
    default = directory / "config.yaml"
    return default if default.is_file() else None


def load(source: Source, *, environ: Mapping[str, str] | None) -> Config:
    """Read, expand, override and check. Raises ConfigError as `FILE: path: problem. remedy`.

    Args:
        environ: where `${NAME}` is taken from; None leaves it as it stands, for an agent's machine to expand. There are no
            webhooks then: they are gateways' alone, and a name has not the form that their secrets must have.
    """
    if source.path is None:
        config = Config()
    else:
        text = _read(source.path)
        config = _labelled(source.label, lambda: parse(text, environ=environ))
    if not source.overrides:
        return config
    return _labelled("--set", lambda: override(config, source.overrides))


def parse(text: str, *, environ: Mapping[str, str] | None) -> Config:
    """Build the tree from YAML text, `environ` as for `load`. Raises ConfigError without a file name."""
    data = strict_yaml(text)
    if data is not None and not isinstance(data, dict):
        raise ConfigError("the file must be a mapping of sections. Start from `qlm config show`.")
    data = _expand(data, (), environ)
    if environ is None and isinstance(data, dict) and isinstance(data.get("gateway"), dict):
        data["gateway"].pop("webhooks", None)
    return Config.from_mapping(data)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Apply `path=value` texts in order. A step is a key, an index, an agent's name or `*`.

    What follows from `host`, `port_base` or `agent_defaults`, or is as if it did, follows them where they are changed.
    """
    full = _plain(config.to_mapping(redact=False))
    data = _plain(fleet_template.described(config, redact=False))
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"{text!r} is not path=value, for example solver.backend=highs.")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, *_LOADER_ERRORS):
            # It may be a secret, so it is not repeated.
            raise ConfigError(f"{path}: this is not a YAML value. Quote it.") from None
        steps = _steps(path)
        if not steps:
            raise ConfigError(f"{path!r} names no key, for example solver.backend=highs.")
        _assign(data, full, steps, parsed, path)
    return Config.from_mapping(data)


def to_yaml(config: Config, *, redact: bool = True) -> str:
    """The whole tree as YAML, every agent in full, secrets masked unless `redact` is False."""
    return dumped(config.to_mapping(redact=redact))


def to_short_yaml(config: Config) -> str:
    """The same without what follows from other keys (`qlm_core.fleet_template`), secrets masked."""
    return dumped(fleet_template.described(config))


def dumped(data: object) -> str:
    """Plain data as YAML."""
    text: str = yaml.safe_dump(_plain(data), sort_keys=False, width=100)
    return text


def _plain(data: object) -> Any:
    """The same as fresh mappings and lists, none of them shared."""
    return msgspec.json.decode(msgspec.json.encode(data))


def _labelled(label: str, build: Callable[[], Config]) -> Config:
    try:
        return build()
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes. This is no configuration.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None


def strict_yaml(text: str) -> object:
    """What a YAML text says. Raises ConfigError without a file name, also for a key that stands twice in a mapping."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - derives from SafeLoader
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax(error)) from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"not valid YAML: {problem}. Correct the file.") from None
    except _LOADER_ERRORS as error:
        # Its words may quote a secret.
        kind = type(error).__name__
        raise ConfigError(
            f"not readable as YAML ({kind}): a date that is none, a number without digits, or endless "
            "brackets. Correct the file."
        ) from None


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset, in which a key may stand only once in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"line {line}: the key {key.value!r} stands here and in line "
                    f"{seen[key.value]}. Remove one."
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep=deep)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "cannot be parsed"
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}not valid YAML: {problem}. Correct this line."


def _expand(value: object, path: tuple[str, ...], environ: Mapping[str, str] | None) -> object:
    """Replace `${NAME}` in secrets; anywhere else it is an error, since nothing would expand it."""
    if isinstance(value, dict):
        return {key: _expand(item, (*path, str(key)), environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*path, f"[{i}]"), environ) for i, item in enumerate(value)]
    if not isinstance(value, str) or not _REFERENCE.search(value):
        return value
    where = ".".join(path).replace(".[", "[")
    if not any(_matches(pattern, path) for pattern in SECRETS):
        raise ConfigError(
            f"{where}: ${{NAME}} is only replaced in secrets ({', '.join(SECRETS)}). "
            "Write the value itself."
        )
    if environ is None:
        return value

    def named(match: re.Match[str]) -> str:
        name = match[1]
        if name not in environ:
            raise ConfigError(f"{where}: the environment variable {name} is not set. Export it.")
        return environ[name]

    expanded = _REFERENCE.sub(named, value)
    # Nothing would then be a door that stands open, or a key that everybody knows.
    if not expanded.strip():
        raise ConfigError(f"{where}: empty. Give a key: {value} is set to nothing.")
    return expanded


def _matches(pattern: str, path: tuple[str, ...]) -> bool:
    steps = pattern.split(".")
    return len(steps) == len(path) and all(
        step in ("*", part) for step, part in zip(steps, path, strict=True)
    )


def _steps(path: str) -> list[str]:
    return [
        match["quoted"] or match["index"] or match["plain"].strip()
        for match in _STEP.finditer(path)
    ]


def _assign(node: Any, full: Any, steps: list[str], value: object, path: str) -> None:
    """Set a value in the short form of a configuration; `full` is the same place in its full form."""
    step, rest = steps[0], steps[1:]
    for key in _keys(node, step, path):
        if not rest:
            node[key] = value
            continue
        below = _below(full, key)
        if isinstance(node, dict):
            # What is not said has its defaults, of which a list is changed as a whole; a misspelt key is found later on.
            node.setdefault(key, list(below) if isinstance(below, list) else {})
        _assign(node[key], below, rest, value, path)


def _below(node: Any, key: Any) -> Any:
    if isinstance(node, dict):
        return node.get(key)
    fits = isinstance(node, list) and isinstance(key, int) and key < len(node)
    return node[key] if fits else None


def _keys(node: Any, step: str, path: str) -> list[Any]:
    """The keys or indices of `node` that a step selects; a new key of a mapping is allowed."""
    if isinstance(node, dict):
        return list(node) if step == "*" else [step]
    if not isinstance(node, list):
        raise ConfigError(f"{path}: {step!r} is inside a plain value. Check `qlm config show`.")
    if step == "*":
        return list(range(len(node)))
    if step.isdigit() and int(step) < len(node):
        return [int(step)]
    named = [
        i for i, item in enumerate(node) if isinstance(item, dict) and item.get("name") == step
    ]
    if not named:
        raise ConfigError(f"{path}: the list has no entry {step!r}; it has {len(node)} entries.")
    return named


def current(option: str | None, overrides: Sequence[str]) -> Config:
    """The configuration of this process, from its options, environment and directory."""
    path = find(option, environ=os.environ, directory=Path.cwd())
    return load(Source(path=path, overrides=tuple(overrides)), environ=os.environ)


def unexpanded(option: str | None, overrides: Sequence[str]) -> Config:
    """The same for agents on other machines: each `${NAME}` still stands, to be taken from the environment there."""
    path = find(option, environ=os.environ, directory=Path.cwd())
    return load(Source(path=path, overrides=tuple(overrides)), environ=None)


def said(option: str | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """The sections that the file of this process has itself, and those of its overrides. Raises ConfigError."""
    path = find(option, environ=os.environ, directory=Path.cwd())
    data = None if path is None else strict_yaml(_read(path))
    sections = tuple(map(str, data)) if isinstance(data, dict) else ()
    return sections + tuple(steps[0] for text in overrides if (steps := _steps(text)))


def example() -> str:
    """The text of the commented configuration: package data of a wheel, at the top of a checkout."""
    here = Path(__file__).parent
    for place in (here / "config.yaml", here.parent / "config.yaml"):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise ConfigError("config.yaml: it is missing from this installation. Install it again.")
