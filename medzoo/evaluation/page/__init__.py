"""The report as a page: its sections, tables, figures and style, and the lines for a terminal."""
