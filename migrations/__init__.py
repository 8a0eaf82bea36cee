"""Database migrations, by Alembic."""
