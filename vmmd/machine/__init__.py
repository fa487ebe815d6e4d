"""The half of a VMM that lives in userspace: the run loop and the console."""
