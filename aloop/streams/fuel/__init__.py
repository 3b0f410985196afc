"""Fuel's data streams as aloop's: import this, and a `MainLoop` takes them as they are.

Importing it makes Fuel 0.2.0 importable on today's Python, so it comes before imports of Fuel.
"""

from aloop.streams.fuel.stream import FuelIterator, FuelStream

__all__ = ["FuelIterator", "FuelStream"]
