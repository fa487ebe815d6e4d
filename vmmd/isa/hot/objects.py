"""From a region to the bytes of its machine code.

A region's code refers to nothing outside of itself: it finds what it calls through its context. So it can be put
anywhere, and linking is copying.
"""

from __future__ import annotations

import llvmlite.binding as llvm

from vmmd.isa.hot.region_code import build
from vmmd.isa.hot.regions import Region
from vmmd.isa.native import initialize

_PASSES = ("sroa", "simplify_cfg", "new_gvn", "instruction_combine", "loop_simplify", "lcssa", "simplify_cfg")
"""What turns variables into values and takes out what is there twice. LLVM's own second level took five times as long,
and no loop ran faster for it: guests' code has been optimised before."""

_STANDS_ALONE = (b".rela.text", b".rodata", b".data", b".bss", b".ltext")
"""Beginnings of the names of sections that code which stands alone does not have."""


class ObjectMaker:
    """Makes machine code for this machine's own processor; one at a time, for LLVM has one lock a process."""

    def __init__(self) -> None:
        initialize()
        self._machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(),
            features=llvm.get_host_cpu_features().flatten(),
            opt=2,
            reloc="pic",
            codemodel="small",
        )
        self._passes = llvm.create_new_module_pass_manager()
        for name in _PASSES:
            getattr(self._passes, f"add_{name}_pass")()

    def code_of(self, region: Region) -> bytes:
        """Return a region's machine code; its function is at its beginning.

        Raises:
            ValueError: the code cannot stand alone.
        """
        # llvmlite has no other way to give a function an attribute that it does not know.
        text = str(build(region)).replace(") nounwind", ') nounwind "no-jump-tables"="true"', 1)
        module = llvm.parse_assembly(text)
        module.verify()
        self._passes.run(module, llvm.create_pass_builder(self._machine, llvm.create_pipeline_tuning_options()))
        return _text_of(self._machine.emit_object(module))


def _text_of(code: bytes) -> bytes:
    text = b""
    for section in llvm.ObjectFileRef.from_data(code).sections():
        name = section.name() or b""
        if name == b".text":
            text = bytes(section.data())
        elif name.startswith(_STANDS_ALONE) and section.size():
            raise ValueError(f"a region's object has a section {name.decode()}")
    return text
