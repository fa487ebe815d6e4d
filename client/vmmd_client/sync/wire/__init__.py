"""The transports and the channel of the synchronous twin; what is said is that of `vmmd_client.wire`."""
