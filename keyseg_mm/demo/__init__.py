"""The parts of ``keyseg demo``: street scenes made on the spot, the config of the run, the picture, the table."""
