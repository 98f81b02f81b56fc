"""Whether an input file is sound, found out by a process of its own, and whether its models are served.

One file is read at a time. A process that dies is started again, some times; a model that nobody serves is waited for while no
solver is here to say which models there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
from msgspec.structs import replace

import failpoints
from gateway.batches.index import Fault, Scan
from gateway.batches.scan import Limits, unknown_model
from qlm_core.errors import QlmError

log = logging.getLogger(__name__)

# A process that dies so often does so because of the file. It is started again after this pause, and twice as long each time.
_TRIES = 5
_RETRY_S = 0.5
# How long a solver may be away before it is assumed that a model is nobody's.
MODELS_WAIT_S = 30.0
_MODELS_POLL_S = 0.2
_SHOWN = 64
# The code of a fault that is no fault of the file.
FAILED = "server_error"
_ROOT = Path(__file__).parents[2]


class ScanFailedError(QlmError):
    """The file cannot be read, however often that is tried."""


class Validator:
    """Validates the files of one gateway.

    Args:
        limits: of a file.
        settled: whether it is known by now which models there are.
    """

    def __init__(self, limits: Limits, settled: Callable[[], bool]) -> None:
        self._limits = limits
        self._settled = settled
        self._turn = asyncio.Semaphore(1)

    async def read(
        self, path: Path, endpoint: str, *, file_id: str, served: Callable[[], Collection[str]]
    ) -> Scan:
        """What is in a file, or all that is wrong with it and its models.

        Args:
            file_id: as its tenant knows it.
            served: the models that there are for the tenant.
        """
        try:
            scan = await self.scan(path, endpoint)
        except FileNotFoundError:
            message = (
                f"Cannot find file {file_id[:_SHOWN]}, or organization does not have access to it."
            )
            fault = Fault(code="invalid_request", message=message, param="file_id")
        except ScanFailedError as error:
            fault = Fault(code=FAILED, message=str(error), param="input_file_id")
        else:
            return scan if scan.faults else replace(scan, faults=await self.unserved(scan, served))
        return Scan(faults=(fault,))

    async def scan(self, path: Path, endpoint: str) -> Scan:
        """What is in a file. Raises ScanFailedError, FileNotFoundError."""
        async with self._turn:
            for attempt in range(_TRIES):
                if attempt:
                    await asyncio.sleep(_RETRY_S * 2.0 ** (attempt - 1))
                found = await self._try(path, endpoint)
                if found is not None:
                    return found
                if not path.exists():
                    raise FileNotFoundError(path)
        raise ScanFailedError("the file cannot be read; the gateway's log says why")

    async def unserved(
        self, scan: Scan, served: Callable[[], Collection[str]]
    ) -> tuple[Fault, ...]:
        """What is wrong with a scan's models, once it is known which there are."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + MODELS_WAIT_S
        while True:
            known = served()
            faults = [
                Fault(
                    code="model_not_found",
                    message=unknown_model(model.name, tuple(known)),
                    param="body.model",
                    line=line,
                )
                for model in scan.models
                if model.name not in known
                for line in model.at
            ]
            if not faults or self._settled() or loop.time() >= until_s:
                break
            await asyncio.sleep(_MODELS_POLL_S)
        faults.sort(key=lambda fault: fault.line or 0)
        return tuple(faults[: self._limits.faults_max])

    async def _try(self, path: Path, endpoint: str) -> Scan | None:
        """One reading; None if the process failed."""
        limits = msgspec.json.encode(self._limits).decode()
        # Whatever lies in the folder where the gateway was started (-P) must not pass for a package of this.
        module = ("-P", "-m", "gateway.batches.scan")
        command = (sys.executable, *module, str(path), endpoint, limits)
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Its words go to a file: what it says must not be lost, and nobody reads it while it works.
        with tempfile.TemporaryFile() as said:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=said,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                )
            except OSError as error:
                log.error("cannot start what reads a batch's file", extra={"error": str(error)})
                return None
            try:
                failpoints.at("gateway.batches.validating")
                data, _ = await process.communicate()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise
            if process.returncode == 0:
                with contextlib.suppress(msgspec.MsgspecError):
                    return msgspec.msgpack.decode(data, type=Scan)
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
        # The kind of error alone, for its message may quote a prompt.
        kind = lines[-1].partition(":")[0][:128] if lines else ""
        log.error("cannot read a batch's file", extra={"status": process.returncode, "kind": kind})
        return None
