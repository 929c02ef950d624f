"""Batches: requests from a file, answered in the background by whoever serves.

lines.py    the lines of a file           inside.py  a line through the application, without a socket
runner.py   which batches, and sweeping   run.py     one batch, from its lines to its files
"""
