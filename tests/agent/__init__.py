"""The agent, driven as a real process over its wire."""
