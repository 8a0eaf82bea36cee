"""Webhooks: subscriptions, deliveries, signatures, allowed destinations."""
