"""Hostile inputs of `hostile_campaign.py`: files and requests that nobody should send, and what must become of them."""
