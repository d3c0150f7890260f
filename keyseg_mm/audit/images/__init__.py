"""What an attacker who sees encrypted images can restore of the plain ones, by the attacks of the literature."""
