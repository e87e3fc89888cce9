"""The first RLHF task (arXiv 1909.08593) on human ratings of film reviews and SmolLM2-135M."""
