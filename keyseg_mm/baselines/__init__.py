"""The literature's other systems, each a scheme: to compare with, not to build on."""
