"""The losses: one object each, its settings and its formula."""
