"""How the tables came to be: Alembic's migrations, run when a database is opened."""
