"""Every backend in its own process, against exhaustive search; and whatever can go wrong there."""

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from qlm_core.config import GurobiConfig, SolverConfig
from qlm_core.planning import Limits, Termination, check, evaluate, greedy, repair
from qlm_core.secret import Secret
from solver.backends import BACKENDS, UnknownBackend, available, is_available, warm_up
from solver.backends.formulation import FORMULATIONS, build
from solver.backends.order import problem_from_wire, problem_to_wire
from solver.pool import BackendProcess, Pool
from tests.planning.problems import best_objective, random_problem

INSTANCES = sorted(Path(__file__).parents[3].glob("shared/instances/n8g2_*.json"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[Pool]:
    # Compiled here if they never were: some of the proofs below need them in time.
    warm_up.load()
    shared = Pool()
    yield shared
    await shared.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "greedy"])
async def test_tiny_problems_are_solved_to_the_optimum(pool: Pool, backend: str) -> None:
    if not is_available(backend):
        pytest.skip(f"the library of {backend} is not installed")
    for seed in (1, 2):
        problem = random_problem(seed, groups=4, alpha=3.0 * (seed % 2), rich=seed == 2)
        result = await pool.solve(problem, backend=backend, budget_s=1.0, wait_compiled=True)
        assert result.plan is not None
        assert result.step_downs == ()
        assert result.backend == backend
        assert result.objective == pytest.approx(best_objective(problem), rel=1e-3)
        if backend in ("auto", "gurobi", "highs", "pulp"):
            assert result.termination is Termination.OPTIMAL
            assert result.lower_bound == pytest.approx(result.objective)


@pytest.mark.parametrize("formulation", list(FORMULATIONS))
@pytest.mark.parametrize("backend", ["gurobi", "highs", "pulp"])
async def test_compact_formulations_agree(pool: Pool, backend: str, formulation: str) -> None:
    if not is_available(backend):
        pytest.skip(f"the library of {backend} is not installed")
    problem = random_problem(5, groups=3, alpha=2.0)
    result = await pool.solve(problem, backend=backend, formulation=formulation, budget_s=5.0)
    assert result.step_downs == ()
    optimum = best_objective(problem)
    if formulation == "block":
        assert result.lower_bound is None
        assert result.objective >= optimum - 1e-6
    else:
        assert result.objective == pytest.approx(optimum)
        assert result.termination is Termination.OPTIMAL


@pytest.mark.parametrize("name", list(FORMULATIONS))
@pytest.mark.parametrize("seed", range(4))
async def test_formulations_hold_the_plans_they_encode(name: str, seed: int) -> None:
    problem = random_problem(seed, groups=6, queues=2, alpha=1.0, rich=seed % 2 == 1)
    plan = greedy(problem)
    program = build(problem, name, plan)
    vector = program.encode(plan)
    if vector is None:
        assert name == "block"
        return
    row = np.repeat(np.arange(program.rows), np.diff(program.starts))
    values = np.bincount(row, program.value * vector[program.index], minlength=program.rows)
    assert (values >= program.row_low - 1e-6).all()
    assert (values <= program.row_high + 1e-6).all()
    assert (vector >= program.low - 1e-9).all()
    assert (vector <= program.high + 1e-9).all()
    decoded = program.decode(vector)
    assert check(problem, decoded) is None
    if name != "block":
        assert decoded == plan
        if not problem.ramp_s.any():
            cost = float(program.cost @ vector)
            assert cost == pytest.approx(evaluate(problem, plan).objective)


async def test_answers_are_never_worse_than_the_repaired_plan(pool: Pool) -> None:
    problem = random_problem(31, groups=30, queues=4, models=3)
    warm = tuple(queue[:-1] for queue in greedy(problem))
    repaired = evaluate(problem, repair(problem, warm)).objective
    heard: list[float] = []
    for backend in ("auto", "search", "greedy"):
        heard.clear()
        result = await pool.solve(
            problem,
            backend=backend,
            budget_s=0.1,
            warm=warm,
            on_improvement=lambda plan, objective: heard.append(objective),
        )
        assert result.objective <= repaired * (1 + 1e-9)
        assert heard[-1] == result.objective
        assert heard == sorted(heard, reverse=True)


@pytest.mark.parametrize("backend", [name for name in available() if name != "greedy"])
async def test_a_backend_killed_in_the_middle_steps_down(backend: str) -> None:
    pool = Pool()
    problem = random_problem(8, groups=60, queues=6, models=3)
    try:
        process = pool.process_of(backend)
        await process.start()
        assert await process.wait_ready(compiled=False)
        killed = []

        def kill(_plan: object, _objective: float) -> None:
            if not killed and process.pid is not None:
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)

        result = await pool.solve(problem, backend=backend, budget_s=2.0, on_improvement=kill)
        assert killed
        assert result.plan is not None
        assert check(problem, result.plan) is None
        assert result.step_downs[0].backend == backend
        assert result.step_downs[0].termination is Termination.ERROR
        again = await pool.solve(problem, backend=backend, budget_s=0.2)
        assert again.plan is not None
        assert again.step_downs == ()
    finally:
        await pool.close()


async def test_where_no_process_can_be_started_the_solver_plans_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start(self: BackendProcess) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(BackendProcess, "start", start)
    pool = Pool()
    problem = random_problem(3)
    result = await pool.solve(problem, backend="highs", budget_s=0.2)
    await pool.close()
    assert result.plan is not None
    assert check(problem, result.plan) is None
    assert result.backend == "greedy"
    assert [step.backend for step in result.step_downs][:2] == ["highs", "search"]
    assert "Too many open files" in result.step_downs[0].reason


async def test_a_process_that_hangs_is_killed_at_its_deadline(pool: Pool) -> None:
    problem = random_problem(9, groups=30, queues=3)
    process = pool.process_of("search")
    await process.start()
    assert await process.wait_ready(compiled=False)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    result = await pool.solve(problem, backend="search", budget_s=0.05)
    assert result.plan is not None
    assert result.backend == "greedy"
    assert [step.backend for step in result.step_downs] == ["search"]
    assert process.pid != pid


async def test_all_backends_dead_still_gives_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    monkeypatch.setattr("sys.executable", "/bin/false")
    problem = random_problem(9, groups=30, queues=3)
    result = await pool.solve(problem, backend="highs", budget_s=0.1)
    await pool.close()
    assert result.backend == "greedy"
    assert result.plan == greedy(problem)
    assert {step.termination for step in result.step_downs} == {Termination.ERROR}


async def test_gurobi_with_a_licence_that_is_too_small(pool: Pool) -> None:
    if not is_available("gurobi"):
        pytest.skip("gurobipy is not installed")
    problem = random_problem(10, groups=60, queues=4)
    result = await pool.solve(problem, backend="gurobi", formulation="arc", budget_s=1.0)
    assert result.plan is not None
    assert result.step_downs[0].backend == "gurobi"
    assert result.step_downs[0].termination is Termination.TOO_LARGE
    assert result.backend == "highs"


async def test_gurobi_without_a_licence() -> None:
    if not is_available("gurobi"):
        pytest.skip("gurobipy is not installed")
    keys = GurobiConfig(access_id=Secret("none"), secret=Secret("none"), license=Secret("1"))
    pool = Pool(SolverConfig(gurobi=keys))
    try:
        problem = random_problem(10, groups=5)
        result = await pool.solve(problem, backend="gurobi", budget_s=1.0)
    finally:
        await pool.close()
    assert result.plan is not None
    assert result.step_downs[0].backend == "gurobi"
    assert result.step_downs[0].termination in (Termination.UNAVAILABLE, Termination.ERROR)
    assert result.backend == "highs"


async def test_nothing_to_plan(pool: Pool) -> None:
    empty = random_problem(1, groups=0, queues=3)
    for backend in ("auto", "search", "greedy", "highs"):
        result = await pool.solve(empty, backend=backend, budget_s=0.1)
        assert result.plan == ((), (), ())
        assert result.objective == 0.0


async def test_unknown_backends_are_named(pool: Pool) -> None:
    with pytest.raises(UnknownBackend, match="cplex"):
        await pool.solve(random_problem(1), backend="cplex")


async def test_the_same_seed_and_work_give_the_same_plan(pool: Pool) -> None:
    problem = random_problem(14, groups=50, queues=5, models=3)
    answers = [
        await pool.solve(problem, backend="search", budget_s=30.0, work=30_000, seed=4)
        for _ in range(2)
    ]
    assert answers[0].plan == answers[1].plan
    assert answers[0].plan != (await pool.solve(problem, backend="greedy")).plan


async def test_cancelling_a_solve_frees_the_backend(pool: Pool) -> None:
    problem = random_problem(14, groups=50, queues=5)
    task = asyncio.create_task(pool.solve(problem, backend="search", budget_s=30.0))
    process = pool.process_of("search")
    assert await process.wait_ready(compiled=False)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await pool.solve(problem, backend="search", budget_s=0.1)).step_downs == ()


def running_with(word: str) -> list[int]:
    """Processes that compile for a cache folder of this name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"warm_up" in command and word.encode() in environment:
            found.append(int(folder.name))
    return found


async def seen(word: str, *, running: bool) -> bool:
    """Whether such a process runs, or none does, some time soon."""
    for _ in range(1000):
        if bool(running_with(word)) == running:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_plans_do_not_wait_for_the_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    fresh = Pool()
    try:
        problem = random_problem(17, groups=12, queues=3)
        result = await fresh.solve(problem, budget_s=0.2, wait_compiled=True)
        assert result.step_downs == ()
        assert result.objective <= evaluate(problem, greedy(problem)).objective + 1e-9
        assert fresh.compiling
        assert await seen(str(tmp_path), running=True)
    finally:
        await fresh.close()
    assert await seen(str(tmp_path), running=False)


async def test_the_attached_compiler_ends_in_peace_while_its_input_is_open(pool: Pool) -> None:
    """All is compiled by the time the pool is there, so it has nothing to do."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", warm_up.__name__, "--attached"),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    said = await process.stderr.read()
    assert (await process.wait(), said) == (0, b"")


async def test_problems_cross_the_pipe_unchanged() -> None:
    problem = random_problem(3, rich=True)
    again = problem_from_wire(problem_to_wire(problem))
    for name in problem.__dataclass_fields__:
        value, other = getattr(problem, name), getattr(again, name)
        assert np.array_equal(value, other) if isinstance(value, np.ndarray) else value == other


async def test_limits_are_wall_time_or_work() -> None:
    assert Limits().work is None
    assert Limits(work=3).wall_s == float("inf")


async def test_shared_instances_keep_their_objectives(pool: Pool) -> None:
    import json

    from qlm_core.planning import from_instance, plan_from_json

    if not INSTANCES:
        pytest.skip("the data folder beside the checkout (../shared) is absent")
    for file in INSTANCES:
        document = json.loads(file.read_text())
        problem = from_instance(document)
        best = document["best"]
        objective = evaluate(problem, plan_from_json(document)).objective
        assert objective == pytest.approx(best["objective"], abs=1e-3)
        result = await pool.solve(problem, budget_s=1.0, wait_compiled=True)
        assert result.objective == pytest.approx(best["objective"], abs=1e-3)
        assert result.termination is Termination.OPTIMAL
