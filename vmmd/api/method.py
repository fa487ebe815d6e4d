"""What a row of the table of methods is, and what all rows share: the errors of whole families of calls, said once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from vmmd.api.types import GateOptions, Params

_NO_VM = {"EBADF": "There is no such VM."}

_NO_VCPU = {"EBADF": "There is no such VM, or it has no such vCPU."}

_MOVED_ON = {"ESTALE": "`if_generation` is given, and the VM's slot table has another generation."}

# What a gated call answers with while somebody else is inside, and for a hold that it may not be in.
_GATE = {
    "EBUSY": "Another hold is open, is being opened, or an advance is under way, and `wait_ms` has passed.",
    "ECANCELED": "The hold has failed or ended, or the VM was destroyed meanwhile.",
    "EINVAL": "No hold of that name was opened.",
}


_TAKEN = {"EINVAL": "`request_id` is the name of another call, or of this method with other parameters."}

# Any call may be ended before its time, or be one too many.
_ENDED = {
    "ETIMEDOUT": "`deadline_ms` has passed.",
    "ECANCELED": "It was cancelled with rpc.cancel.",
    "ESHUTDOWN": "The daemon is shutting down; nothing was done.",
    "EAGAIN": "So many calls of the WebSocket are under way as limits.calls_in_flight allows.",
}


@dataclass(frozen=True)
class Method:
    """One row: a method and all that is known of it.

    Attributes:
        name: Its name on the wire, "vm.set_user_memory_region".
        params: The model of its parameters.
        result: The type of its result; None where it answers null.
        changes: Whether it changes anything; such a call is logged, and takes `if_generation` where it names a VM.
        summary: One line for people.
        carried_through: Whether it is carried through once it has begun, whoever goes away: it would be left half done,
            and ends by itself.
        ioctl: The ioctl of KVM (or of the proposal) that it is; None where it is none.
        errors: The errnos that are its own, by name, with a sentence each: when. `all_errors` has the others too.
    """

    name: str
    params: type[Params]
    result: Any
    summary: str
    changes: bool = False
    carried_through: bool = False
    ioctl: str | None = None
    errors: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def gated(self) -> bool:
        """Whether the call uses memslots, and so stays out while somebody else holds the VM."""
        return issubclass(self.params, GateOptions)

    @cached_property
    def may_be_large(self) -> bool:
        """Whether a result may be too large for the reply, and so may be large."""
        return "E2BIG" in self.errors

    @cached_property
    def parameters(self) -> frozenset[str]:
        """The names of its parameters."""
        return frozenset(self.params.model_fields)

    @cached_property
    def params_adapter(self) -> TypeAdapter[Params]:
        """What makes the model of its parameters."""
        return TypeAdapter(self.params)

    @cached_property
    def no_params(self) -> Params | None:
        """The parameters of a call that gives none; None where there are some that it has to give."""
        if any(field.is_required() for field in self.params.model_fields.values()):
            return None
        return self.params()

    @cached_property
    def result_adapter(self) -> TypeAdapter[Any]:
        """What checks a result, and turns it into JSON and back."""
        return TypeAdapter(self.result)

    @cached_property
    def all_errors(self) -> Mapping[str, str]:
        """Every errno that the method can answer with, by name, and when: its own, and those of its family.

        Calls of a VM give EBADF, calls with `if_generation` ESTALE, those with `request_id` EINVAL, gated calls what
        the gate gives, and all what ends a call before its time. Where an errno is both, both sentences stand.
        """
        fields = self.params.model_fields
        families = (
            (_NO_VCPU if self.name.startswith("vcpu.") else _NO_VM) if "vm" in fields else {},
            _MOVED_ON if "if_generation" in fields else {},
            _GATE if self.gated else {},
            _TAKEN if "request_id" in fields else {},
            _ENDED,
        )
        errors = dict(self.errors)
        for family in families:
            for name, sentence in family.items():
                errors[name] = f"{errors[name]} {sentence}" if name in errors else sentence
        return errors
