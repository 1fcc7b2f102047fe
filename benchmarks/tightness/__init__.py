"""Margins of every method against another library's."""
