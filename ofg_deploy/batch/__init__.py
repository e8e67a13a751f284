"""Many pairs: one engine or several, all stages at once, nothing done twice."""
