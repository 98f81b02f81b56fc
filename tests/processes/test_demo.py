"""`qlm demo` as a newcomer runs it: every request accounted for, and the same ones without QLM beside it."""

import re
import subprocess
import sys
from pathlib import Path


def test_the_demo_accounts_for_all_and_compares(tmp_path: Path) -> None:
    picture = tmp_path / "both.png"
    words = ["demo", "--seconds", "3", "--plot", str(picture)]
    ran = subprocess.run(
        [sys.executable, "-m", "qlm", *words], capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout
    sent = re.search(r"accounted +(\d+) sent = (\d+) finished, 0 shed", said)
    assert sent, said
    assert sent[1] == sent[2]
    assert re.search(r"R² .* within their p90", said)
    prose = " ".join(said.split())
    assert f"of the {sent[1]} requests met their targets" in prose
    assert "With QLM, 100.0 % of the same requests" in prose
    assert re.search(r"GPUs changed models .* off on average\.", prose)
    assert picture.read_bytes().startswith(b"\x89PNG")
