"""The queue in Postgres: jobs, attempts, claims, events, batches, estimates."""
