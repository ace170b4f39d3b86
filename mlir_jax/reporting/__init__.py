"""Shows runs side by side, for a reader: a page of HTML, figures, tables."""
