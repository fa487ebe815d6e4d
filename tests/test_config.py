"""The settings: which source wins, what is refused, and that the documented file is the truth."""

import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from vmmd.api.places import default_socket
from vmmd.config import (
    ConfigError,
    LimitSettings,
    Settings,
    is_open_to_others,
    load,
    tcp_token,
    unknown_variables,
)

DOCUMENTED = Path(__file__).parent.parent / "config" / "vmmd.toml"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VMMD_TOKEN", "VMMD_SOCKET", "VMMD_PORT", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Give every key of the settings, "limits.vms"."""
    found = set()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys(field.annotation, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def test_the_documented_file_has_every_key_and_the_defaults() -> None:
    assert load(DOCUMENTED).model_dump() == load().model_dump()
    # A key whose default depends on the machine stands there as a comment, in the form that it has when it is set.
    whole = re.sub(r"^# (\w+ = )", r"\1", DOCUMENTED.read_text(), flags=re.MULTILINE)
    table = tomllib.loads(whole)
    named = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in table.items()
        for inner in (value if isinstance(value, dict) else [None])
    }
    assert named == keys(Settings)


def test_the_documented_file_says_of_every_key_what_the_model_says() -> None:
    commented = re.sub(r"\s+", " ", DOCUMENTED.read_text().replace("\n# ", " "))
    for model in (Settings, LimitSettings):
        for name, field in model.model_fields.items():
            if field.description is not None:
                first = field.description.split(". ")[0].rstrip(".")
                assert first in commented, name


def test_the_commented_keys_of_the_documented_file_are_fit_values(tmp_path: Path) -> None:
    file = tmp_path / "whole.toml"
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", DOCUMENTED.read_text(), flags=re.MULTILINE))
    assert load(file).port is not None


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vmmd.toml"
    file.write_text('port = 1\nhost = "127.0.0.2"\nengine = "evaluated"\n[limits]\nvms = 1\nwait_ms = 2\n')
    monkeypatch.setenv("VMMD_PORT", "3")
    monkeypatch.setenv("VMMD_HOST", "127.0.0.3")
    monkeypatch.setenv("VMMD_LIMITS__VMS", "4")
    settings = load(file, {"port": 5})
    assert (settings.port, settings.host, settings.engine) == (5, "127.0.0.3", "evaluated")
    assert (settings.limits.vms, settings.limits.wait_ms) == (4, 2)
    assert settings.limits.batch_calls == LimitSettings().batch_calls


def test_lists_in_the_environment_have_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMD_ALLOWED_HOSTS", "Vmmd, localhost")
    monkeypatch.setenv("VMMD_ALLOWED_ORIGINS", "https://a.example")
    assert load().allowed_hosts == ("vmmd", "localhost")
    assert load().allowed_origins == ("https://a.example",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prot = 1", "prot: there is no such setting"),
        ("[limits]\nvmz = 1", "limits.vmz: there is no such setting"),
        ("port = 65536", "port: "),
        ('port = "many"', "not 'many'"),
        ('engine = "fast"', "engine: "),
        ("[limits]\nvms = 0", "limits.vms: "),
        ("[limits]\nvcpus_per_vm = 1025", "limits.vcpus_per_vm: "),
        ('[log]\nlevel = "loud"', "log.level: "),
        ('allowed_origins = ["*"]', "every web page"),
        ("port = ", "is not TOML"),
    ],
)
def test_a_setting_that_is_not_understood_is_named(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "vmmd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load(tmp_path / "missing.toml")


def test_a_token_that_is_too_short_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMD_TOKEN", "hunter2")
    with pytest.raises(ConfigError, match="token: ") as refused:
        load()
    assert "hunter2" not in str(refused.value)


def test_the_settings_do_not_show_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMD_TOKEN", "sixteen characters")
    assert "sixteen characters" not in repr(load())
    assert tcp_token(load(), on_purpose=True) == "sixteen characters"


def test_the_first_start_makes_a_token_file_for_its_user_alone_and_the_second_reads_it(tmp_path: Path) -> None:
    first = tcp_token(load(), on_purpose=False)
    file = tmp_path / ".local/state/vmmd/token"
    assert file.read_text() == first + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(first) > 40
    assert tcp_token(load(), on_purpose=False) == first


def test_where_a_token_has_to_be_set_on_purpose_none_is_made(tmp_path: Path) -> None:
    tcp_token(load(), on_purpose=False)
    missing = tmp_path / "missing"
    for settings in (load(), load(None, {"token_file": missing})):
        with pytest.raises(ConfigError, match="VMMD_TOKEN"):
            tcp_token(settings, on_purpose=True)
    assert not missing.exists()
    missing.write_text("a token somebody wrote\n")
    assert tcp_token(load(None, {"token_file": missing}), on_purpose=True) == "a token somebody wrote"


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 20])
def test_a_token_file_without_a_fit_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="token"):
        tcp_token(load(None, {"token_file": file}), on_purpose=False)


def test_the_default_socket_lies_in_the_runtime_directory_or_else_in_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_socket() == tmp_path / ".local/state/vmmd/vmmd.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_socket() == tmp_path / "vmmd.sock"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"allowed_hosts": ["*"]}, "allowed_hosts: Value error, '*' is no host name"),
        ({"allowed_hosts": ["vmmd:*"]}, "'vmmd:*' is no host name"),
        ({"allowed_hosts": ["vmmd:80"]}, "no port"),
        ({"token": "short"}, "token: it has fewer than 16 characters"),
        ({"token": " " * 20}, "token: it has fewer than 16 characters"),
        ({"limits": "x"}, "limits: it is a table of settings"),
        ({"socket": Path()}, "socket: Value error, the path of the socket's file is empty"),
    ],
)
def test_what_could_never_work_is_refused_with_what_is_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(command_line=given)
    assert said in str(caught.value)


def test_a_token_has_no_blanks_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMD_TOKEN", "\t a token of the tests\n")
    token = load().token
    assert token is not None
    assert token.get_secret_value() == "a token of the tests"


def test_variables_that_are_no_settings_are_found() -> None:
    known = {"VMMD_PORT": "", "VMMD_LIMITS__VMS": "", "VMMD_URL": "", "vmmd_log__level": "", "HOME": ""}
    assert unknown_variables(known) == []
    assert unknown_variables(known | {"VMMD_PROT": "", "VMMD_LIMITS__VM": ""}) == ["VMMD_LIMITS__VM", "VMMD_PROT"]


def test_a_token_file_that_others_can_read_is_found(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a token of the tests")
    for mode, is_open in ((0o600, False), (0o400, False), (0o640, True), (0o644, True)):
        file.chmod(mode)
        assert is_open_to_others(load(command_line={"token_file": file})) is is_open
