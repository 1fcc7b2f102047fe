"""Losses for networks that certify, schedules, and what goes with them; the loop stays yours."""
