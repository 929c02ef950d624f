"""The server's database: SQLite by default, PostgreSQL by URL, one schema for both.

tables.py    what is kept          database.py   opening, errors
migrate.py   how the schema grows  migrations/   its steps, by Alembic

Everything here blocks: the server calls it from worker threads.
"""
