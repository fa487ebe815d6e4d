"""Recorded updates, made again under vCPUs that notice what they lose.

`layout` finds a place for what a recording needs, `guest` is the program that notices, `replay` makes the updates one
after another and `timeline` takes one apart; `report` is how either is told.
"""
