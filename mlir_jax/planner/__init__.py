"""The exact train step, compiled for TPUs that one need not have."""
