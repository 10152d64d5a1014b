"""Evaluation: set metrics, intervals, paired comparison, scaling fits, reports and figures.

Records (one line a group) become results (per width and subset size), results become reports. Only
`evaluate` and what it calls samples; the rest is numpy and scipy, and needs no torch.
"""
