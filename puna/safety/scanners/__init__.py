"""Scanners: pure functions from a text to what should not be in it, with the reason for each finding.

scan.py puts them together; each of the others says what it looks for and what it leaves alone.
"""
