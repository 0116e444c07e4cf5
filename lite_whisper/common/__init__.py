"""Helpers used throughout the package: errors, processes, atomic file writes, JSON lines, memory and timing."""
