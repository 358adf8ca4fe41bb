"""Optimizers, schedules, averaged weights."""
