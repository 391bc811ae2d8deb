"""The comparison of SMT with BPTT: a matrix of runs, their raw results, and the report."""
