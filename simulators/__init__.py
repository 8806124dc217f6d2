"""Machines that behave like machines, and fail like them, with the truth written beside."""
