"""Several processes of one run: their roll call and their messages."""
