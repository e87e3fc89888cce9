"""What is compared with lit_rlhf: environments of other libraries, and processes that are measured."""
