"""What is published: built from the tree, and looked at. It installs nothing.

The wheel is built from the unpacked source distribution, as whoever packages it would, so that one shows the other to
be whole.
"""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
PACKAGES = {"vmmd": ROOT / "vmmd", "vmmd_client": ROOT / "client" / "vmmd_client"}

_NO_SOURCE = {"__pycache__"}


@dataclass(frozen=True)
class Distribution:
    """The two files that are published."""

    sdist: Path
    wheel: Path


def build(folder: Path) -> Distribution:
    """Build both into a folder; what was there under their names is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    sdist = folder / f"vmmd-{VERSION}.tar.gz"
    _hatchling("sdist", folder, ROOT)
    with tempfile.TemporaryDirectory() as name:
        _hatchling("wheel", folder, unpack(sdist, Path(name)))
    return Distribution(sdist, folder / f"vmmd-{VERSION}-py3-none-any.whl")


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source distribution and give the folder that it holds."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


def _hatchling(target: str, folder: Path, source: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)


def complaints(built: Distribution) -> list[str]:
    """Say what of a build is not as it has to be: files, metadata, commands."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
        info = f"vmmd-{VERSION}.dist-info"
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        commands = wheel.read(f"{info}/entry_points.txt").decode()
    expected = _package_files()
    inside = {name for name in names if not name.startswith(f"{info}/")}
    found = [f"the wheel lacks {name}" for name in sorted(expected - inside)]
    found += [f"the wheel has {name}, which is no file of a package" for name in sorted(inside - expected)]
    found += [f"{name} is not marked as typed" for name in PACKAGES if f"{name}/py.typed" not in names]
    if f"{info}/licenses/LICENSE" not in names:
        found.append("the wheel has no licence")
    found += [f"there is no command {name}" for name in PROJECT["scripts"] if f"\n{name} = " not in f"\n{commands}"]
    return found + _metadata_complaints(metadata) + _sdist_complaints(built.sdist)


def _package_files() -> set[str]:
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and not _NO_SOURCE & set(path.parts)
    }


def _metadata_complaints(metadata: Message) -> list[str]:
    found = []
    if metadata["Version"] != VERSION:
        found.append(f"the metadata's version is {metadata['Version']}, not {VERSION}")
    if metadata["Requires-Python"] != PROJECT["requires-python"]:
        found.append(f"Requires-Python is {metadata['Requires-Python']}")
    if not metadata.get_payload():
        found.append("the metadata has no description")
    return found + [
        f"{requirement} has no bound below or none above"
        for requirement in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in requirement and not (">=" in requirement and "<" in requirement)
    ]


def _sdist_complaints(sdist: Path) -> list[str]:
    top = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "DESIGN.md", "Makefile"}
    wanted |= {
        "vmmd/__main__.py",
        "client/vmmd_client/demo.py",
        "tests/conftest.py",
        "config/vmmd.toml",
        "compose.yaml",
    }
    return [f"the source distribution lacks {name}" for name in sorted(wanted - names)]
