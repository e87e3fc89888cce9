"""Whether a method that works works with every seed: PPO, RLOO and GRPO from one initial policy and one reward model."""
