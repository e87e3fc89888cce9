"""What is timed: one script a library and kind of work, each run alone in a fresh process by `benchmarks.compare`."""
