"""Starting a command of `lit-rlhf` on the workers of another launcher's cluster."""
