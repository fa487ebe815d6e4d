"""The synchronous twin is the asynchronous client without `await`: the same source, names, parameters and results."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import vmmd_client
from vmmd_client import sync
from vmmd_client.sync.wire import http as sync_http
from vmmd_client.sync.wire import websocket as sync_websocket
from vmmd_client.wire import http, websocket

from .twin import BY_HAND, SOURCE, TWIN, TWINNED, path_of, twin_text

CLASSES = (
    *("Batch", "Client", "DirtyLog", "Events", "Hold", "HttpTransport", "Transaction", "Vcpu", "Vm"),
    "WebSocketTransport",
)
RENAMED = {"aclose": "close"}


@pytest.mark.parametrize("name", TWINNED)
def test_a_generated_module_is_what_its_source_gives(name: str):
    assert path_of(name, TWIN).read_text() == twin_text(name), "run: python -m tests.client.twin"


def test_every_module_that_awaits_has_a_twin():
    def names(below: Path, word: str) -> set[str]:
        paths = (path.relative_to(below) for path in below.rglob("*.py") if word in path.read_text())
        return {".".join(path.with_suffix("").parts) for path in paths}

    awaiting = {name for name in names(SOURCE, "\n    async def ") if name.split(".")[0] not in {"cli", "replay"}}
    alone = {"wire.http_session", "demo", "pc_demo", "testing"}
    assert awaiting - alone <= {*TWINNED, *BY_HAND}
    assert names(TWIN, "") >= {*TWINNED, *BY_HAND}


def public(kind: type) -> dict[str, object]:
    return {RENAMED.get(name, name): member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


def parameters(member: object) -> list[tuple[str, object, object]] | None:
    if not callable(member):
        return None
    return [(p.name, p.kind, p.default) for p in inspect.signature(member).parameters.values()]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_same_methods_with_the_same_parameters_and_words(name: str):
    ours, theirs = public(getattr(vmmd_client, name)), public(getattr(sync, name))
    assert ours.keys() == theirs.keys()
    for method, member in ours.items():
        assert parameters(member) == parameters(theirs[method]), method
        assert bool(inspect.getdoc(member)) == bool(inspect.getdoc(theirs[method])), method
        assert not inspect.iscoroutinefunction(theirs[method]), method


@pytest.mark.parametrize(("ours", "theirs"), [(http, sync_http), (websocket, sync_websocket)])
def test_what_is_written_by_hand_has_the_same_public_names(ours: ModuleType, theirs: ModuleType):
    def classes(module: ModuleType) -> set[str]:
        return {
            name
            for name, kind in inspect.getmembers(module, inspect.isclass)
            if kind.__module__ == module.__name__ and not name.startswith("_")
        }

    assert classes(ours) == classes(theirs)


def test_both_have_the_same_names_and_those_of_the_twin_await_nothing():
    assert sync.__all__ == vmmd_client.__all__
    for name in vmmd_client.__all__:
        member = getattr(vmmd_client, name)
        if inspect.isclass(member) and name not in sync.__all__:
            assert not any(inspect.iscoroutinefunction(method) for method in vars(member).values()), name


@pytest.mark.parametrize("module", [vmmd_client, sync])
def test_all_names_what_the_package_imports_for_its_users(module: ModuleType):
    for name in module.__all__:
        member = getattr(module, name)
        if inspect.isclass(member) or inspect.isfunction(member):
            assert inspect.getdoc(member), f"{name} has no docstring"
    assert module.__all__ == sorted(module.__all__)


@pytest.mark.parametrize("package", [vmmd_client, sync])
def test_a_name_that_is_loaded_late_is_what_a_checker_of_types_sees(package: ModuleType):
    source = ast.parse(Path(package.__file__ or "").read_text())
    (checked,) = (
        node for node in source.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = set()
    for statement in checked.body:
        assert isinstance(statement, ast.ImportFrom)
        home = "." * statement.level + (statement.module or "")
        for alias in statement.names:
            seen.add(alias.name)
            where = importlib.import_module(home, package.__name__)
            assert getattr(package, alias.name) is getattr(where, alias.name), alias.name
    assert seen == set(package.__all__) == set(dir(package)) & set(package.__all__)
    assert not hasattr(package, "no_such_name")


@pytest.mark.parametrize("name", ["vmmd_client", "vmmd_client.sync"])
def test_importing_the_package_loads_neither_models_nor_an_http_client(name: str):
    heavy = {"pydantic", "aiohttp", "asyncio", "wsproto"}
    check = f"import sys, {name}; print(sorted({heavy} & set(sys.modules)), {name}.calls.__name__)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[] vmmd_client.wire.calls\n"


def test_the_twin_loads_no_http_client_of_the_other():
    check = "import sys; from vmmd_client.sync import connect; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
