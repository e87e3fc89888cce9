"""Runs on real input and comparisons with other systems; not part of the installed package."""
