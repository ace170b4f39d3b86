"""What a compiled step costs: memory, collectives, operations."""
