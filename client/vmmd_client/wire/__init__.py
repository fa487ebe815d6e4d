"""What is said to a daemon, and how it is carried.

What is said, without I/O: `calls` are the methods as values (`call_options` what they have in common), `protocol` their
JSON, `bodies` cuts many into what a daemon takes, `multiplex` tells whose an answer is, `retry` what may be said again.
How it is carried: `address` reads URLs, `http` and `websocket` are the transports that `transport` describes, `channel`
sends over one, `waiting` has the waits, and `limits` the numbers. No state of a VM is here.
"""
