"""What is to be timed: one script a library and kind of work, each run alone in a fresh process; see `benchmarks/README.md`."""
