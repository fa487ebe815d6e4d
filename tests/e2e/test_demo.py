"""The main job, small: a daemon process, a recorded memory map, four vCPUs, both ways."""

import json
import subprocess
import sys

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
