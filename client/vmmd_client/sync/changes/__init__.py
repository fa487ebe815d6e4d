"""Transactions, holds and dirty logs of the synchronous twin; their scripts are those of `vmmd_client.changes`."""
