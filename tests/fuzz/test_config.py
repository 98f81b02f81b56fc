"""Whatever a configuration says: it is one, or a ConfigError in a line; and no command prints a traceback or a secret of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qlm import config_file
from qlm.__main__ import main
from qlm_core.config import Config
from qlm_core.errors import ConfigError
from tests.fuzz.effort import EXAMPLES, fuzzed

SECRET = "canary-upstream-key-deadbeef"
DEFAULT: dict[str, Any] = msgspec.json.decode(
    msgspec.json.encode(Config().to_mapping(redact=False))
)
NUMBERS = [
    0, -1, 1, 2, 2**31, 2**63, 2**64, 10**30, 10**400, 0.0, -0.0, 5e-324, 1e300, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
WORDS = [
    "", " ", "~", "a", "sim", "vllm", "openai", "auto", "127.0.0.1:0", "h:²", "h:99999999999", ":1", "[::1]:5", "http://x",
    "http://[", "http://x:99999", "http://x:²", "${HOME}", "${NOT_THERE}", "\ud800", "\x00", "é" * 300, "mistral-7b", "a10",
    "2020-01-01", "1_000", "0x10", "1e5", "yes",
]  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=4)
)
keys = st.one_of(
    st.sampled_from(sorted(DEFAULT)), st.sampled_from(WORDS), st.integers(-1, 2), st.none()
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)

Path_ = tuple[Any, ...]


def places(node: Any, path: Path_ = ()) -> list[Path_]:
    """Every place in a tree."""
    found = [path]
    inner = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in inner:
        found += places(value, (*path, key))
    return found


def edited(node: Any, path: Path_, edit: Callable[[Any], Any]) -> Any:
    """A copy of a tree with another value in one place."""
    if not path:
        return edit(node)
    step, *rest = path
    if isinstance(node, dict) and step in node:
        return node | {step: edited(node[step], tuple(rest), edit)}
    if isinstance(node, list) and isinstance(step, int) and step < len(node):
        return [*node[:step], edited(node[step], tuple(rest), edit), *node[step + 1 :]]
    return node


PLACES = places(DEFAULT)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """The default configuration with a few values that are something else, missing, or beside a new one."""
    tree: Any = DEFAULT
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        value = draw(trees)
        tree = edited(tree, path, lambda _, value=value: value)
        if path and draw(st.integers(0, 4)) == 0:
            key = draw(keys)
            tree = edited(
                tree,
                path[:-1],
                lambda node, key=key, value=value: (
                    node | {key: value} if isinstance(node, dict) else node
                ),
            )
    return tree


def made(build: Callable[[], Config]) -> Config | None:
    """The configuration, or None where it is refused as it should be."""
    try:
        return build()
    except ConfigError as refused:
        words = str(refused)
    assert len(words) < 4_000
    return None


def assert_whole(config: Config) -> None:
    """It can be written down and read again, and says the same then."""
    text = config_file.to_yaml(config, redact=False)
    again = config_file.parse(text, environ={})
    assert again.to_mapping(redact=False) == config.to_mapping(redact=False)


@fuzzed
@given(trees | mutated())
def test_a_tree_is_a_configuration_or_refused(tree: Any) -> None:
    config = made(lambda: Config.from_mapping(tree))
    if config is not None:
        config.to_mapping()


ODD = [*NUMBERS, *WORDS, None, True, [], {}, [None], {"a": 1}, [[]], [{}], {"": {}}, {None: 1}]


def test_no_place_takes_what_breaks_a_command() -> None:
    """Every place of the default with every odd value, one at a time; with a share of them where there is little time."""
    share = 1 if EXAMPLES else 5
    for index, path in enumerate(PLACES):
        for value in ODD[index % share :: share]:
            tree = edited(DEFAULT, path, lambda _, value=value: value)
            made(lambda tree=tree: Config.from_mapping(tree))


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """YAML, mostly."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        return draw(st.text(st.characters(), max_size=60)).encode("utf-8", "surrogatepass")
    if kind == 2:
        depth = draw(st.sampled_from([10, 90, 900, 20_000]))
        return (
            draw(st.sampled_from([b"[", b"{a: ", b"- ", b"? ", b"&a [", b"!!python/object:x "]))
            * depth
        )
    data = bytearray(yaml.safe_dump(draw(mutated()), allow_unicode=True).encode("utf-8", "replace"))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(
            st.sampled_from([b"", b"\n", b"  ", b":", b"*x", b"&x ", b"<<: ", b"!!int ", b"\t", b"\xff", b"- ", b"${A}"])
        )  # fmt: skip
    return bytes(data)


@fuzzed
@given(texts())
def test_a_file_is_checked_without_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(data)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["config", "check", str(path)])
    assert status in (0, 2)
    assert "Traceback" not in out.getvalue() + err.getvalue()
    if status:
        assert err.getvalue().startswith("qlm: error: ")
        assert len(err.getvalue()) < 4_000
    else:
        assert_whole(config_file.load(config_file.Source(path=path), environ=os.environ))


@fuzzed
@given(st.lists(st.tuples(st.text(max_size=20) | st.sampled_from(
    ["gateway.api_keys", "agents.*.gpu", "agents.0", "agents", "*", "*.*", "gateway.store.path", "", "[0]", '"a"', "a[9]", "."]
), st.text(max_size=8) | st.sampled_from(WORDS)), max_size=2))  # fmt: skip
def test_an_override_is_taken_or_refused(overrides: list[tuple[str, str]]) -> None:
    given = [f"{path}={value}" for path, value in overrides]
    made(lambda: config_file.override(Config(), given))


def test_what_is_shown_tells_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = {"name": "a", "models": ["mistral-7b"], "gpu": "a10"}
    engine = {"kind": "openai", "openai": {"base_url": "http://x", "api_key": SECRET}}
    tree = {
        "gateway": {"api_keys": [SECRET]},
        "solver": {"gurobi": {"access_id": SECRET, "secret": SECRET, "license": SECRET}},
        "agents": [agent | {"engine": engine}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    for words in (["show", "--config", str(path)], ["check", str(path)]):
        assert main(["config", *words]) == 0
        shown = capsys.readouterr()
        assert SECRET not in shown.out + shown.err
