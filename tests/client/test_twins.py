"""The synchronous twin is the asynchronous client without `await`: the same source, names, parameters and results."""

import inspect
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


def test_everything_public_of_the_twin_is_public_of_the_package():
    assert set(sync.__all__) <= set(vmmd_client.__all__)
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
