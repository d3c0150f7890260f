"""What ``keyseg demo`` does: it makes scenes, trains a protected model on them, tests it and tells what came out."""
