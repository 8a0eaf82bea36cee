"""Carries jobs through: claim, compute, store, finish. Policy, no arithmetic."""
