"""Makes `vmmd_client.sync` of the asynchronous modules: `python -m tests.client.twin`; a test tells when that is due.

A twin is the same source with the words of asyncio taken out, from the tokens, so comments and docstrings stay. What
has nothing asynchronous in it, and uses nothing that has, is not written twice: the twin imports it, so that results
and errors are the same classes. What is written by hand for either side is in `BY_HAND`.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "client" / "vmmd_client"
TWIN = SOURCE / "sync"

TWINNED = (
    *("connection", "events", "vm_memory", "vm", "vcpu", "wire.transport", "wire.channel", "address_space.space"),
    *("changes.transaction", "changes.hold", "changes.dirty_log", "changes.shared_vm", "changes.play"),
)
"""The modules that the twin has a generated copy of, in the same rooms."""

BY_HAND = ("wire.http", "wire.websocket", "wire.waiting", "local_daemon")
"""The modules that do I/O or wait: the twin has its own, with the same names in them."""

_NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "aclose": "close",
    "AsyncIterator": "Iterator",
    "StopAsyncIteration": "StopIteration",
}
_PROSE = (
    (re.compile(r"\basync (with|for|def)\b"), r"\1"),
    (re.compile(r"\bawait "), ""),
    (re.compile(r"\baclose\b"), "close"),
    (re.compile(r"\bfrom vmmd_client import connect\b"), "from vmmd_client.sync import connect"),
)
_ASYNCHRONOUS = (ast.AsyncFunctionDef, ast.AsyncWith, ast.AsyncFor, ast.Await)


@dataclass(frozen=True)
class Module:
    """One source module, as its statements; its name is that in the package, as "wire.channel"."""

    name: str
    text: str

    @property
    def depth(self) -> int:
        """How many folders it is below the package, plus one: so many dots lead from its twin to `sync`."""
        return self.name.count(".") + 1

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def defined(self) -> dict[str, ast.stmt]:
        """Give what each top-level name is defined by."""
        found: dict[str, ast.stmt] = {}
        for statement in self.tree.body:
            if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found[statement.name] = statement
            elif isinstance(statement, ast.Assign):
                found.update({name.id: statement for name in statement.targets if isinstance(name, ast.Name)})
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id] = statement
        return found


def path_of(name: str, below: Path = SOURCE) -> Path:
    """Give a module's file, of the source or of the twin."""
    return below.joinpath(*name.split(".")).with_suffix(".py")


def read_modules() -> dict[str, Module]:
    return {name: Module(name, path_of(name).read_text()) for name in TWINNED}


def asynchronous_names(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Give, of each module, the names that await, or that use what does."""
    definitions = {(module.name, name): node for module in modules.values() for name, node in module.defined().items()}
    coloured = {key for key, node in definitions.items() if any(isinstance(n, _ASYNCHRONOUS) for n in ast.walk(node))}
    by_hand = {name for module in BY_HAND for name in Module(module, path_of(module).read_text()).defined()}
    while True:
        words = {name for _, name in coloured} | by_hand
        more = {key for key, node in definitions.items() if key not in coloured and _uses(node, words)}
        if not more:
            return {name: {word for module, word in coloured if module == name} for name in modules}
        coloured |= more


def _uses(node: ast.AST, words: set[str]) -> bool:
    """Tell whether a statement names one of the words, in code or in an annotation that is a string."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id in words:
            return True
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value in words:
            return True
    return False


def twin_of(module: Module, asynchronous: dict[str, set[str]]) -> str:
    """Give the twin's source, in the house's format."""
    lines = module.text.splitlines(keepends=True)
    names = {id(node): name for name, node in module.defined().items()}
    parts: list[str] = []
    shared: list[str] = []
    keeps, previous_end = True, 0
    for statement in module.tree.body:
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        text = "".join(lines[previous_end : statement.end_lineno])
        previous_end = statement.end_lineno or first
        name = names.get(id(statement))
        if name is not None:
            keeps = name in asynchronous[module.name]
            if not keeps:
                shared.append(name)
        elif not _is_text(statement):
            keeps = True
        if isinstance(statement, ast.ImportFrom | ast.If):
            parts.append(_imports(module, statement, asynchronous))
        elif keeps:
            parts.append(_without_asyncio(text))
    head, rest = parts[0], parts[1:]
    source = "../" * module.depth + module.name.replace(".", "/") + ".py"
    note = f"\n# Made of {source} by `python -m tests.client.twin`: change that one.\n\n"
    imports = f"from {'.' * (module.depth + 1)}{module.name} import {', '.join(shared)}\n" if shared else ""
    name = path_of(module.name, TWIN).relative_to(SOURCE.parents[1])
    return _formatted(head + note + imports + "".join(rest), str(name))


def _is_text(statement: ast.stmt) -> bool:
    """Tell whether a statement is a docstring; that of an attribute goes where the attribute goes."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _imports(module: Module, statement: ast.ImportFrom | ast.If, asynchronous: dict[str, set[str]]) -> str:
    """Give an import of the package as the twin makes it: its own module for what is asynchronous, else the shared."""
    if isinstance(statement, ast.If):
        inner = [_imports(module, node, asynchronous) for node in statement.body if isinstance(node, ast.ImportFrom)]
        return f"\nif {ast.unparse(statement.test)}:\n" + "".join(
            "    " + line for i in inner for line in i.splitlines(True)
        )
    if statement.level == 0:
        names = [_NAMES.get(alias.name, alias.name) for alias in statement.names]
        return f"\nfrom {statement.module} import {', '.join(names)}"
    said = statement.module or ""
    source = ".".join([*module.name.split(".")[: -statement.level], *([said] if said else [])])
    made = ""
    for alias in statement.names:
        inside = f"{source}.{alias.name}".lstrip(".")
        own = source in BY_HAND or alias.name in asynchronous.get(source, set()) or inside in TWINNED
        place = "." * statement.level + said if own else "." * (module.depth + 1) + source
        made += f"\nfrom {place} import {alias.name}"
    return made


def _without_asyncio(text: str) -> str:
    text = re.sub(r"\bAwaitable\[([^\[\]]+)\]", r"\1", text)
    made: list[str] = []
    row, column, drop_space = 1, 0, False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        lines_between = token.start[0] - row
        if lines_between or token.start[1] > column:
            between = _between(text, (row, column), token.start)
            made.append(between.lstrip(" ") if drop_space else between)
        drop_space = token.type == tokenize.NAME and token.string in {"async", "await"}
        if token.type in {tokenize.STRING, tokenize.COMMENT} or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            word = token.string
            for pattern, replacement in _PROSE:
                word = pattern.sub(replacement, word)
            made.append(word)
        elif not drop_space:
            made.append(_NAMES.get(token.string, token.string))
        row, column = token.end
    return "".join(made)


def _between(text: str, start: tuple[int, int], end: tuple[int, int]) -> str:
    lines = text.splitlines(keepends=True)
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    middle = "".join(lines[start[0] : end[0] - 1])
    last = lines[end[0] - 1][: end[1]] if end[0] <= len(lines) else ""
    return lines[start[0] - 1][start[1] :] + middle + last


def _formatted(source: str, name: str) -> str:
    """Drop the imports that nothing uses any more, order the rest, and format."""
    ruff = str(Path(sys.executable).with_name("ruff"))
    check = [ruff, "check", "--quiet", "--fix-only", "--select", "F401,I001", "--stdin-filename", name, "-"]
    for command in (check, [ruff, "format", "--quiet", "--stdin-filename", name, "-"]):
        done = subprocess.run(
            command, input=source, capture_output=True, text=True, check=False, cwd=SOURCE.parents[1], timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr}")
        source = done.stdout
    return source


def twin_text(name: str) -> str:
    """Give what has to be in the twin of a module."""
    modules = read_modules()
    return twin_of(modules[name], asynchronous_names(modules))


def main() -> None:
    for name in TWINNED:
        path = path_of(name, TWIN)
        path.write_text(twin_text(name))
        sys.stdout.write(f"{path.relative_to(SOURCE.parents[1])}\n")


if __name__ == "__main__":
    main()
