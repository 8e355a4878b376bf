"""Tests of the event loop, on each backend, with the stock loop as control."""
