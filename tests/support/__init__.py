"""What tests share: configs, data, models, and ways to run them. No fixtures: those are in conftest.py."""
