"""What this library touches of others beyond their documented interface: one file per library.

Each says the version that it was read from; `tests/architecture/test_internals.py` fails with a sentence when one
moves.
"""
