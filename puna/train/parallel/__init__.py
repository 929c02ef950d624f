"""How a model is spread over ranks, from outside of it: matrices split first, then everything sharded."""
