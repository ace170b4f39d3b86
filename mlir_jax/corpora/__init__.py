"""Public corpora: where they are, and how they become a collection."""
