"""What instructions take for operands: the errors, what waits for addresses, and long branches."""

import pytest

from tests.isa.assembling import code, error

CSRS = (
    "write a number from 0 to 4095, or one of mstatus, mie, mtvec, mscratch, mepc, mcause, mtval, mip, cycle, time, "
    "instret, mhartid"
)


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        ("frob a0", 1, "frob is no instruction of this machine"),
        ("addi a0, a0, 2048", 14, "2048 does not fit: from -2048 to 2047 do"),
        ("addi a0, a0, -2049", 14, "-2049 does not fit: from -2048 to 2047 do"),
        ("addi a0, a0, later\nlater = 5000", 14, "5000 does not fit: from -2048 to 2047 do"),
        ("sd a0, 4096(sp)", 8, "4096 does not fit: from -2048 to 2047 do"),
        ("slli a0, a0, 64", 14, "64 does not fit: from 0 to 63 do"),
        ("slliw a0, a0, 32", 15, "32 does not fit: from 0 to 31 do"),
        ("lui a0, 0x100000", 9, "1048576 does not fit into 20 bits: from 0 to 1048575 do"),
        ("auipc a0, -1", 11, "-1 does not fit into 20 bits: from 0 to 1048575 do"),
        ("j .+3", 3, "the distance 3 to 0x3 does not fit: multiples of 2 from -1048576 to 1048574 do"),
        ("beqz a0, .+1", 10, "the distance 1 to 0x1 does not fit: multiples of 2 from -4096 to 4094 do"),
        ("addi a0, 5, 5", 10, "addi takes a register here, and 5 is none"),
        ("mv a0, 5", 8, "mv takes a register here, and 5 is none"),
        ("li 5, a0", 4, "li takes a register here, and 5 is none"),
        ("li a0, a1", 8, "the value of a1 must be known here: define it above"),
        ("l: li a0, l", 11, "li takes a constant, and this is an address: la takes it"),
        ("l: addi a0, a0, l", 17, "the address 0x0 is no constant: %lo(...) or la take addresses"),
        ("l: lui a0, l", 12, "the address 0x0 is no constant: %hi(...) or la take addresses"),
        ("addi a0, a0, 5(a0)", 14, "addi takes a value here, and 5(a0) is none"),
        ("addi a0, a0, a1", 14, "a1 is a register, and a value is wanted here"),
        ("add a0, a1", 1, "these operands do not suit add: it is written add rd, rs1, rs2 or add rd, rs, imm"),
        ("ecall a0", 1, "these operands do not suit ecall: it is written ecall"),
        ("sub a0, a0, 5", 13, "sub takes a register here, and 5 is none"),
        ("add a0, , a1", 1, "an operand of add is missing between commas"),
        ("add a0, a1, a2,", 1, "an operand of add is missing between commas"),
        ("fence wr, rw", 7, "fence orders some of i, o, r and w, written in this order"),
        ("fence 3, rw", 7, "fence orders some of i, o, r and w, written in this order"),
        ("lui a0, %lo(5)", 9, "%lo does not fit into lui: %hi, %pcrel_hi do"),
        ("slli a0, a0, %lo(5)", 14, "%lo does not fit into slli: none does"),
        ("addi a0, a0, %lo 5", 14, "%lo takes a value in parentheses, and nothing behind them"),
        ("lui a0, %hi(1 << 40)", 13, "0x10000000000 is out of lui's reach: from -2147485696 to 2147481599 are in it"),
        ("csrr a0, misa", 10, f"misa names no CSR of T64 and no constant above: {CSRS}"),
        ("csrr a0, mie + 1", 10, "the value of mie must be known here: define it above"),
        ("csrr a0, later\nlater = 5", 10, f"later names no CSR of T64 and no constant above: {CSRS}"),
        ("csrw a0, a1", 6, f"a0 names no CSR of T64 and no constant above: {CSRS}"),
        ("csrr a0, 4096", 10, f"4096 numbers no CSR: {CSRS}"),
        ("csrr a0, -1", 10, f"-1 numbers no CSR: {CSRS}"),
        ("csrr a0, .", 10, f"an address numbers no CSR: {CSRS}"),
        ("csrr a0, 1 / 0", 12, "1 is divided by 0"),
        ("csrr a0, 8(a0)", 10, "csrr takes a value here, and 8(a0) is none"),
        ("csrwi mie, 32", 12, "32 does not fit: from 0 to 31 do"),
        ("csrwi mie, a0", 12, "a0 is a register, and a value is wanted here"),
        ("csrrw a0, mie, 32", 16, "32 does not fit: from 0 to 31 do"),
        ("csrw mie", 1, "these operands do not suit csrw: it is written csrw csr, rs or csrw csr, imm"),
        ("addi a0, a0, %pcrel_lo(.)", 24, "no instruction with %pcrel_hi is at 0x0"),
    ],
)
def test_an_instruction_that_is_wrong_is_refused_where_it_stands(source: str, column: int, message: str) -> None:
    caught = error(source)
    assert (caught.line, caught.column, caught.message) == (1, column, message)


def test_an_immediate_may_be_a_name_or_a_distance_that_comes_later() -> None:
    assert code("addi a0, a0, size\na: nop\nb: .equ size, b-a") == code("addi a0, a0, 4\nnop")


def test_auipc_reaches_two_gibibytes_and_low_addresses_from_anywhere() -> None:
    assert code("la a0, near\n.equ near, 0x80000100", 0x8000_0000) == code("auipc a0, 0\naddi a0, a0, 0x100")
    assert code("la a0, low\n.equ low, 0x100", 0x1_8000_0000) == code("lui a0, 0\naddi a0, a0, 0x100")
    assert "is -140737488355328 bytes away" in error("la a0, f\n.equ f, 1<<47", 1 << 48).message


def test_a_long_branch_jumps_over_a_jal_and_a_short_one_stays_at_the_very_limit() -> None:
    assert len(code("beqz a0, far\n.zero 4088\nfar:")) == 4092
    assert len(code("beqz a0, far\n.zero 4092\nfar:")) == 4100
    assert len(code("far: .zero 4096\nbeqz a0, far")) == 4100
    assert len(code("far: .zero 4100\nbeqz a0, far")) == 4108
    assert code("blt a0, a1, far\n.zero 8000\nfar:")[:8] == code("bge a0, a1, .+8\nj .+8004")


def test_ports_are_read_and_written() -> None:
    assert code("inb a0, 0x3f(a1)\noutw a0, -1(zero)\ninh a0, (a1)").hex() == "0b85f5030b65f0ff0b950500"


def test_a_csr_is_a_name_or_a_number_and_its_immediate_may_come_later() -> None:
    assert code("csrr a0, mie") == code("csrr a0, 0x304") == code(".equ number, 0x300; csrr a0, number + 4")
    assert code("csrwi mie, bits\n.equ bits, 8") == code("csrwi mie, 8")


def test_the_name_of_a_csr_is_the_csr_also_where_a_label_has_it() -> None:
    assert code("time: csrr a0, time\nj time") == code("l: csrr a0, 0xc01\nj l")
