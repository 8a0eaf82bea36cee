"""Repairs, purges, webhook deliveries and signed copies: the `dragqueue reconciler` process."""
