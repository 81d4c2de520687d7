"""One verb from its beginning to its end: prepare, fit, judge, record."""
