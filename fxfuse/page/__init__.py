"""The report people look at: one self-contained HTML page with drawings, and these as PNG files."""
