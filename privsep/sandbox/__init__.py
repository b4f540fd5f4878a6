"""Confinement steps, each applied or fatal."""
