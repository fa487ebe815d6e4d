"""The documents: their fences are run, their links resolve, their references are made from the sources."""
