"""The queue in Postgres: jobs, claims, events, batches, estimates."""
