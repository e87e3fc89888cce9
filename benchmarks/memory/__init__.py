"""Memory of PPO with all roles on one 4-bit base, beside a library that loads a model for each role."""
