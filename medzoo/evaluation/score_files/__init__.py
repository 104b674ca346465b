"""Scores of any model in a CSV file: which column is what, joined with a table, and written."""
