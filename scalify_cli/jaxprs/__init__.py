"""Jaxprs: evaluated, traced and called again, under rules that are others'."""
