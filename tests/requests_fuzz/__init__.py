"""Requests made from the method table's own schemas, broken in every way, against a live daemon beside bystanders."""
