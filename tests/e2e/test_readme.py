"""What the README shows works: its Python runs, and its curl commands are answered as it says."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from vmmd_client.local_daemon import local_daemon

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


async def output_of(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_python_example_makes_an_atomic_update() -> None:
    example, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed = await output_of(sys.executable, "-c", example)
    assert re.search(r"generation 5, paused for \d+ µs", printed)
    assert "0 stray exits in" in printed


@pytest.mark.skipif(
    shutil.which("riscv64-unknown-elf-gcc") is None,
    reason="riscv64-unknown-elf-gcc is not installed; Debian has it in gcc-riscv64-unknown-elf",
)
async def test_the_guest_in_c_is_built_and_run_as_shown(tmp_path: Path) -> None:
    (command,) = re.findall(r"\$ (riscv64-unknown-elf-gcc .*?)\n```", README, re.DOTALL)
    elf = tmp_path / "hello.elf"
    await output_of("bash", "-c", f"cd {ROOT} && {command.replace('hello.elf', str(elf))}")
    _, snippet = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    body = textwrap.indent(snippet.replace("hello.elf", str(elf)), "        ")
    program = (
        "import asyncio\nfrom pathlib import Path\nfrom vmmd_client import connect\n"
        "from vmmd_client.local_daemon import local_daemon\n"
        "async def main():\n    async with local_daemon() as url, connect(url) as vmmd:\n"
        f"{body}\nasyncio.run(main())\n"
    )
    assert (await output_of(sys.executable, "-c", program)).startswith("hello, world 1 of 3")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_curl_commands_are_answered_as_shown() -> None:
    commands = [
        re.split(r"\n(?=\{)", block.removeprefix("$ "))
        for shown in re.findall(r"```\n(\$ .*?)```", README, re.DOTALL)
        for block in re.split(r"\n(?=\$ )", shown.strip())
        if block.startswith("$ curl")
    ]
    assert len(commands) == 2
    async with local_daemon() as url:
        answers = []
        for command in commands:
            here = command[0].replace("/tmp/vmmd.sock", url.removeprefix("unix://"))
            answers.append(json.loads(await output_of("sh", "-c", here)))
    assert answers[0] == json.loads(commands[0][1])
    kick, change, resume = answers[1]
    assert kick["result"]["hold"] == "mine"
    assert change["error"]["data"]["errno"] == resume["error"]["data"]["errno"] == "EINVAL"
    assert resume["error"]["data"]["rolled_back"] is True
