"""Shipped configs, one run each: `--config=NAME` finds them from anywhere."""
