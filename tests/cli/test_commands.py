"""Every command against a real daemon: what it shows, and its JSON."""

from __future__ import annotations

import base64
from pathlib import Path

from vmmd.api.methods import METHODS

from .conftest import Ctl

COUNTS = "1: addi a0, a0, 1\n sd a0, 0x100(a1)\n j 1b\n"


def counting(ctl: Ctl, vm: str, tmp_path: Path) -> None:
    """Let vCPU 0 of a VM count in its memory for good; vCPU 1 waits."""
    source, code = tmp_path / "count.s", tmp_path / "count.bin"
    source.write_text(COUNTS)
    ctl.text("asm", str(source), "--origin", "1M", "-o", str(code))
    ctl.text("memory", "write", vm, "1M", "--file", str(code))
    ctl.text("memory", "write", vm, "0x101000", "--hex", "73 00 50 10")
    ctl.text("regs", "set", vm, "0", "pc=0x100000", "a1=0x102000")
    ctl.text("regs", "set", vm, "1", "pc=0x101000")
    ctl.text("vm", "start", vm)


def test_ping_tells_which_daemon_answers(ctl: Ctl) -> None:
    answer = ctl.json("ping")
    assert answer["url"] == ctl.daemon.url
    assert answer["engine"] == "translated"
    assert answer["limits"]["vms"] > 0
    assert answer["round_trip_ns"] > 0
    assert f"process {answer['pid']}" in ctl.text("ping")


def test_the_default_address_is_the_socket_that_the_daemon_makes_by_default(ctl: Ctl) -> None:
    environment = {"XDG_RUNTIME_DIR": ctl.daemon.environment["XDG_RUNTIME_DIR"], "VMMD_URL": ""}
    result = ctl("ping", **environment)
    assert result.exit_code == 0, result.stderr
    assert ctl.daemon.url in result.stdout


def test_a_vm_is_listed_from_its_creation_to_its_destruction(ctl: Ctl) -> None:
    vm = ctl.json("vm", "create", "--name", "short", "--vcpus", "3", "--cooperative", "--seed", "0x7")["vm"]
    listed = {info["vm"]: info for info in ctl.json("vm", "list")}
    assert listed[vm]["name"] == "short"
    assert listed[vm]["execution"] == "cooperative"
    assert listed[vm]["vcpus"] == [0, 1, 2]
    assert "short" in ctl.text("vm", "list")
    assert ctl.json("vm", "destroy", vm) == {"destroyed": [vm]}
    assert vm not in {info["vm"] for info in ctl.json("vm", "list")}


def test_a_refused_step_of_a_creation_leaves_no_vm(ctl: Ctl) -> None:
    before = ctl.json("vm", "list")
    assert "EINVAL" in ctl.refused("vm", "create", "--memory", "4095")
    assert ctl.json("vm", "list") == before


def test_start_and_stop_tell_the_state(ctl: Ctl, vm: str, tmp_path: Path) -> None:
    counting(ctl, vm, tmp_path)
    assert ctl.json("vm", "list")[-1]["state"] == "running"
    assert ctl.json("vm", "stop", vm) == {"vm": vm, "state": "stopped"}
    assert ctl.json("vm", "start", vm, "--mmio", "ones") == {"vm": vm, "state": "running"}
    assert "stopped" in ctl.text("vm", "stop", vm)


def test_an_advance_retires_what_was_asked_for(ctl: Ctl) -> None:
    vm = ctl.json("vm", "create", "--cooperative", "--memory", "4K", "--vcpus", "1")["vm"]
    ctl.text("memory", "write", vm, "0", "--hex", "6f000000")
    result = ctl.json("vm", "advance", vm, "5000")
    assert (result["instructions"], result["ended_by"]) == (5000, "instructions")
    assert len(result["digest"]) == 64
    assert "5,000" in ctl.text("vm", "advance", vm, "5000")
    ctl.text("vm", "destroy", vm)


def test_slots_are_a_table_and_a_drawing(ctl: Ctl, vm: str) -> None:
    (slot,) = ctl.json("slots", vm)["slots"]
    assert {name: slot[name] for name in ("slot", "flags", "guest_phys_addr", "memory_size")} == {
        "slot": 0,
        "flags": 1,
        "guest_phys_addr": "0x100000",
        "memory_size": "0x40000",
    }
    text = ctl.text("slots", vm)
    assert "│ slot 0  256 KiB  log" in text
    assert "hole, 1 MiB" in text
    assert "│" not in ctl.text("slots", vm, "--no-map")
    empty = ctl.json("vm", "create")["vm"]
    assert ctl.text("slots", empty) == f"{empty}: 0 slots, generation 0\n"
    ctl.text("vm", "destroy", empty)


def test_dirty_pages_are_told_once_by_slot_and_by_range(ctl: Ctl, vm: str) -> None:
    for address in ("0x101000", "0x102000", "0x120000"):
        ctl.text("memory", "write", vm, address, "--text", "x")
    (log,) = ctl.json("dirty", vm)["logs"]
    assert log == {
        "slot": 0,
        "guest_phys_addr": "0x100000",
        "pages": 64,
        "dirty": 3,
        "ranges": [
            {"guest_phys_addr": "0x101000", "memory_size": "0x2000"},
            {"guest_phys_addr": "0x120000", "memory_size": "0x1000"},
        ],
    }
    assert ctl.json("dirty", vm, "--slot", "0")["logs"][0]["dirty"] == 0
    ctl.text("memory", "write", vm, "0x13f000", "--text", "x")
    (log,) = ctl.json("dirty", vm, "--range", "0x13f000:4K")["logs"]
    assert log["ranges"] == [{"guest_phys_addr": "0x13f000", "memory_size": "0x1000"}]
    ctl.text("memory", "write", vm, "1M", "--text", "x")
    assert "1 of 64 logged pages are dirty" in ctl.text("dirty", vm, "--slot", "@1M")
    assert "no slot with a dirty log" in ctl.refused("dirty", vm, "--range", "8M:4K")


def test_what_was_fetched_is_told_also_where_the_next_fetch_fails(ctl: Ctl, vm: str) -> None:
    address = ctl.json("memory", "map", vm, "4K")["userspace_addr"]
    fields = ("slot=1", "flags=0", "guest_phys_addr=0", "memory_size=4096", f"userspace_addr={address}")
    ctl.text("call", "vm.set_user_memory_region", f"vm={vm}", *fields)
    ctl.text("memory", "write", vm, "0x101000", "--text", "x")
    result = ctl("dirty", vm, "--slot", "0", "--slot", "1")
    assert result.exit_code == 1
    assert "0x101000" in result.stdout
    assert "slot 1 [0x0, 0x1000) keeps no dirty log" in result.stderr


def test_memory_is_read_as_it_was_written(ctl: Ctl, vm: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 12
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(data)
    assert ctl.json("memory", "write", vm, "1M", "--file", str(source)) == {"address": "0x100000", "length": len(data)}
    assert base64.b64decode(ctl.json("memory", "read", vm, "0x100000", "0xc00")["data"]) == data
    assert ctl("memory", "read", vm, "1M", "3K").stdout_bytes == data
    ctl.text("memory", "read", vm, "1M", "3072", "-o", str(target))
    assert target.read_bytes() == data


def test_host_memory_is_mapped_written_and_unmapped(ctl: Ctl, vm: str) -> None:
    address = ctl.json("memory", "map", vm, "8K", "--name", "spare")["userspace_addr"]
    ctl.text("memory", "write", vm, address, "--host", "--text", "hello", stdin=None)
    assert "|hello...........|" in ctl.text("memory", "hexdump", vm, address, "32", "--host")
    ctl.text("memory", "unmap", vm, address, "8K")
    assert "EFAULT" in ctl.refused("memory", "hexdump", vm, address, "32", "--host")


def test_a_dump_says_once_that_lines_repeat(ctl: Ctl, vm: str) -> None:
    lines = ctl.text("memory", "hexdump", vm, "1M", "80").splitlines()
    assert [line.split()[0] for line in lines] == ["0000000000100000", "*", "0000000000100040"]


def test_registers_are_shown_and_set(ctl: Ctl, vm: str) -> None:
    ctl.text("regs", "set", vm, "1", "pc=0x1000", "a0=42")
    regs = ctl.json("regs", "show", vm, "1")["regs"]
    assert (regs["pc"], regs["x10"]) == ("0x1000", "0x2a")
    assert "x10 a0" in ctl.text("regs", "show", vm, "1")
    assert ctl.json("regs", "show", vm)["regs"]["pc"] == "0x0"
    assert "EBADF" in ctl.refused("regs", "show", vm, "7")


def test_a_hold_is_kicked_renewed_and_resumed_by_its_name(ctl: Ctl, vm: str) -> None:
    kicked = ctl("kick", vm, "--hold", "mine", "--lease-ms", "60000")
    assert kicked.exit_code == 0
    assert "mine" in kicked.stdout
    assert f"vmmctl resume {vm} mine" in kicked.stderr
    assert ctl.json("kick", vm, "--hold", "mine", "--lease-ms", "60000")["hold"] == "mine"
    assert "ETIMEDOUT" in ctl.refused("kick", vm, "--hold", "other", "--wait-ms", "0")
    assert ctl.json("resume", vm, "mine")["pause_ns"] > 0
    assert "ECANCELED" in ctl.refused("resume", vm, "mine")


def test_a_hold_without_a_name_gets_one(ctl: Ctl, vm: str) -> None:
    hold = ctl.json("kick", vm)["hold"]
    assert len(hold) > 16
    assert "resumed, paused for" in ctl.text("resume", vm, "--", hold)


def test_a_raw_kick_belongs_to_nobody(ctl: Ctl, vm: str) -> None:
    assert ctl.json("kick", vm, "--raw")["hold"] is None
    assert ctl.json("resume", vm, "--raw") == {"pause_ns": None, "generation": 1}


def test_stats_and_top_count_what_vcpus_do(ctl: Ctl, vm: str, tmp_path: Path) -> None:
    counting(ctl, vm, tmp_path)
    while "HLT 1" not in ctl.text("stats", vm):
        pass
    stats = ctl.json("stats", vm)
    assert set(stats["vcpus"]) == {"0", "1"}
    assert stats["vcpus"]["1"] == {"instructions": 1, "exits": {"KVM_EXIT_HLT": 1}, "stray_exits": 0, "kicks": 0}
    seen = 0.0
    while not seen:
        value = ctl.json("top", "--once", "--interval", "0.01")
        assert value["interval_ns"] >= 10_000_000
        (row,) = [row for row in value["vms"] if row["vm"] == vm]
        assert (row["state"], row["vcpus"], row["generation"]) == ("running", 2, 1)
        seen = row["million_instructions_per_s"]
    assert "of a test" in ctl.text("top", "--once", "--interval", "0.01")


def test_code_is_assembled_and_disassembled(ctl: Ctl, tmp_path: Path) -> None:
    source = b"start: addi a0, a0, 1\n j start\n"
    code = ctl("asm", "-", stdin=source).stdout_bytes
    assert len(code) == 8
    assert ctl.json("asm", "-", "--origin", "0x1000", stdin=source)["symbols"] == {"start": "0x1000"}
    first, second = ctl.json("disasm", "-", "--origin", "0x1000", stdin=code)
    assert (first["address"], second["address"]) == ("0x1000", "0x1004")
    assert "addi" in ctl.text("disasm", "-", stdin=code)
    assert "start" in ctl.text("asm", "-", "-o", str(tmp_path / "code"), stdin=source)


def test_any_method_can_be_called_with_json_and_strings(ctl: Ctl, vm: str) -> None:
    assert ctl.json("call", "kvm.check_extension", "extension=KVM_CAP_NR_MEMSLOTS") > 0
    regions = '[{"slot": 3, "flags": 0, "guest_phys_addr": "0x0", "memory_size": 4096, "userspace_addr": "0x1000"}]'
    assert ctl.json("call", "vm.set_user_memory_region_list", f"vm={vm}", f"regions={regions}")["generation"] == 2
    assert "no_such" in ctl.refused("call", "vm.no_such", f"vm={vm}")


def test_an_update_of_its_own_is_traced_plain_and_atomic(ctl: Ctl) -> None:
    plain, atomic = ctl.json("trace-update")
    # On a busy machine it may be that no vCPU gets to run while the range is missing: then it is told anew.
    while not any(vcpu["stray_exits"] for step in plain["steps"] for vcpu in step["vcpus"].values()):
        plain, atomic = ctl.json("trace-update")
    assert [step["step"] for step in plain["steps"]] == ["before", "-0", "+0", "after"]
    assert [step["step"] for step in atomic["steps"]] == ["before", "kick", "-0", "+0", "resume", "after"]
    assert sum(vcpu["stray_exits"] for step in atomic["steps"] for vcpu in step["vcpus"].values()) == 0
    assert (plain["pause_ns"], atomic["pause_ns"] > 0) == (None, True)
    generations = [step["generation"] for step in atomic["steps"] if step["generation"] is not None]
    assert generations == sorted(generations)
    assert all(vcpu["instructions"] == 0 for step in atomic["steps"] if step["held"] for vcpu in step["vcpus"].values())
    assert "trace-update" not in [info["name"] for info in ctl.json("vm", "list")]


def test_an_update_of_a_vm_is_traced_and_changes_nothing(ctl: Ctl, vm: str) -> None:
    assert "dirty log" in ctl.refused("trace-update", vm, "0")
    address = ctl.json("memory", "map", vm, "8K")["userspace_addr"]
    fields = ("slot=1", "flags=0", "guest_phys_addr=0", "memory_size=8192", f"userspace_addr={address}")
    ctl.text("call", "vm.set_user_memory_region", f"vm={vm}", *fields)
    before = ctl.json("slots", vm)["slots"]
    assert [traced["mode"] for traced in ctl.json("trace-update", vm, "1")] == ["atomic"]
    text = ctl.text("trace-update", vm, "0x1000", "--plain")
    assert text.index("One update, plain") < text.index("The same update, atomic")
    assert ctl.json("slots", vm)["slots"] == before


def test_the_demo_tells_its_own_options(ctl: Ctl) -> None:
    assert "--json-only" in ctl.text("demo", "--help")
    assert ctl("demo", "--updates", "0").exit_code == 2


def test_discover_lists_the_methods_or_says_that_the_daemon_cannot(ctl: Ctl) -> None:
    if "rpc.discover" not in METHODS:
        assert "rpc.discover" in ctl.refused("discover")
        return
    names = {method["name"] for method in ctl.json("discover")["methods"]}
    assert names >= {"vm.get_stats", "vm.kick_all_running_vcpus"}
    assert "KVM_SET_USER_MEMORY_REGION" in ctl.text("discover")
    assert ctl.json("discover", "vm.get_stats")["name"] == "vm.get_stats"
    assert "EBADF" in ctl.text("discover", "vm.get_stats")
    assert "no method vm.nothing" in ctl.refused("discover", "vm.nothing")
