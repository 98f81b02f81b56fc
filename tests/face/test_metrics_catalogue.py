"""docs/metrics.md names exactly the metrics that the code publishes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A body field, not a metric.
NO_METRIC = ("qlm_sim",)


def published(tree: ast.Module) -> Iterator[str]:
    """Names given to metrics: the first argument of their constructors, and of yielded gauges."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            first, maker = node.args[0], ast.unparse(node.func)
        elif isinstance(node, ast.Tuple) and node.elts:
            first, maker = node.elts[0], "gauge"
        else:
            continue
        name = first.value if isinstance(first, ast.Constant) else None
        if isinstance(name, str) and name.startswith("qlm_") and name not in NO_METRIC:
            yield name + ("_total" if "counter" in maker.lower() else "")


def test_the_catalogue_is_complete_and_holds_nothing_else() -> None:
    in_code = {
        name
        for package in ("gateway", "solver", "agents")
        for path in (ROOT / package).rglob("*.py")
        for name in published(ast.parse(path.read_text()))
    }
    table = (ROOT / "docs/metrics.md").read_text()
    in_docs = re.findall(r"^\| `(qlm_[a-z0-9_]+)` \|", table, flags=re.MULTILINE)
    assert sorted(in_docs) == sorted(in_code)
