"""vmmd: KVM's memslot and kick/resume ioctls, emulated in userspace by a daemon."""

__version__ = "0.1.0"
