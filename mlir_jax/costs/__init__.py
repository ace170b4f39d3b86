"""The costs of a compiled step: operations, memory, traffic, collectives."""
