"""The parts of ``keyseg compare``: the methods, their configs, the runs with their marks, figures, table and page."""
