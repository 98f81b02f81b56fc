"""`qlm plan`: solve planning problems from files and say how good the plans are."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlm_core.errors import QlmError

if TYPE_CHECKING:
    from qlm_core.planning import Plan, PlanResult, Problem
    from solver.pool import Pool

FORMULATIONS = ("paths", "slot", "arc", "block")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `plan` to the command's subparsers."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan",
        help="solve planning problems from files",
        description="Solve planning problems, each by the objective stated in its file.",
    )
    _add_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from solver.backends import BACKENDS

    parser.add_argument("problems", nargs="+", metavar="PROBLEM.json", type=Path)
    parser.add_argument("--backend", default="auto", choices=tuple(BACKENDS))
    parser.add_argument(
        "--formulation",
        default="paths",
        choices=FORMULATIONS,
        help="for gurobi, highs and pulp: paths (the default) or one of the compact MILPs",
    )
    parser.add_argument("--budget", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--warm", type=Path, metavar="PLAN.json", help="start from this plan")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object a file, one a line")


def run(args: argparse.Namespace) -> int:
    """Solve every file; 0 if all have a plan, 2 with one line on standard error for bad input."""
    try:
        return asyncio.run(_run(args))
    except QlmError as error:
        print(f"qlm: error: {error}", file=sys.stderr)
        return 2


async def _run(args: argparse.Namespace) -> int:
    from solver.backends.warm_up import compile_in_background
    from solver.pool import Pool

    if not args.budget > 0:
        raise QlmError(f"--budget: must be above 0 seconds, is {args.budget}")
    if args.seed < 0:
        raise QlmError(f"--seed: must be 0 or more, is {args.seed}")
    problems = [_read_problem(path) for path in args.problems]
    warm = _read_plan(args.warm) if args.warm is not None else None
    pool = Pool()
    try:
        for path, problem in zip(args.problems, problems, strict=True):
            result = await _solve(pool, problem, warm, args)
            name = problem.name or path.stem
            print(_line(name, result) if args.json else _text(name, result), flush=True)
    finally:
        compiling = pool.compiling
        await pool.close()
        if compiling:
            compile_in_background()
    return 0


async def _solve(
    pool: Pool, problem: Problem, warm: Plan | None, args: argparse.Namespace
) -> PlanResult:
    return await pool.solve(
        problem,
        backend=args.backend,
        formulation=args.formulation,
        budget_s=args.budget,
        warm=warm,
        seed=args.seed,
        wait_compiled=True,
    )


def _read_json(path: Path) -> Any:
    """A JSON document; for a file of several lines with one each, the last."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QlmError(f"{path}: cannot be read ({error})") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1:
            try:
                return json.loads(lines[-1])
            except json.JSONDecodeError:
                pass
        raise QlmError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise QlmError(f"{path}: nested too deeply") from None


def _read_problem(path: Path) -> Problem:
    from qlm_core.planning import from_instance

    try:
        return from_instance(_read_json(path))
    except QlmError as error:
        if str(error).startswith(f"{path}:"):
            raise
        raise QlmError(f"{path}: {error}") from None


def _read_plan(path: Path) -> Plan:
    from qlm_core.planning import plan_from_json

    document = _read_json(path)
    try:
        return plan_from_json(document)
    except QlmError as error:
        raise QlmError(f"{path}: {error}") from None


def _line(name: str, result: PlanResult) -> str:
    return json.dumps(
        {
            "name": name,
            "backend": result.backend,
            "status": result.termination.value,
            "objective": result.objective,
            "lower_bound": result.lower_bound,
            "gap": result.gap,
            "plan": [list(queue) for queue in result.plan or ()],
            "wall_s": result.wall_s,
            "setup_s": result.setup_s,
            "history": [list(point) for point in result.history],
            "step_downs": [
                {
                    "backend": step.backend,
                    "status": step.termination.value,
                    "reason": step.reason,
                }
                for step in result.step_downs
            ],
        }
    )


def _text(name: str, result: PlanResult) -> str:
    bound, gap = "none", "unknown"
    if result.lower_bound is not None and result.gap is not None:
        bound, gap = f"{result.lower_bound:.4f}", f"{100 * result.gap:.2f} %"
    lines = [
        f"{name}: {result.termination.value} by {result.backend}",
        f"  objective {result.objective:.4f}   bound {bound}   gap {gap}",
        f"  {result.wall_s:.3f} s, after {result.setup_s:.3f} s of set-up",
    ]
    lines += [
        f"  {step.backend} stepped down: {step.termination.value} ({step.reason})"
        for step in result.step_downs
    ]
    lines += [
        f"  queue {number}: {' '.join(str(group) for group in queue) or '-'}"
        for number, queue in enumerate(result.plan or ())
    ]
    return "\n".join(lines)


def main() -> int:
    """`python -m qlm.commands.plan`: this command on its own."""
    parser = argparse.ArgumentParser(prog="qlm plan")
    _add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
