"""What a protected file is worth to somebody without its key: cases, training, scoring, referees, transfer."""
