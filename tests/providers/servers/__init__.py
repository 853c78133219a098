"""Servers that speak as the providers do, as far as their tests need."""
