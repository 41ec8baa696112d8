"""Measures Confide against what a team without its needs would write, and against its peers: ``make bench``."""
