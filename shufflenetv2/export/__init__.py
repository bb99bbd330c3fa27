"""Exported files: formats that other runtimes execute."""
