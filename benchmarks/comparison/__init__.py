"""From measured processes to ratios: what runs in which order, what both sides must agree on, the report."""
