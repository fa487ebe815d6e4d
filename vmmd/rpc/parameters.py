"""Parameters from the wire: by name or by position, checked by their method's model, and what is wrong said for people.

It refuses what the model refuses, and says of each problem the parameter, the value, and what would do.
"""

from itertools import islice
from typing import Any

from pydantic import ValidationError

from vmmd.api.codes import INVALID_PARAMS
from vmmd.api.methods import Method
from vmmd.api.types import Params
from vmmd.rpc.errors import CallError

LONGEST_NAME = 64
"""Names longer than this are nobody's typing error: messages cut them."""

# A body can have more wrong with it than anybody reads.
_MOST_PROBLEMS = 5

# Characters of a value that stand in a message, and the entries of a list or an object that they have room for.
_SHOWN, _SHOWN_ENTRIES = 60, 20


def check_params(method: Method, given: dict[str, Any] | list[Any] | None) -> Params:
    """Give the model of the parameters of a call, by name or by position; None: there are none.

    Raises:
        CallError: -32602; a gated call that names a hold has failed inside it.
    """
    if not given and method.no_params is not None:
        return method.no_params
    if given is None:
        given = {}
    if isinstance(given, list):
        names = method.params.positions()
        if len(given) > len(names):
            problem = f"{len(given)} parameters by position, and it takes at most {len(names)}: {', '.join(names)}"
            raise _invalid_params(method, [("", problem)], dict(zip(names, given, strict=False)))
        given = dict(zip(names, given, strict=False))
    if len(given) > len(method.parameters):
        # Here, since pydantic would collect every unknown name of a body that has hundreds of thousands.
        unknown = islice((name for name in given if name not in method.parameters), _MOST_PROBLEMS)
        raise _invalid_params(method, [(name[:LONGEST_NAME], _no_parameter(method)) for name in unknown], given)
    try:
        params: Params = method.params_adapter.validator.validate_python(given)
        return params
    except ValidationError as error:
        problems = [_problem(method, details) for details in error.errors(include_url=False)[:_MOST_PROBLEMS]]
        raise _invalid_params(method, problems, given) from None


def named_hold(given: Any) -> tuple[str, str] | None:
    """Give the VM and the hold that parameters name, whatever else is wrong with them; None where they do not."""
    if not isinstance(given, dict):
        return None
    vm, hold = given.get("vm"), given.get("hold")
    return (vm, hold) if isinstance(vm, str) and isinstance(hold, str) else None


def _problem(method: Method, details: Any) -> tuple[str, str]:
    """Turn one of pydantic's findings into the parameter's path and a sentence with the value."""
    path = ".".join(str(step)[:LONGEST_NAME] for step in details["loc"])
    match details["type"]:
        case "missing":
            return path, "is missing"
        case "extra_forbidden":
            return path, _no_parameter(method)
        case "string_too_long" | "bytes_too_long" | "too_long":
            return path, f"has more than {details['ctx']['max_length']} {_unit(details)}: {_shown(details['input'])}"
        case "string_too_short" | "too_short":
            return path, f"has fewer than {details['ctx']['min_length']} {_unit(details)}: {_shown(details['input'])}"
        case "value_error":
            return path, f"{details['ctx']['error']}, not {_shown(details['input'])}"
        case _:
            return path, f"{details['msg']}, not {_shown(details['input'])}"


def _no_parameter(method: Method) -> str:
    return f"is no parameter here; there are: {', '.join(method.params.positions()) or 'none'}"


def _shown(value: Any) -> str:
    """Give the beginning of a value's text; of a long one no more is looked at."""
    return f"{_beginning(value)!r:.{_SHOWN}}"


def _beginning(value: Any) -> Any:
    """Give as much of a value as `_shown` can show of it."""
    match value:
        case str() | bytes():
            return value[:_SHOWN]
        case list() | tuple():
            return [_beginning(entry) for entry in value[:_SHOWN_ENTRIES]]
        case dict():
            return {name[:_SHOWN]: _beginning(inner) for name, inner in islice(value.items(), _SHOWN_ENTRIES)}
        case _:
            return value


def _unit(details: Any) -> str:
    """Say what the length in one of pydantic's findings counts."""
    if details["type"].startswith("string"):
        return "characters"
    # What base64 stands for is bytes by the time that it is measured; where it may be null pydantic knows no type.
    is_bytes = details["type"].startswith("bytes") or details["ctx"].get("field_type") == "Value"
    return "bytes" if is_bytes else "entries"


def _invalid_params(method: Method, problems: list[tuple[str, str]], given: dict[str, Any]) -> CallError:
    sentence = "; ".join(": ".join(part for part in problem if part) for problem in problems)
    data = {"problems": [{"parameter": path, "problem": problem} for path, problem in problems]}
    inside = named_hold(given) if method.gated else None
    return CallError(INVALID_PARAMS, f"{method.name}: {sentence}", data, inside=inside)
