"""Intervals, quantiles and paired comparisons: one definition each, over numpy and scipy."""
