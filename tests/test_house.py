"""House rules as tests: what review would otherwise have to remember."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from qlm_core import config
from qlm_core.config import Config
from qlm_core.fleet_template import described

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("qlm", "qlm_core", "solver", "gateway", "agents", "protos", "failpoints")
MODULE_LINES_MAX = 500
HASHED = ("set", "hash")
OUTSIDE = ("open", "print", "input", "exec", "eval", "breakpoint")


def sources(*packages: str) -> list[Path]:
    files = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in files if "_pb2" not in path.name]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "path", sources(*PACKAGES, "benchmarks", "client", "deploy", "tests"), ids=name_of
)
def test_a_module_is_short_and_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    if text:
        assert ast.get_docstring(ast.parse(text)), "begins without a docstring"


@pytest.mark.parametrize("path", sources("qlm_core"), ids=name_of)
def test_the_core_builds_no_set_and_touches_nothing_outside(path: Path) -> None:
    """Iteration over a set follows the hash seed, so the core has none to iterate over."""
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Set | ast.SetComp), f"{where} builds a set"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in HASHED, f"{where} calls {node.func.id}()"
            assert node.func.id not in OUTSIDE, f"{where} calls {node.func.id}()"


@pytest.mark.parametrize("path", sources(*PACKAGES, "benchmarks"), ids=name_of)
def test_no_error_is_swallowed_unseen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            where = f"{name_of(path)}:{node.lineno}"
            assert node.type is not None, f"{where} catches everything"


def imported_by(statement: str) -> list[str]:
    program = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return result.stdout.split()


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import qlm_core", ("numba", "scipy", "matplotlib", "grpc", "asyncio")),
        (
            "import qlm.__main__ as main; main._parser(None)",
            ("numpy", "numba", "matplotlib", "grpc", "aiohttp", "rich", "msgspec"),
        ),
    ],
)
def test_imports_stay_light(statement: str, heavy: tuple[str, ...]) -> None:
    loaded = imported_by(statement)
    assert [name for name in heavy if name in loaded] == []


def lists(value: object) -> object:
    """Tuples as lists, all the way down, as YAML has them."""
    if isinstance(value, dict):
        return {key: lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [lists(item) for item in value]
    return value


def test_config_yaml_spells_out_every_default() -> None:
    written = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert lists(written) == lists(described(Config(), redact=False))


SECTIONS = [
    kind
    for kind in vars(config).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_of_the_configuration_has_a_reader(section: type[msgspec.Struct]) -> None:
    code = "".join(
        path.read_text() for path in sources(*PACKAGES) if not path.name.startswith("config")
    )
    for field in msgspec.structs.fields(section):
        assert re.search(rf"\.{field.name}\b", code), field.name


PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "benchmarks").glob("*.md"))


def commands_in(page: Path, program: str) -> list[list[str]]:
    """The commands of a program that a page shows, in code blocks and in backticks."""
    text = page.read_text().replace("\\\n", " ")
    spans = re.findall(rf"`({program} (?=\S)[^`\n]+)`", text)
    spans += re.findall(
        rf"^(?:    |\t|\$ |)(?:\.venv/bin/)?({program} (?=\S)[^\n#]+)", text, flags=re.MULTILINE
    )
    return [shlex.split(span.split("  #")[0])[1:] for span in spans]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_documented_commands_exist(page: Path) -> None:
    from qlm import __main__ as face

    for words in commands_in(page, "qlm"):
        if words[0] == "COMMAND":
            continue
        assert words[0] in face.COMMANDS, f"qlm {' '.join(words)}"
        asked = words[: 2 if words[0] in ("batch", "ray") else 1]
        shown = subprocess.run(
            [sys.executable, "-m", "qlm", *asked, "--help"], capture_output=True, text=True
        ).stdout
        for word in words[1:]:
            if word.startswith("--") and words[0] not in ("bench", "certs", "config", "profile"):
                assert word.partition("=")[0] in shown, f"qlm {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_documented_targets_and_links_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in commands_in(page, "make"):
        target = next(word for word in words if "=" not in word)
        if re.fullmatch(r"[a-z-]+", target):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
