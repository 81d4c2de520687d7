"""The ruler: one score for every model, charged for every byte of the same held-out documents."""
