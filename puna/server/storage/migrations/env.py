"""What Alembic runs to apply the steps: on the connection, and in the transaction, of migrate.py."""

from __future__ import annotations

from alembic import context

from puna.server.storage.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
