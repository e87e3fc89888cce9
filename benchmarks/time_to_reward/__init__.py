"""How soon lit_rlhf and TRL come to the same reward on film reviews; see `__main__.py`."""
