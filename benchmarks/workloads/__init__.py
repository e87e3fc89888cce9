"""What is timed: a script a library and kind of work, alone in a fresh process; see `benchmarks/README.md`."""
