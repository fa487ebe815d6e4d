"""The audit: which windows a VMM left open while it changed its guest's memory map, from a recording of its ioctls.

`audit_file` reads a recording and gives findings: updates, their holes, and which vCPUs were inside KVM_RUN meanwhile.
`strace` and `tracepoints` make events of lines, `audit` makes updates of events, `updates` does the arithmetic, `vms`
knows whose file descriptor is whose; `text`, `document`, `page` and `ci` show the findings. What a recording does not
show (the contents of a call, guest mode or sleep) is counted and said, and never made up.
"""

from .audit import DEFAULT_GAP_US, Audit, Findings, VmFindings, audit
from .events import SlotCall, TraceError
from .growing import OPEN_GAP_US
from .recording import Audited, Recording, audit_file
from .strace import StraceReader
from .tracepoints import TracepointReader
from .updates import Change, Hole, Update, change

__all__ = [
    "DEFAULT_GAP_US",
    "OPEN_GAP_US",
    "Audit",
    "Audited",
    "Change",
    "Findings",
    "Hole",
    "Recording",
    "SlotCall",
    "StraceReader",
    "TraceError",
    "TracepointReader",
    "Update",
    "VmFindings",
    "audit",
    "audit_file",
    "change",
]
