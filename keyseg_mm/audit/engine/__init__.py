"""What all audits share: attacks and what they are granted, budgets, running and resuming, results."""
