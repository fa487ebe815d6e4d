"""Where a daemon and its clients meet when nobody says: the paths that both sides take by default.

They are part of the contract, since a client on the same machine finds its daemon by them. Nothing here looks at what
lies there, or makes it.
"""

import os
from pathlib import Path


def xdg_directory(variable: str, fallback: str) -> Path:
    """Give a directory of the XDG base directory specification; relative values are to be ignored, as it says.

    Args:
        variable: the environment's variable, "XDG_STATE_HOME".
        fallback: where it lies below the home directory otherwise.
    """
    value = Path(os.environ.get(variable, ""))
    return value if value.is_absolute() else Path.home() / fallback


def default_socket() -> Path:
    """Give $XDG_RUNTIME_DIR/vmmd.sock; without a runtime directory, vmmd/vmmd.sock in the user's state directory."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute() and runtime.is_dir():
        return runtime / "vmmd.sock"
    return xdg_directory("XDG_STATE_HOME", ".local/state") / "vmmd" / "vmmd.sock"


def default_token_file() -> Path:
    """Give vmmd/token in the user's state directory."""
    return xdg_directory("XDG_STATE_HOME", ".local/state") / "vmmd" / "token"
