"""How a host is named in a Host header and in the settings."""

import re

HOST_NAME = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")
"""A host's name or address, without a port; an IPv6 address stands in brackets."""
