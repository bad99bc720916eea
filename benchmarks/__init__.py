"""Measurements behind the README's claims; each prints the command that makes it."""
