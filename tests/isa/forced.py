"""Engines on which guests run in translated code from their first instruction on, in small regions: many crossings."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vmmd.isa.engine import CompiledEngine, Engine, EngineName, EvaluatedEngine
from vmmd.isa.hot.translator import Translator

_made: list[CompiledEngine] = []


@cache
def forced_engine(cache_dir: Path | None) -> CompiledEngine:
    """Return the one engine of a folder, which shares what it translates among all tests."""
    engine = CompiledEngine(cache_dir, Translator(is_forced=True, most_instructions=16))
    _made.append(engine)
    return engine


def engine_of(name: EngineName, cache_dir: Path) -> EngineName | Engine:
    """Return what a `System` takes for an engine's name: for translated code, one that translates all of it."""
    return forced_engine(cache_dir) if name == "translated" else name


def every_engine(cache_dir: Path | None) -> dict[str, Engine]:
    """Return an engine of each name; guests run in translated code alone on the one that translates."""
    return {
        "translated": forced_engine(cache_dir),
        "compiled": CompiledEngine(cache_dir),
        "evaluated": EvaluatedEngine(),
    }


def close_forced_engines() -> None:
    """End all that there are."""
    for engine in _made:
        engine.close()
