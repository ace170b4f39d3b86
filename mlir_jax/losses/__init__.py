"""The losses: each is an object with its settings and its formula."""
