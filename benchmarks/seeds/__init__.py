"""Whether a method works with every seed: PPO, RLOO, GRPO from one initial policy and reward model."""
