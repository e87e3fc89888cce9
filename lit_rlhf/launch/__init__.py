"""Starting a command of `lit-rlhf` on the workers of another launcher's cluster."""

from lit_rlhf.launch.cluster import launch as launch
