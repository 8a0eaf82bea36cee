"""Addresses that are told of events: subscriptions, deliveries, signatures, allowed destinations."""
