"""Names that a package has before the modules behind them are imported (PEP 562).

Whoever imports the package pays for what is used of it: models, or an event loop's HTTP client, only with the first
name that needs them. Checkers of types do not run this; they read the same names' imports.
"""

import importlib
import sys
from collections.abc import Callable, Mapping


def getter(package: str, homes: Mapping[str, str], otherwise: str | None = None) -> Callable[[str], object]:
    """Make a package's `__getattr__`.

    Args:
        package: the package's name.
        homes: the names that it has, in one text with spaces between them, by the module that they are in, relative to
            the package, ".errors", or whole.
        otherwise: the module that has every other name; None: there is none.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def get(name: str) -> object:
        home = home_of.get(name, otherwise)
        # A dunder is asked for by machinery that looks whether it is there.
        if home is None or name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(home, package)
        if name in home_of and not hasattr(module, name):
            # It is a module in a room, which the room does not have before it is imported.
            importlib.import_module(f"{module.__name__}.{name}")
        value: object = getattr(module, name)
        # The next one who asks finds it without asking here.
        setattr(sys.modules[package], name, value)
        return value

    return get
