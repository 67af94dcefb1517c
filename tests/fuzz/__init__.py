"""Malformed inputs: how they are made, where they are run, and what must hold."""
