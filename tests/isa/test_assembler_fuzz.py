"""Any text gives code or an `AssemblyError`, whatever stands in it, and the same one every time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vmmd.isa.assembler import Assembly, AssemblyError, assemble
from vmmd.isa.assembler.operands import REGISTER_NUMBERS
from vmmd.isa.assembler.pseudo import PSEUDO
from vmmd.isa.csrs import CSR_NUMBERS
from vmmd.isa.encoding import sign_extend
from vmmd.isa.instructions import BY_NAME

WORDS = [
    *sorted(BY_NAME),
    *sorted(PSEUDO),
    "li",
    *sorted(REGISTER_NUMBERS),
    *sorted(CSR_NUMBERS),
    *[
        ".byte",
        ".half",
        ".word",
        ".dword",
        ".ascii",
        ".asciz",
        ".zero",
        ".skip",
        ".fill",
        ".align",
        ".p2align",
        ".balign",
        ".org",
        ".equ",
        ".set",
        ".equiv",
    ],
    *[
        ".option",
        "push",
        "pop",
        "relax",
        "norelax",
        "norvc",
        ".globl",
        ".text",
        ".section",
        ".cfi_startproc",
        ".data",
        ".",
        "a",
        "b",
        "c",
        ".L0",
    ],
    *[
        "0",
        "1",
        "2",
        "7",
        "8",
        "4095",
        "-1",
        "0x7fffffffffffffff",
        "0xffffffffffffffff",
        "0b1",
        "017",
        "99999999999999999999",
        "1b",
        "1f",
        "0b",
        "'a",
        "'",
    ],
    *[
        "+",
        "-",
        "*",
        "/",
        "%",
        "<<",
        ">>",
        "&",
        "|",
        "^",
        "~",
        "!",
        "&&",
        "||",
        "==",
        "!=",
        "<",
        "<=",
        "=",
        "(",
        ")",
        ",",
        ":",
        "@",
        "%hi",
        "%lo",
        "%pcrel_hi",
        "%pcrel_lo",
        ";",
        "#",
        "//",
        "/*",
        "*/",
    ],
    *['"', '"text"', '"\\n\\x"', "\n", "\n", ";", ", ", ", ", "1:", "a:", "b:", "8(sp)", "(a0)"],
]

soups = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)
tight_soups = st.lists(st.sampled_from(WORDS), max_size=40).map("".join)
lines = st.tuples(
    st.sampled_from([*sorted(BY_NAME), *sorted(PSEUDO), "li", ".word", ".zero", ".align", ".org", ".equ", "a:", "1:"]),
    st.lists(
        st.sampled_from(
            [*sorted(REGISTER_NUMBERS)[:8], "a", "b", "1f", "1b", "5", "mie", "4096", ". + 8", "8(sp)", "a - b"]
        ),
        max_size=4,
    ),
).map(lambda line: f"{line[0]} {', '.join(line[1])}")
programs = st.lists(lines, max_size=20).map("\n".join)


def outcome(source: str, origin: int = 0) -> Assembly | AssemblyError:
    try:
        return assemble(source, origin)
    except AssemblyError as error:
        return error


def has_a_place_in(error: AssemblyError, source: str) -> bool:
    lines_of_text = source.split("\n")
    return 1 <= error.line <= len(lines_of_text) and 1 <= error.column <= len(lines_of_text[error.line - 1]) + 1


@settings(deadline=None, max_examples=400)
@given(
    st.one_of(soups, tight_soups, programs, st.text(max_size=60)), st.sampled_from([0, 2, 0x8000_0000, (1 << 64) - 64])
)
def test_any_text_gives_code_or_an_error_with_a_place_in_the_text(source: str, origin: int) -> None:
    result = outcome(source, origin)
    if isinstance(result, AssemblyError):
        assert has_a_place_in(result, source)
        assert result.message
        assert str(result) == str(outcome(source, origin))
    else:
        assert result == outcome(source, origin)


@settings(deadline=None, max_examples=100)
@given(programs, st.text(alphabet=" \t", max_size=5))
def test_blanks_and_comments_around_statements_change_no_code(source: str, blank: str) -> None:
    spaced = "\n".join(f"{blank}/* note */{blank}{line}{blank}# note" for line in source.split("\n"))
    plain, other = outcome(source), outcome(spaced)
    assert plain == other or (isinstance(plain, AssemblyError) and isinstance(other, AssemblyError))


@settings(deadline=None, max_examples=300)
@given(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(1, 31))
def test_the_words_of_li_add_up_to_its_number(number: int, register: int) -> None:
    code = assemble(f"li x{register}, {number}").code
    value = 0
    for at in range(0, len(code), 4):
        word = int.from_bytes(code[at : at + 4], "little")
        assert word >> 7 & 31 == register
        match word & 0x707F:
            case 0x13:
                value = value + sign_extend(word >> 20, 12) if word >> 15 & 31 else sign_extend(word >> 20, 12)
            case 0x1B:
                base = value if word >> 15 & 31 else 0
                value = sign_extend(base + sign_extend(word >> 20, 12), 32)
            case 0x1013:
                value <<= word >> 20 & 63
            case _:
                assert word & 0x7F == 0x37
                value = sign_extend(word & ~0xFFF, 32)
    assert value & (1 << 64) - 1 == number & (1 << 64) - 1
