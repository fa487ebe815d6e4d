"""The log: structured, on the standard error, and the standard library's lines with it."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage

from vmmd import log


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    """Leave the process's loggers as they were."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_a_json_object_with_what_was_bound(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "auto")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("rpc.call", method="vm.stop")
    logging.getLogger("aiohttp.server").warning("a library's %s", "word")
    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["level"], ours["method"], ours["request_id"]) == ("rpc.call", "info", "vm.stop", "r1")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("a library's word", "warning", "aiohttp.server")
    assert ours["timestamp"].endswith("Z")


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("warning", "json")
    structlog.get_logger().info("rpc.call")
    logging.getLogger("asyncio").info("turning")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_is_written_without_local_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    log.configure("info", form)  # type: ignore[arg-type]
    secret = "hunter2"  # noqa: S105
    try:
        raise ValueError(len(secret))
    except ValueError:
        structlog.get_logger().exception("rpc.internal_error")
    written = capsys.readouterr().err
    assert "ValueError" in written
    assert "hunter2" not in written


@pytest.mark.parametrize("hostile", ["a\nb", "\x1b[2J", "\r", "\x85", "\u2028", "\u202e", "\ud800", "\x00"])
def test_no_text_ends_its_line_or_moves_the_cursor(capsys: pytest.CaptureFixture[str], hostile: str) -> None:
    for form in ("json", "console"):
        log.configure("info", form)  # type: ignore[arg-type]
        structlog.get_logger().info("rpc.call", vm=hostile, nested={hostile: [hostile]})
        logging.getLogger("a.library").warning("met %s", hostile)
        try:
            raise ValueError(hostile)
        except ValueError:
            structlog.get_logger().exception("rpc.call")
        written = capsys.readouterr().err
        assert hostile not in written.replace("\n", "") if hostile != "a\nb" else "a\nb" not in written
        # Every line is one that was meant: a traceback's have a bar before them.
        starts = [line for line in written.split("\n") if line and not line.startswith("  | ")]
        assert len(starts) == 3, written


def test_what_peers_send_that_is_no_http_does_not_fill_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    server = logging.getLogger("aiohttp.server")
    for error in (BadHttpMessage("nonsense"), ValueError("ours")):
        try:
            raise error
        except (BadHttpMessage, ValueError):
            server.exception("Error handling request")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ours" in line
