"""Shell completion: the scripts, and what they are answered."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys

import pytest

from vmmd_client.cli.group import COMMANDS

from .conftest import Ctl


def completed(ctl: Ctl, words: str) -> list[str]:
    """What bash would be offered for the last word."""
    result = ctl(_VMMCTL_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1))
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_vmmctl(ctl: Ctl, shell: str) -> None:
    script = ctl.text("completion", shell)
    assert f"_VMMCTL_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True, timeout=20)


def test_commands_options_methods_and_ids_of_vms_are_completed(ctl: Ctl, vm: str) -> None:
    assert "slots" in completed(ctl, "vmmctl sl")
    assert "--dry-run" in completed(ctl, "vmmctl grow --dr")
    assert "vm.get_stats" in completed(ctl, "vmmctl call vm.get_s")
    assert vm in completed(ctl, "vmmctl slots v")
    assert vm in completed(ctl, "vmmctl vm destroy vm1 v")


def test_without_a_daemon_there_is_nothing_to_complete_and_no_noise(ctl: Ctl) -> None:
    result = ctl(
        VMMD_URL="unix:///nobody", _VMMCTL_COMPLETE="bash_complete", COMP_WORDS="vmmctl slots v", COMP_CWORD="2"
    )
    assert (result.stdout.strip(), result.stderr) == ("", "")


LOADED = """
import sys
from vmmd_client.cli import main
try: main(%r)
except SystemExit: pass
print([name for name in sys.modules if name.startswith("vmmd_client.cli.") or name in %r], file=sys.stderr)
"""
HEAVY = ("rich", "pydantic", "aiohttp", "asyncio", "wsproto")


@pytest.mark.parametrize(
    ("arguments", "spared"),
    [
        (["--help"], ("rich", "pydantic", "aiohttp", "asyncio", "vmmd_client.cli.vm")),
        (["completion", "bash"], ("rich", "pydantic", "aiohttp", "asyncio", "vmmd_client.cli.run")),
        (["vm", "--help"], ("pydantic", "aiohttp", "vmmd_client.cli.run")),
        (["slots", "--help"], ("pydantic", "aiohttp", "vmmd_client.cli.run")),
    ],
)
def test_help_and_completion_load_no_client_and_no_other_command(arguments: list[str], spared: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED % (arguments, HEAVY)], capture_output=True, check=True, timeout=60
    )
    loaded = ast.literal_eval(done.stderr.decode())
    assert "vmmd_client.cli.group" in loaded
    assert [name for name in spared if name in loaded] == []


def test_the_sentence_of_every_command_fits_in_its_line_of_the_help(ctl: Ctl) -> None:
    shown = ctl("--help", COLUMNS="80").stdout
    for name, (_, says) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(says)}$", shown, re.MULTILINE), name
