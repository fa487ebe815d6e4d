"""The main job, small: a daemon process, a recorded memory map, four vCPUs, both ways; README.md shows its end."""

import json
import re
import subprocess
import sys

from tests.docs.fences import ROOT, fences_of

LAST_LINE_FIELDS = {
    "updates": None,
    "plain": {"stray_exits", "wrong_values"},
    "atomic": {"stray_exits", "wrong_values", "pause_us_p50", "pause_us_p99"},
    "guest_mips": None,
}


def test_plain_updates_are_noticed_and_atomic_ones_are_not():
    done = subprocess.run(
        [sys.executable, "-m", "vmmd_client.demo", "--updates", "100"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert {name: set(value) if isinstance(value, dict) else None for name, value in result.items()} == LAST_LINE_FIELDS
    assert result["updates"] >= 100
    assert result["plain"]["stray_exits"] > 0
    assert result["plain"]["wrong_values"] > 0
    assert (result["atomic"]["stray_exits"], result["atomic"]["wrong_values"]) == (0, 0)
    assert 0 < result["atomic"]["pause_us_p50"] <= result["atomic"]["pause_us_p99"]
    assert result["guest_mips"] > 1
    text = "\n".join(lines[:-1])
    for words in ("plain: 100 of 100 updates", "atomic: 100 of 100 updates", "stray exits", "vCPU 3", "resume"):
        assert words in text
    (shown,) = [
        fence.text for fence in fences_of(ROOT / "README.md") if "tests/e2e/test_demo.py" in fence.marks.values()
    ]
    title = shown.splitlines()[0]
    assert without_figures(f"{title}{done.stdout.partition(title)[2]}") == without_figures(shown)


def without_figures(text: str) -> list[str]:
    """Give the lines of a table without its numbers, and without the spaces and rules that are as wide as they."""
    return [re.sub(r"[ ━─]+", " ", re.sub(r"\d[\d,.]*", "N", line)).strip() for line in text.splitlines()]
