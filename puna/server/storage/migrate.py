"""Brings a database's schema up to date by the steps of migrations/, once, whoever else starts."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, text

from puna.core import BadInput

_STEPS = Path(__file__).parent / "migrations"
_LOCK = 0x70756E61  # "puna": of PostgreSQL's advisory locks


def migrate(engine: Engine, name: str) -> None:
    """Raises BadInput where the schema is newer than this Puna, and SQLAlchemyError."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_STEPS).replace("%", "%%"))
    steps = ScriptDirectory.from_config(config)
    head = steps.get_current_head()
    known = {step.revision for step in steps.walk_revisions()}
    with engine.connect() as connection:
        if _checked(connection, known, name) == head:
            return
    # SQLite: nobody else writes from here on. A reader's lock could not be raised to a writer's.
    with engine.connect().execution_options(sqlite_begin="IMMEDIATE") as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if _checked(connection, known, name) != head:  # nobody did it meanwhile
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _checked(connection: Connection, known: set[str], name: str) -> str | None:
    from alembic.migration import MigrationContext

    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise BadInput(
            f"the database {name} has the schema {current!r} of a newer Puna, this one knows it up to "
            f"{max(known)!r}; update Puna"
        )
    return current
