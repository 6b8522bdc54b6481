"""Oracles' tolerance, input factories, hostile shapes and poisoned memory: used by tests and by bench."""
