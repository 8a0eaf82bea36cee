"""Tenants: API keys, quotas, audit log."""
