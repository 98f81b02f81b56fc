"""The limit of open files at the start of a gateway, with a stand-in for the system's."""

import resource
import socket

import pytest

from gateway.open_files import OTHER_FILES, make_room
from gateway.service import serve
from qlm_core.errors import QlmError
from tests.gateway.peers import config

INFINITE = resource.RLIM_INFINITY
NEEDED = 100 + 20 + OTHER_FILES


class System:
    def __init__(self, soft: int, hard: int, bound: int = 1 << 20) -> None:
        self.limits, self._bound = (soft, hard), bound

    def get(self, what: int) -> tuple[int, int]:
        assert what == resource.RLIMIT_NOFILE
        return self.limits

    def set(self, what: int, limits: tuple[int, int]) -> None:
        assert what == resource.RLIMIT_NOFILE
        if limits[0] > self._bound:
            raise ValueError("current limit exceeds maximum limit")
        self.limits = limits


def install(monkeypatch: pytest.MonkeyPatch, system: System) -> None:
    monkeypatch.setattr(resource, "getrlimit", system.get)
    monkeypatch.setattr(resource, "setrlimit", system.set)


@pytest.mark.parametrize(
    ("system", "after", "warned"),
    [
        (System(NEEDED - 1, NEEDED), NEEDED, False),
        (System(256, INFINITE), NEEDED, False),
        (System(NEEDED + 1, NEEDED + 9), NEEDED + 1, False),
        (System(INFINITE, INFINITE), INFINITE, False),
        (System(256, NEEDED - 1), NEEDED - 1, True),
        (System(256, INFINITE, bound=500), 256, True),
    ],
    ids=["raised", "hard unlimited", "enough", "unlimited", "hard too low", "refused"],
)
def test_the_limit_is_raised_as_far_as_is_needed_and_possible(
    system: System,
    after: int,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hard = system.limits[1]
    install(monkeypatch, system)
    room = make_room(100, 20)
    assert system.limits == (after, hard)
    said = [(one.open_files, one.needed) for one in caplog.records]  # type: ignore[attr-defined]
    assert said == ([(after, NEEDED)] if warned else [])
    # Whatever there is, connections of both kinds fit it.
    assert sum(room) < after or after == INFINITE
    assert (room == (100, 20)) == (not warned)


async def test_a_gateway_makes_room_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(256, INFINITE)
    install(monkeypatch, system)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # This start makes room and then goes no further.
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(QlmError, match=r"gateway\.http_listen"):
            await serve(
                config(
                    limits={"connections_max": 100, "grpc_connections_max": 20}, http_listen=address
                )
            )
    assert system.limits == (NEEDED, INFINITE)
