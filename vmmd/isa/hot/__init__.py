"""Hot guest code as machine code: regions that run often, translated by a child process and entered from the loop."""
