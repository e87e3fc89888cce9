"""From measured processes to ratios: what is run in which order, what is kept, what both sides must agree on, and the report."""
