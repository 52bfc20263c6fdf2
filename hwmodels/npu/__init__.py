"""Systolic NPUs."""
