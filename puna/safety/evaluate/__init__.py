"""How well a classifier tells unsafe texts from safe ones, on a labelled set.

cases.py   the set, read from JSONL or CSV
scores.py  precision, recall, F1, false positives, AUPRC; of many resamples at once
report.py  figures with bootstrap intervals, of several classifiers side by side
"""

from puna.safety.evaluate.cases import Case, Cases, read_cases
from puna.safety.evaluate.report import Answers, report

__all__ = ["Answers", "Case", "Cases", "read_cases", "report"]
