"""The compiled engine's machine code: made once, kept on disk, loaded, and called through ctypes without the GIL.

The object file is kept under a name made of everything that it depends on: the sources that build it, the layout of
records, LLVM's version, the architecture. It is made for every processor of the architecture, so that a container image
or a home directory can carry it from one machine to another: in the interpreter's loops the host's own instructions
gained nothing that could be measured. A file is loaded only if it belongs to this user, nobody else may write it or its
folder, and its digest agrees: it is machine code. Where the folder cannot be used, code is made anew at each start.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from vmmd.isa import compile as compiler

_SOURCES = [
    "accesses",
    "arithmetic",
    "compile",
    "context",
    "crossings",
    "decode",
    "emit",
    "encoding",
    "frame",
    "hot/linkage",
    "instructions",
    "steps",
    "stop",
    "watching",
    "../memory/host",
    "../memory/memslots",
    "../memory/region",
    "../memory/ring",
]
_DIGEST_BYTES = 32

U64 = ctypes.c_uint64
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "run": (U64, (U64,)),
    "enter": (U64, (U64, U64, U64)),
    "leave_mode": (None, (U64,)),
    "post": (None, (U64, U64, U64)),
    "retract": (None, (U64, U64, U64)),
    "wait_outside": (U64, (U64, U64, U64, U64)),
    "set_bits": (U64, (U64, U64)),
    "compare_exchange_4": (U64, (U64, U64, U64)),
    "compare_exchange_8": (U64, (U64, U64, U64)),
    "exchange": (None, (U64, U64, U64)),
    "clear": (None, (U64, U64, U64)),
}


class Native:
    """The functions of `compile` and `steps`, loaded. Addresses and counts are plain integers.

    Attributes:
        made_anew: whether the code had to be compiled, since no kept object was found.
    """

    def __init__(self, cache_dir: Path | None) -> None:
        machine = _target_machine()
        name = f"t64-{_fingerprint()}.o"
        kept = _read(cache_dir / name) if cache_dir is not None else None
        self.made_anew = kept is None
        code = kept if kept is not None else _compile(machine)
        if kept is None and cache_dir is not None:
            _keep(cache_dir, name, code)
        # The engine owns the code's pages; the functions below are dead without it.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.run = self._function("run")
        self.enter = self._function("enter")
        self.leave_mode = self._function("leave_mode")
        # These keep the GIL: see `CompiledEngine.wait_outside`.
        self.post = self._function("post", ctypes.PYFUNCTYPE)
        self.retract = self._function("retract", ctypes.PYFUNCTYPE)
        self.wait_outside_in_gil = self._function("wait_outside", ctypes.PYFUNCTYPE)
        self.wait_outside = self._function("wait_outside")
        self.set_bits = self._function("set_bits")
        self.compare_exchange = {size: self._function(f"compare_exchange_{size}") for size in (4, 8)}
        self.exchange = self._function("exchange")
        self.clear = self._function("clear")

    def _function(self, name: str, kind: Any = ctypes.CFUNCTYPE) -> Callable[..., int]:
        result, arguments = _SIGNATURES[name]
        function: Callable[..., int] = kind(result, *arguments)(self._engine.get_function_address(name))
        return function


@cache
def initialize() -> None:
    """Have LLVM make code for this machine."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _target_machine() -> llvm.TargetMachine:
    initialize()
    return llvm.Target.from_default_triple().create_target_machine(cpu="generic", opt=3, jit=True)


def _compile(machine: llvm.TargetMachine) -> bytes:
    module = llvm.parse_assembly(str(compiler.build()))
    module.verify()
    passes = llvm.create_pass_builder(machine, llvm.PipelineTuningOptions(speed_level=3)).getModulePassManager()
    passes.run(module, llvm.create_pass_builder(machine, llvm.PipelineTuningOptions(speed_level=3)))
    return bytes(machine.emit_object(module))


def _fingerprint() -> str:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in _SOURCES:
        digest.update((here / f"{source}.py").read_bytes())
    for fact in (llvmlite.__version__, llvm.llvm_version_info, llvm.get_default_triple(), platform.machine()):
        digest.update(repr(fact).encode())
    return digest.hexdigest()[:32]


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(path: Path) -> bytes | None:
    """Return the object in a kept file, or None where there is none that may be trusted."""
    try:
        with path.open("rb") as file:
            if not (_is_private(os.fstat(file.fileno())) and _is_private(path.parent.stat())):
                return None
            content = file.read()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(folder: Path, name: str, code: bytes) -> None:
    """Write the object beside its digest, whole or not at all."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=name, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(file.name).replace(folder / name)
    except OSError:
        # A folder that cannot be written costs a second at the next start, and nothing else.
        return
