"""What a protected file is worth to somebody without its key: cases, attacks and controls, the referee, the report."""
