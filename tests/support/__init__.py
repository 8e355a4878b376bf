"""Helpers that the tests share. Nothing here is collected as a test."""
