"""What `lit_rlhf.estimate` says of memory, beside what processes on a CPU take."""
