"""`qlm profile`: what engines cost. Lists and shows profiles, fits one to measurements, compares one with a measured run."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlm import look

if TYPE_CHECKING:
    from qlm_core.profile import EngineProfile
    from qlm_core.sim.fit import MeasuredIteration

_LIMITS = ("kv_cache_tokens", "max_num_seqs", "max_num_batched_tokens")
_UNKNOWN_KV_TOKENS = 1 << 20
"""Stands for the KV cache of an engine until that is known."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("profile", help="list, fit and check profiles of engines")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the shipped profiles")
    show = actions.add_parser("show", help="a profile as JSON")
    show.add_argument("profile", help="MODEL:GPU, MODEL:GPU:GPUS or a file")
    _add_fit(actions.add_parser("fit", help="make a profile from measurements"))
    compare = actions.add_parser("compare", help="replay a measured run and set both side by side")
    compare.add_argument("log", type=Path, help="CSV with arrival_s, lengths, ttft_ms, tpot_ms")
    compare.add_argument("profile", help="MODEL:GPU, MODEL:GPU:GPUS or a file")
    _add_limits(compare)
    compare.add_argument("--plot", metavar="FILE", help="draw both distributions (.png, .svg)")


def _add_fit(fit: argparse.ArgumentParser) -> None:
    source = fit.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", help="a running OpenAI-compatible engine, measured now")
    source.add_argument("--log", type=Path, help="a log of requests (see qlm profile compare)")
    source.add_argument(
        "--iterations", type=Path, help="measured iterations: prefill_tokens, decode_batch, iter_ms"
    )
    fit.add_argument("--model", help="name of the model (default: that of --like)")
    fit.add_argument("--gpu", help="name of the GPU (default: that of --like)")
    fit.add_argument("--like", help="MODEL:GPU or a file: capacity and swap times to start from")
    fit.add_argument("--form", choices=("roofline", "linear"), default="roofline")
    fit.add_argument("--api-key", default="", help="bearer key of the engine")
    fit.add_argument("--out", metavar="FILE", help="write the profile here (default: print it)")
    _add_limits(fit)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for name in _LIMITS:
        parser.add_argument(
            "--" + name.replace("_", "-"), type=int, metavar="N", help="the engine's own setting"
        )


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    if args.action == "list":
        return _list()
    if args.action == "show":
        print(_as_json(_named(args.profile)))
        return 0
    return _fit(args) if args.action == "fit" else _compare(args)


def _list() -> int:
    from qlm_core.profile_catalog import shipped_profiles

    table = look.table("profile", right=("KV tokens",))
    table.add_column("source")
    for one in shipped_profiles():
        name = f"{one.model}:{one.gpu}:{one.tensor_parallel}"
        table.add_row(name, f"{one.kv_cache_tokens:,}", one.source)
    look.console().print(table)
    return 0


def _named(text: str) -> EngineProfile:
    """A profile by name or file. Raises ConfigError."""
    import msgspec

    from qlm_core.errors import ConfigError
    from qlm_core.profile import EngineProfile
    from qlm_core.profile_catalog import find_profile

    path = Path(text)
    if path.suffix == ".json" or path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=EngineProfile)
        except OSError as error:
            raise ConfigError(f"{text}: {error.strerror}. Name a file or MODEL:GPU.") from None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{text}: {error}.") from None
    model, _, rest = text.partition(":")
    gpu, _, degree = rest.partition(":")
    if not gpu or (degree and not degree.isdigit()):
        raise ConfigError(f"{text}: not a profile. Write MODEL:GPU, for example llama-3-8b:a100.")
    return find_profile(model, gpu, tensor_parallel=int(degree) if degree else None)


def _with_limits(profile: EngineProfile, args: argparse.Namespace) -> EngineProfile:
    from qlm_core.errors import ConfigError

    given = {name: getattr(args, name) for name in _LIMITS if getattr(args, name) is not None}
    try:
        return replace(profile, **given)
    except ValueError as error:
        raise ConfigError(_of_option(error)) from None


def _of_option(error: ValueError) -> str:
    """An error about a field of a profile, in the spelling of the option that sets it."""
    field, colon, rest = str(error).partition(":")
    return f"--{field.replace('_', '-')}{colon}{rest}"


def _as_json(profile: EngineProfile) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(profile), indent=1).decode()


# --------------------------------------------------------------------------- fit


def _fit(args: argparse.Namespace) -> int:
    from qlm.outputs import require_place
    from qlm_core.errors import ConfigError

    require_place("--out", args.out)
    try:
        profile = _fitted(args)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    text = _as_json(profile)
    if not args.out:
        print(text)
        return 0
    try:
        Path(args.out).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {args.out}: {error.strerror}.") from None
    print(f"wrote {args.out}; name it under `profiles:` of a scenario")
    return 0


def _fitted(args: argparse.Namespace) -> EngineProfile:
    from qlm.fidelity_report import error_text
    from qlm.measurements import read_iterations, read_request_log
    from qlm_core.sim.fidelity import compare_with_log
    from qlm_core.sim.fit import fit_profile_to_log

    start = _start(args)
    if args.log is not None:
        log = read_request_log(args.log)
        _say(f"{len(log)} requests; replaying them a few dozen times")
        profile = fit_profile_to_log(start, log)
        found = compare_with_log(profile, log)
        for name in ("makespan", "ttft", "tpot"):
            _say(f"{name}, beside the measured value: {error_text(getattr(found, name))}")
        return profile
    if args.iterations is not None:
        points = read_iterations(args.iterations)
        return _of_points(start, points, args, source=f"Fitted to {args.iterations}.")
    return _probed(start, args)


def _start(args: argparse.Namespace) -> EngineProfile:
    """All of the profile that is not measured, so that what is wrong with it shows before anything is."""
    from qlm_core.errors import ConfigError
    from qlm_core.profile import EngineProfile, IterationTime

    if args.like is not None:
        if args.url and not args.model:
            raise ConfigError("--model: missing. Name the model as the engine knows it.")
        return _with_limits(_renamed(_named(args.like), args), args)
    if args.log is not None:
        raise ConfigError("--like: missing. Name a profile of a similar GPU to start from.")
    needed = ("model", "gpu") if args.url else ("model", "gpu", "kv_cache_tokens")
    for name in needed:
        if getattr(args, name) is None:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option}: missing. Give it, or a similar profile with --like.")
    unmeasured = IterationTime(
        base_ms=1.0, per_token_ms=0.0, per_sequence_ms=0.0, per_context_token_ms=0.0
    )
    try:
        start = EngineProfile(
            model=args.model, gpu=args.gpu, iteration=unmeasured, kv_cache_tokens=_UNKNOWN_KV_TOKENS
        )
    except ValueError as error:
        raise ConfigError(_of_option(error)) from None
    return _with_limits(start, args)


def _probed(start: EngineProfile, args: argparse.Namespace) -> EngineProfile:
    import asyncio

    from qlm.engine_probe import EngineLimits, Probe
    from qlm_core.errors import ConfigError

    known = args.kv_cache_tokens is not None or args.like is not None

    def accept(limits: EngineLimits) -> None:
        if limits.kv_cache_tokens is None and not known:
            raise ConfigError(
                "--kv-cache-tokens: missing, and the engine does not say. "
                "Give it, or a similar profile with --like."
            )

    probe = Probe(args.url, args.model, api_key=args.api_key, tell=_say)
    points, limits = asyncio.run(probe.measure(accept=accept))
    if args.kv_cache_tokens is None and limits.kv_cache_tokens is not None:
        start = replace(start, kv_cache_tokens=limits.kv_cache_tokens)
    return _of_points(start, points, args, source="Measured on a running engine.")


def _of_points(
    start: EngineProfile,
    points: list[MeasuredIteration],
    args: argparse.Namespace,
    *,
    source: str,
) -> EngineProfile:
    from qlm_core.sim.fit import fit_iteration_time

    found = fit_iteration_time(points, form=args.form)
    _say(
        f"{found.points} iterations; R² {found.r2:.4f}, relative error {found.mean_error:.1%} "
        f"on average, {found.max_error:.1%} at most"
    )
    # What was measured is the whole iteration, host time included.
    return replace(
        start,
        iteration=found.iteration,
        host_overhead_ms=0.0,
        host_per_sequence_ms=0.0,
        source=f"{source} Mean relative error {found.mean_error:.1%}.",
    )


def _renamed(profile: EngineProfile, args: argparse.Namespace) -> EngineProfile:
    names = {name: getattr(args, name) for name in ("model", "gpu") if getattr(args, name)}
    return replace(profile, **names)


# --------------------------------------------------------------------------- compare


def _compare(args: argparse.Namespace) -> int:
    from qlm import fidelity_report
    from qlm.measurements import read_request_log
    from qlm.outputs import require_place
    from qlm_core.errors import ConfigError
    from qlm_core.sim.fidelity import compare_with_log

    require_place("--plot", args.plot)
    profile = _with_limits(_named(args.profile), args)
    log = read_request_log(args.log)
    try:
        found: Any = compare_with_log(profile, log)
    except ValueError as error:
        raise ConfigError(f"{args.log}: {error}") from None
    if args.plot:
        title = f"{args.log.name}, {len(log)} requests, on {profile.model} {profile.gpu}"
        fidelity_report.plot(log, found, Path(args.plot), title=title)
    print(fidelity_report.table(found))
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
