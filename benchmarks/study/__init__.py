"""The parts of benchmarks/study.py, the study of translated sentences."""
