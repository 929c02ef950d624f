"""Who calls, what they may, and what they are charged.

accounts.py what a call asks of all of these
keys.py     API keys               limits.py    what a key may use, and what is left of it
prices.py   the operator's prices  usage.py     a row of the ledger
ledger.py   rows made durable      journal.py   where they go while the database is away
queries.py  sums and lists of rows
"""
