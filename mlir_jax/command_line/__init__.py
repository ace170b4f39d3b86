"""How every program starts: its flags, and how it refuses."""
