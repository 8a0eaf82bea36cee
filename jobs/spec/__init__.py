"""Specifications of jobs, and the checks before a job is accepted."""
