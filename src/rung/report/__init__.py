"""The report: one page, offline and self-contained, made from run folders and nothing else."""
