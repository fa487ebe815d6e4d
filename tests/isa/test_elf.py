"""Executables: what is read of them, and that any other bytes are refused in one way."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.isa.elf_file import (
    EHDR,
    PHDR,
    PT_INTERP,
    PT_NOTE,
    SHN_ABS,
    SHN_COMMON,
    SHN_UNDEF,
    STB_LOCAL,
    STB_WEAK,
    STT_FILE,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
    STT_TLS,
    SYM,
    File,
    Load,
    Sym,
)
from vmmd.isa.elf import (
    MAX_MEMORY_BYTES,
    MAX_NAME_BYTES,
    MAX_PROGRAM_HEADERS,
    MAX_SECTIONS,
    MAX_SYMBOLS,
    ElfError,
    Image,
    Segment,
    parse,
)

BASE = 0x8000_0000
TOP = (1 << 64) - 1
CODE = b"\x13\0\0\0" * 4
BOX = Load(BASE, CODE)
VALID = File(
    [BOX, Load(BASE + 0x1000, b"data", 0x800)],
    symbols=[Sym(b"_start", BASE), Sym(b"table", BASE + 0x1000, STB_LOCAL, STT_OBJECT)],
)


def refused(file: File | bytes) -> ElfError:
    with pytest.raises(ElfError) as caught:
        parse(file if isinstance(file, bytes) else file.bytes())
    assert caught.value.part in str(caught.value)
    return caught.value


def symbols(*of: Sym) -> dict[str, int]:
    return dict(parse(File([BOX], symbols=list(of)).bytes()).symbols)


def test_segments_entry_and_symbols_are_what_the_file_says() -> None:
    assert parse(VALID.bytes()) == Image(
        BASE,
        (Segment(BASE, CODE, 16), Segment(BASE + 0x1000, b"data", 0x800)),
        {"_start": BASE, "table": BASE + 0x1000},
    )


def test_an_image_cannot_be_changed() -> None:
    image = parse(VALID.bytes())
    with pytest.raises(AttributeError):
        image.entry = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        image.symbols["main"] = 0  # type: ignore[index]


def test_segments_come_in_the_order_of_their_addresses_and_empty_ones_are_left_out() -> None:
    image = parse(File([Load(BASE + 0x1000, b"b"), Load(BASE + 0x500), Load(BASE, CODE)]).bytes())
    assert [segment.paddr for segment in image.segments] == [BASE, BASE + 0x1000]


def test_segments_that_touch_do_not_overlap() -> None:
    assert len(parse(File([BOX, Load(BASE + len(CODE), b"next")]).bytes()).segments) == 2


def test_other_program_headers_than_loads_are_passed_over() -> None:
    assert len(parse(File([Load(TOP, b"note", type=PT_NOTE), BOX]).bytes()).segments) == 1


def test_segments_go_to_their_physical_addresses_and_the_entry_with_them() -> None:
    image = parse(File([Load(BASE, CODE, vaddr=0x1000)], entry=0x1008).bytes())
    assert (image.entry, image.segments[0].paddr) == (BASE + 8, BASE)


def test_a_segment_may_end_at_the_last_address() -> None:
    image = parse(File([Load(TOP - 15, CODE)], entry=TOP - 15).bytes())
    assert image.segments[0].paddr == TOP - 15


def test_a_file_without_sections_has_no_symbols() -> None:
    assert dict(parse(File([BOX], symbols=[Sym(b"a")], sections=False).bytes()).symbols) == {}
    assert dict(parse(File([BOX], symbols=[Sym(b"a")], symtab={"type": 1}).bytes()).symbols) == {}


def test_symbols_are_functions_objects_and_labels_that_have_a_name_and_a_place() -> None:
    assert symbols(
        Sym(b"function", 1),
        Sym(b"object", 2, type=STT_OBJECT),
        Sym(b"label", 3, type=STT_NOTYPE),
        Sym(b"absolute", TOP, shndx=SHN_ABS),
        Sym(b"", 4),
        Sym(b"section", 5, type=STT_SECTION),
        Sym(b"file.c", 6, type=STT_FILE, shndx=SHN_ABS),
        Sym(b"tls", 7, type=STT_TLS),
        Sym(b"elsewhere", 8, shndx=SHN_UNDEF),
        Sym(b"common", 9, shndx=SHN_COMMON),
        Sym(b"$xrv64i2p1_m2p0", 10, STB_LOCAL, STT_NOTYPE),
        Sym(b".L12", 11, STB_LOCAL, STT_NOTYPE),
        Sym(b"odd binding", 12, bind=7),
    ) == {"function": 1, "object": 2, "label": 3, "absolute": TOP}


def test_of_several_symbols_of_one_name_the_strongest_stands_and_of_equals_the_first() -> None:
    assert symbols(Sym(b"a", 1, STB_LOCAL), Sym(b"a", 2), Sym(b"a", 3, STB_WEAK)) == {"a": 2}
    assert symbols(Sym(b"a", 1, STB_LOCAL), Sym(b"a", 2, STB_LOCAL)) == {"a": 1}


def test_a_name_that_is_no_text_is_given_in_escapes() -> None:
    assert symbols(Sym(b"\xff\x80a", 1), Sym("größe".encode(), 2)) == {"\\xff\\x80a": 1, "größe": 2}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"class": 1}, "ELF32"),
        ({"data": 2}, "big-endian"),
        ({"class": 7}, "EI_CLASS"),
        ({"machine": 62}, "EM_X86_64"),
        ({"machine": 0x1234}, "4660"),
        ({"type": 1}, "link it first"),
        ({"type": 3}, "-no-pie"),
        ({"type": 4}, "core dump"),
        ({"type": 0x4321}, "17185"),
        ({"flags": 1}, "RVC"),
        ({"flags": 2}, "-mabi=lp64"),
        ({"flags": 4}, "floating-point"),
        ({"flags": 6}, "floating-point"),
        ({"flags": 0x10}, "Ztso"),
        ({"flags": 0x8000_0000}, "not known"),
        ({"phnum": 0}, "nothing to load"),
        ({"phoff": 0}, "nothing to load"),
        ({"phentsize": 32}, "phentsize"),
        ({"phoff": TOP}, "cut off"),
        ({"phnum": MAX_PROGRAM_HEADERS + 1}, "at most"),
        ({"phnum": 0xFFFF}, "at most"),
        ({"shentsize": 40}, "shentsize"),
        ({"shoff": TOP}, "cut off"),
        ({"shnum": MAX_SECTIONS + 1}, "at most"),
        ({"shnum": 200}, "cut off"),
    ],
)
def test_a_header_that_is_not_for_this_machine_is_refused_and_the_error_says_what_it_is(
    header: dict[str, int], says: str
) -> None:
    assert says in str(refused(File([BOX], header=header)))


def test_code_for_half_of_the_registers_runs_on_all_of_them() -> None:
    assert parse(File([BOX], header={"flags": 8}).bytes()).entry == BASE


@pytest.mark.parametrize(
    ("loads", "says"),
    [
        ([], "nothing to load"),
        ([Load(BASE)], "nothing to load"),
        ([Load(BASE, CODE, memsz=15)], "less than p_filesz"),
        ([Load(BASE, CODE, filesz=1 << 40, memsz=1 << 40)], "cut off"),
        ([Load(BASE, CODE, offset=TOP)], "cut off"),
        ([Load(TOP - 14, CODE)], "beyond 2^64"),
        ([Load(BASE, CODE, vaddr=TOP)], "beyond 2^64"),
        ([Load(BASE, CODE, memsz=1 << 60)], "more than the largest"),
        ([Load(BASE, CODE, memsz=TOP)], "beyond 2^64"),
        ([BOX, Load(BASE + (1 << 32), b"", memsz=MAX_MEMORY_BYTES - 15)], "more than the largest"),
        ([BOX, BOX], "overlap"),
        ([Load(BASE + 15, b"x"), BOX], "overlap"),
        ([Load(BASE, CODE, memsz=0x1001), Load(BASE + 0x1000, b"x")], "overlap"),
        ([BOX, Load(0, b"/lib/ld.so\0", type=PT_INTERP)], "-static"),
        ([Load(BASE + 4, CODE)], "no segment"),
    ],
)
def test_segments_that_cannot_be_meant_are_refused(loads: list[Load], says: str) -> None:
    assert says in str(refused(File(loads)))


def test_as_much_memory_as_is_allowed_is_taken() -> None:
    assert parse(File([Load(BASE, CODE, memsz=MAX_MEMORY_BYTES)]).bytes()).segments[0].memory_size == MAX_MEMORY_BYTES


@pytest.mark.parametrize(("entry", "says"), [(BASE + 16, "no segment"), (0, "no segment"), (BASE + 2, "multiple of 4")])
def test_an_entry_where_no_instruction_begins_is_refused(entry: int, says: str) -> None:
    assert says in str(refused(File([BOX], entry=entry)))


@pytest.mark.parametrize(
    ("symtab", "says"),
    [
        ({"link": 0}, "no string table"),
        ({"link": 1}, "no string table"),
        ({"link": 0xFFFF_FFFF}, "no string table"),
        ({"size": 25}, "entry has 24"),
        ({"entsize": 0}, "entry has 24"),
        ({"size": SYM.size << 20}, "at most"),
        ({"size": SYM.size * (MAX_SYMBOLS + 1)}, "strip"),
        ({"size": SYM.size * 1000}, "cut off"),
        ({"offset": TOP}, "cut off"),
    ],
)
def test_a_damaged_symbol_table_is_refused(symtab: dict[str, int], says: str) -> None:
    assert says in str(refused(File([BOX], symbols=[Sym(b"a", 1)], symtab=symtab)))


def test_a_name_without_an_end_or_beyond_the_table_is_refused() -> None:
    # The symbols read their names where others lie: behind the table's end, as the bytes of the table end with one.
    assert "no end" in str(refused(File([BOX], symbols=[Sym(b"x" * (MAX_NAME_BYTES + 1))])))
    data = bytearray(File([BOX], symbols=[Sym(b"name")]).bytes())
    at = data.index(SYM.pack(1, 0x12, 0, 1, 0, 0))
    data[at : at + 4] = (1 << 31).to_bytes(4, "little")
    assert refused(bytes(data)).part == "symbol 1"


def test_a_name_of_the_greatest_length_is_read() -> None:
    assert symbols(Sym(b"x" * MAX_NAME_BYTES, 1)) == {"x" * MAX_NAME_BYTES: 1}


@pytest.mark.parametrize("data", [b"", b"\x7f", b"\x7fELF", b"MZ" + bytes(100), bytes(64), b"\x7fELF\x02\x01\x01"])
def test_bytes_that_are_no_elf_file_are_refused(data: bytes) -> None:
    assert refused(data).part == "ELF header"


def test_every_prefix_of_a_file_is_refused_or_is_whole_without_its_symbols() -> None:
    whole = VALID.bytes()
    for length in range(len(whole)):
        refused(whole[:length])


def test_the_largest_tables_of_the_longest_names_are_read_in_time_linear_in_their_size() -> None:
    # Every name is the tail of one that is as long as names may be.
    data = bytearray(File([BOX], symbols=[Sym(b"x" * MAX_NAME_BYTES), *[Sym(b"", 7)] * (MAX_SYMBOLS - 2)]).bytes())
    begin = time.process_time()
    assert len(parse(bytes(data)).symbols) == 1
    empty = time.process_time() - begin
    first = data.index(SYM.pack(1, 0x12, 0, 1, 0, 0))
    for number in range(MAX_SYMBOLS - 1):
        at = first + number * SYM.size
        data[at : at + 4] = (1 + number % MAX_NAME_BYTES).to_bytes(4, "little")
    begin = time.process_time()
    assert len(parse(bytes(data)).symbols) == MAX_NAME_BYTES
    assert time.process_time() - begin < 5 * empty + 1


def parse_or_refuse(data: bytes) -> None:
    try:
        image = parse(data)
    except ElfError:
        return
    assert sum(segment.memory_size for segment in image.segments) <= MAX_MEMORY_BYTES
    assert any(0 <= image.entry - segment.paddr < segment.memory_size for segment in image.segments)


@given(st.binary(max_size=400))
def test_any_bytes_are_an_image_or_an_elf_error(data: bytes) -> None:
    parse_or_refuse(data)
    parse_or_refuse(b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + data)


PATCH = st.tuples(
    st.integers(0, len(VALID.bytes()) - 1),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 60, 1 << 63, TOP])
    | st.integers(0, TOP),
)


@given(st.lists(PATCH, min_size=1, max_size=6), st.integers(0, 200))
def test_any_damage_to_an_executable_gives_an_image_or_an_elf_error(
    patches: list[tuple[int, int, int]], cut: int
) -> None:
    data = bytearray(VALID.bytes())
    for at, size, value in patches:
        data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    parse_or_refuse(bytes(data))
    parse_or_refuse(bytes(data[: len(data) - cut]))


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(0, (1 << bits) - 1) | st.sampled_from([0, 1, (1 << bits) - 1, EHDR.size, PHDR.size])
        for name, bits in {
            "phoff": 64,
            "phnum": 16,
            "phentsize": 16,
            "shoff": 64,
            "shnum": 16,
            "shentsize": 16,
            "flags": 32,
            "machine": 16,
            "type": 16,
        }.items()
    },
)
NUMBERS = st.integers(0, TOP) | st.sampled_from([0, BASE, BASE + 16, TOP, 1 << 60, EHDR.size])
LOADS = st.builds(
    Load,
    paddr=NUMBERS,
    data=st.binary(max_size=40),
    memsz=st.none() | NUMBERS,
    vaddr=st.none() | NUMBERS,
    filesz=st.none() | NUMBERS,
    offset=st.none() | NUMBERS,
    type=st.integers(0, 7) | st.just(1),
)


@given(st.lists(LOADS, max_size=5), FIELDS, st.booleans())
def test_any_headers_give_an_image_or_an_elf_error(loads: list[Load], header: dict[str, int], valid: bool) -> None:
    parse_or_refuse(File([BOX, *loads] if valid else loads, header=header, symbols=[Sym(b"a", 1)]).bytes())
