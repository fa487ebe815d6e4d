"""Shell completion: the scripts, and what they are answered."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

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


def test_a_command_loads_what_it_needs_and_no_other_command() -> None:
    check = (
        "import sys\n"
        "from vmmd_client.cli import main\n"
        "try: main(['completion', 'bash'])\n"
        "except SystemExit: pass\n"
        "loaded = [name for name in sys.modules if name.startswith('vmmd_client.cli.') or name == 'rich']\n"
        "assert 'vmmd_client.cli.run' not in loaded and 'rich' not in loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL, check=True, timeout=60)
