"""Plans a run for TPUs that are not there: its train step, compiled and bound.

libtpu compiles the exact train step for a slice that is only named. The result
is the program that a run on that slice would start with: its memory, its
collectives, its kernels. Times are bounds, not forecasts: each part runs at the
full rate of its maker's table, and all parts run at the same time.
"""
