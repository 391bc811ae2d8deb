"""The comparison of SMT with BPTT: a declared matrix of runs, their raw results, and the report."""
